"""The closed loop: a run, its cycles and their stages."""
