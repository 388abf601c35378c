"""Confinement of a process: Landlock, seccomp, namespaces, private folders."""
