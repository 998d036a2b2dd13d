"""Around a training step: accumulation, gradients released inside of backward, step metrics."""
