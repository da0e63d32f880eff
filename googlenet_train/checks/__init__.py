"""What can be known of a run before it: used by `check` and at the start of training."""
