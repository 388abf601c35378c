"""Measurements, side by side with what is compared."""
