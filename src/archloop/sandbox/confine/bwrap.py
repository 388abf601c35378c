"""The ``bwrap`` level: the fork server, and so every candidate, in namespaces of its own.

bubblewrap gives it a mount namespace in which everything is read-only and home and temporary
folders are empty, a process namespace that ends with it, and no network. Landlock and seccomp are
applied in addition.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

_PROBE_SECONDS = 10.0
_OF_A_USER = ("--unshare-all",)
_OF_ROOT = (
    *("--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-cgroup-try"),
    *(
        part
        for name in ("SETUID", "SETGID", "CHOWN", "KILL", "DAC_OVERRIDE", "DAC_READ_SEARCH")
        for part in ("--cap-add", f"CAP_{name}")
    ),
)
"""Root keeps the user namespace in which user ids are mapped, and what it takes to give candidates
ids of their own and to clean up after them."""
_HIDDEN = ("/tmp", "/var/tmp", "/run", "/home", "/root", "/media", "/mnt", "/srv")


def why_not() -> str | None:
    """What this machine lacks for the level; ``None``: nothing."""
    program = shutil.which("bwrap")
    if program is None:
        return "the program bwrap (package bubblewrap) is not installed"
    command = [program, *_namespaces(), "--ro-bind", "/", "/", "--proc", "/proc", "true"]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_PROBE_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"bwrap does not run: {error}"
    if done.returncode:
        return (done.stderr.strip().splitlines() or ["bwrap does not run"])[-1]
    return None


def _namespaces() -> tuple[str, ...]:
    return _OF_ROOT if os.geteuid() == 0 else _OF_A_USER


def wrap(command: list[str], folder: Path) -> list[str]:
    """The command inside namespaces, with ``folder`` as the only place to write."""
    program = shutil.which("bwrap")
    assert program is not None
    hidden = [part for path in _HIDDEN if Path(path).is_dir() for part in ("--tmpfs", path)]
    gpus = [
        part
        for gpu in sorted(Path("/dev").glob("nvidia*"))
        for part in ("--dev-bind", str(gpu), str(gpu))
    ]
    return [
        program,
        *_namespaces(),
        "--die-with-parent",
        "--new-session",
        *("--ro-bind", "/", "/"),
        *("--proc", "/proc"),
        *("--dev", "/dev"),
        *gpus,
        *hidden,
        *_bring_back(),
        *("--bind", str(folder), str(folder)),
        *("--chdir", str(folder)),
        "--",
        *command,
    ]


def _bring_back() -> list[str]:
    """Folders that Python imports from and that lie below a hidden folder."""
    paths = {Path(p).resolve() for p in (sys.prefix, sys.base_prefix, *sys.path) if p}
    paths |= {Path(sys.executable).parent, Path(__file__).resolve().parents[2]}
    hidden = [Path(p) for p in (*_HIDDEN, tempfile.gettempdir())]
    kept = sorted(p for p in paths if p.exists() and any(p.is_relative_to(h) for h in hidden))
    return [part for path in kept for part in ("--ro-bind", str(path), str(path))]
