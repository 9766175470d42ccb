"""The Python API: merges in memory and from folder to folder, several recipes, reproduction."""
