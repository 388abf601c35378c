"""The record of a run: its database and its directory."""
