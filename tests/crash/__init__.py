"""Merges that are killed, cut off from power, or run in many ways; see docs/trust.md."""
