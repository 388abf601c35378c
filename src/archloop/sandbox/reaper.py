"""The parent of the fork server, which ends everything that the fork server leaves behind.

It runs no generated code, and forks the fork server before torch is imported. When the fork server
ends in whatever way, its descendants are handed to this process by the kernel, as the nearest
subreaper; it kills and reaps them until there are none, and removes their folder. So nothing
depends on parent-death signals, which a process can take back for itself; they are the second line,
for the case that this process is killed too.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Collection
from pathlib import Path

from archloop.sandbox.confine.private_folder import remove_folder

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_MOST_FILES = 4096


def main() -> None:
    """``python -m archloop.sandbox.reaper SOCKET FOLDER``: start the fork server and outlive it."""
    control, folder = int(sys.argv[1]), Path(sys.argv[2])
    become_subreaper()
    parent = os.getpid()
    server = os.fork()
    if not server:
        end_with(parent)
        from archloop.sandbox import forkserver

        forkserver.main(control)
        return
    # The socket and the shared memory are the fork server's: its end must close them.
    os.closerange(3, _MOST_FILES)
    _, status = os.waitpid(server, 0)
    sweep()
    remove_folder(folder)
    sys.exit(os.waitstatus_to_exitcode(status) and 1)


def become_subreaper() -> None:
    """Become the parent of every descendant whose own parent ends; Linux only."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def end_with(parent: int) -> None:
    """Have the kernel kill this process when its parent ends; Linux only.

    Args:
        parent: The parent's process id: if it has ended before, this process ends at once.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)


def kill(pid: int) -> None:
    """Kill a process and its process group, if it leads one."""
    for kill in (os.killpg, os.kill):
        try:
            kill(pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            continue


def sweep(spared: Collection[int] = ()) -> int:
    """Kill and reap all children, and those that the kernel hands over meanwhile.

    Args:
        spared: Children that go on.

    Returns:
        How many were killed; 0 where the system has no list of children.
    """
    count = 0
    while found := [pid for pid in _children() if pid not in spared]:
        for pid in found:
            kill(pid)
            os.waitpid(pid, 0)
            count += 1
    return count


def _children() -> list[int]:
    file = Path(f"/proc/self/task/{os.getpid()}/children")
    return [int(p) for p in file.read_text().split()] if file.is_file() else []


if __name__ == "__main__":
    main()
