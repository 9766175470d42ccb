"""Activations and predictions of a merge against its parents', on the same tokens."""
