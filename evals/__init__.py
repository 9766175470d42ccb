"""Diagnostics of a merge: weights, activations, information, tasks."""
