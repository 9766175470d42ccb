"""Tokenizers and chat templates of merges: the output's vocabulary, and where each of its rows comes from."""
