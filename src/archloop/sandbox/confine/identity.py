"""A user and a group of its own for each candidate, where the fork server is root.

Files, processes, signals and quotas of other candidates, and of archloop itself, then belong to
somebody else. The id follows from the process id, so no two processes have the same one, except
where few ids are mapped, as in a container.
"""

from __future__ import annotations

import ctypes
import os
import platform
import stat
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from archloop.sandbox.confine.calls import NUMBERS, Numbers

_PR_SET_KEEPCAPS = 8
_CAP_DAC_READ_SEARCH = 2
_CAPABILITY_VERSION_3 = 0x20080522
_FIRST, _MOST = 2_000_000_000, 1 << 22
"""Ids that systemd's list of user ids leaves unused, and the most process ids of Linux."""
_LEAST = 4096
"""Fewest mapped ids of which the upper half is taken."""
_RESERVED = 2
"""At the upper end of a range of 2**16: ``nobody``, and the id that stands for none."""


@dataclass(frozen=True)
class Identities:
    """The ids that candidates get."""

    first: int
    count: int
    searches: bool
    """They keep the capability to read and search folders, as Python or torch lies where only root
    may look, such as in /root. Landlock decides what is read all the same."""
    groups: tuple[int, ...]
    """Groups that GPUs are reserved for."""

    @property
    def capabilities(self) -> int:
        """Bits of the capabilities that are kept."""
        return 1 << _CAP_DAC_READ_SEARCH if self.searches else 0

    def of(self, pid: int) -> int:
        """The user and group id of a process."""
        return self.first + pid % self.count


def identities(readable: Iterable[str], private: str) -> Identities | str | None:
    """The ids for candidates of this process.

    Args:
        readable: Files and folders that they must be able to read.
        private: The parent of their private folders, which they must be able to pass.

    Returns:
        The ids; the reason why there are none; ``None`` if this process is not root, so that
        candidates have its user.
    """
    if os.geteuid() != 0 or sys.platform != "linux":
        return None
    if platform.machine() not in Numbers._fields:
        return "this processor's system calls are not known"
    span = span_of(Path("/proc/self/uid_map").read_text())
    if span is None:
        return "too few user ids are mapped in this user namespace"
    paths = list(readable)
    for searches in (False, True):
        found = Identities(*span, searches, _gpu_groups())
        code = _try(found, paths, private)
        if code == 0:
            return found
    return "setuid is refused here" if code == _REFUSED else "files of Python cannot be read"


def span_of(uid_map: str) -> tuple[int, int] | None:
    """The first id for candidates and the number of such ids; ``None``: too few are mapped.

    Args:
        uid_map: Rows of (id here, id outside, number of ids), as in /proc/self/uid_map.
    """
    rows = [[int(n) for n in row.split()] for row in uid_map.splitlines()]
    if any(inside <= _FIRST and inside + count >= _FIRST + _MOST for inside, _, count in rows):
        return _FIRST, _MOST
    inside, _, length = max(rows, key=lambda row: row[2])
    if length < _LEAST:
        return None
    count = min(length // 2, _MOST)
    return inside + length - count - _RESERVED, count


def _gpu_groups() -> tuple[int, ...]:
    """Groups of GPU devices that others may not open."""
    found = [path.stat() for path in Path("/dev").glob("nvidia*") if path.is_char_device()]
    closed = {s.st_gid for s in found if not s.st_mode & stat.S_IROTH}
    return tuple(sorted(closed - {0}))


_UNREADABLE, _REFUSED = 1, 2


def _try(ids: Identities, paths: list[str], private: str) -> int:
    """Whether a process of such an id can reach the paths, tried in a child: 0, or why not."""
    pid = os.fork()
    if not pid:
        try:
            become(ids, None)
            for path in paths:
                if not Path(path).is_char_device():
                    os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK))
            Path(private, ".", "none").exists()
        except PermissionError as error:
            os._exit(_REFUSED if error.filename is None else _UNREADABLE)
        except BaseException:  # noqa: BLE001 - this process must not go on as a second fork server
            os._exit(_REFUSED)
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status)


def become(ids: Identities, folder: Path | None) -> None:
    """Give this process, which must have one thread, an id of its own.

    Its parent-death signal is cleared by that.

    Args:
        ids: Which ones there are.
        folder: Given to the new user, and closed to all others.

    Raises:
        OSError: The kernel refused.
    """
    own = ids.of(os.getpid())
    if folder is not None:
        folder.chmod(0o700)
        os.chown(folder, own, own)
    if ids.searches:
        ctypes.CDLL(None).prctl(_PR_SET_KEEPCAPS, 1, 0, 0, 0)
    os.setgroups(ids.groups)
    os.setresgid(own, own, own)
    os.setresuid(own, own, own)
    keep_capabilities(ids.capabilities)


def keep_capabilities(kept: int) -> None:
    """Drop every other capability, so that even root cannot raise its limits again.

    Raises:
        OSError: The kernel refused.
    """
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    sets = (ctypes.c_uint32 * 6)(kept, kept)  # effective, permitted, inheritable; then upper halves
    libc = ctypes.CDLL(None, use_errno=True)
    number = getattr(NUMBERS["capset"], platform.machine())
    if libc.syscall(number, ctypes.byref(header), ctypes.byref(sets)):
        raise OSError(ctypes.get_errno(), "capset refused")
