"""Prompt-code pairs: the seed corpus, and the networks that cycles add."""
