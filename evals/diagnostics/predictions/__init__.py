"""Diagnostics of predictions: next-token distributions, and vectors of sentences."""
