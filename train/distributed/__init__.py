"""Several processes: start, stop at the same step, report which one died."""
