"""What several strategies share: functions that make kernels, and the mathematics of a family."""
