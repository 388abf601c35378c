"""Training batches: a separate process feeds each candidate."""
