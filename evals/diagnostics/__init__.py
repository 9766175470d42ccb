"""What is measured: one object a number, with its definition, formula and looks; all else is derived from
it."""
