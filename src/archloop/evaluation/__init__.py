"""Candidates evaluated: executors, computation graphs, networks by themselves and compared."""
