"""Diagnostics of activations: the same tokens through every model."""
