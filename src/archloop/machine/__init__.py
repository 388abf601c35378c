"""This machine: hardware, memory estimates, records of sessions, pinned downloads."""
