"""Training: optimizer, train step, compiled loop over steps, and the run with its phases."""
