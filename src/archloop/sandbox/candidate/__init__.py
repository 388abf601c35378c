"""What runs inside a candidate's process."""
