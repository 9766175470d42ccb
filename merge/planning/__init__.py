"""From recipes and headers to tasks: which tensors make which, by which kernel."""
