"""What this machine is: hardware, memory estimates, versions, pinned downloads."""
