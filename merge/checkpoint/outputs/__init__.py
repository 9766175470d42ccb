"""Where tensors go: shards laid out beforehand, a journal, one rename."""
