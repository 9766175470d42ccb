"""Recipes: what is asked for, in mergekit's dialect, checked strictly."""
