"""Prompt-code pairs: what a run starts from and what its cycles add."""
