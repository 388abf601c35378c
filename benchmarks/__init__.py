"""Measurements of archloop beside the usual way, both in one run: ``python -m benchmarks``."""
