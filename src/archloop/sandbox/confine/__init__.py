"""How a process is confined: Landlock, seccomp, namespaces, folders."""
