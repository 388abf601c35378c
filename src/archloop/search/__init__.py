"""What to ask for, accept and learn from: pure functions of a run's history."""
