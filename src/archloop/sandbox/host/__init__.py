"""The main process's side of the sandbox: jobs in, verdicts out."""
