"""Weights of a merge against its parents' and base's: no forward pass, a block in memory at a time."""
