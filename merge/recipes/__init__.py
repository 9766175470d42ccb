"""Recipes: what is asked for, checked strictly; mergekit's dialect, and parameters by level, name and depth."""
