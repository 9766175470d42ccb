"""Diagnostics of weights: files alone, no forward pass."""
