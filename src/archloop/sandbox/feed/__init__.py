"""Training batches: a process of its own feeds one candidate."""
