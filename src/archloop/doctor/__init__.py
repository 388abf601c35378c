"""What a machine lacks for a configuration, and whether the sandbox holds."""
