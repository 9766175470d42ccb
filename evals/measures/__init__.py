"""What is measured: weights, activations, information, tasks."""
