"""Did the merge collapse, where, and what to do: diagnostics, verdict, report, repair."""
