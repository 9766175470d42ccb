"""Benchmarks: how long a merge takes and in how much memory, beside the disk and a peer."""
