"""Where tensors come from: folders, files, pickles, adapters, and views of them."""
