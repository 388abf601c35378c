"""Which systems archloop runs on; README.md says what works where."""

from __future__ import annotations

import sys

from archloop.errors import UsageError

_NAMES = {"darwin": "macOS", "win32": "Windows", "cygwin": "Cygwin"}


def why_no_sandbox() -> str | None:
    """Why generated code cannot be run on this system; ``None``: it can."""
    if sys.platform == "linux":
        return None
    return f"{_NAMES.get(sys.platform, sys.platform)} has no sandbox for generated code"


def refuse_windows() -> None:
    """Refuse to work on Windows itself, which lacks what processes and locks are made of.

    Raises:
        UsageError: This is Windows.
    """
    if sys.platform in ("win32", "cygwin"):
        raise UsageError(
            f"archloop does not run on {_NAMES[sys.platform]} itself; use Linux in WSL2 "
            "(wsl --install) or in a Docker container"
        )
