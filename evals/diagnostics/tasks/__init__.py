"""Diagnostics of what models write."""
