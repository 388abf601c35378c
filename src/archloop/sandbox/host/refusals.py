"""The system calls that a candidate's filter refused, told by the kernel and not by the candidate.

The kernel holds a refused call, as of seccomp_unotify(2), until it is noted and answered here: with
EPERM, always. A call waits while the main process is busy elsewhere; an allowed one never does.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import struct

from archloop.sandbox.confine.calls import name_of

_RECEIVE, _SEND = 0xC0502100, 0xC0182101
"""SECCOMP_IOCTL_NOTIF_RECV and SECCOMP_IOCTL_NOTIF_SEND (linux/seccomp.h)."""
_NOTE = struct.Struct("=QII i IQ6Q")
"""struct seccomp_notif: id, pid, flags; number, architecture, instruction, arguments."""
_ANSWER = struct.Struct("=QqiI")
"""struct seccomp_notif_resp: id, value, error, flags."""
_WITH_COMMAND = {"fcntl": 1, "ioctl": 1, "prctl": 0, "madvise": 2, "fadvise64": 3}
_MOST_CALLS = 1000
"""Refused calls after which a candidate is ended: each costs the main process some time."""
_MOST_NAMES = 8


class TooManyError(Exception):
    """The candidate made too many refused calls."""


class Refusals:
    """What was refused to one process, by name, in the order of the first time."""

    def __init__(self) -> None:
        self._fd, self._count = -1, 0
        self._names: dict[str, None] = {}

    @property
    def fds(self) -> tuple[int, ...]:
        """Descriptors to wait for: the listener, while it is open."""
        return () if self._fd < 0 else (self._fd,)

    @property
    def names(self) -> tuple[str, ...]:
        """The refused calls, a few at most."""
        return tuple(self._names)

    def listen(self, fd: int) -> None:
        """Take the descriptor on which refused calls arrive."""
        self._fd = fd

    def answer(self) -> None:
        """Note and answer the calls that wait now.

        Raises:
            TooManyError: There were too many.
        """
        while self._fd >= 0:
            poller = select.poll()
            poller.register(self._fd, select.POLLIN)
            ready = poller.poll(0)
            if not ready:
                return
            if not ready[0][1] & select.POLLIN:
                self.close()  # the process has ended
                return
            self._answer_one()
            if self._count > _MOST_CALLS:
                raise TooManyError

    def _answer_one(self) -> None:
        note = bytearray(_NOTE.size)
        try:
            fcntl.ioctl(self._fd, _RECEIVE, note)
            id, _, _, number, _, _, *arguments = _NOTE.unpack(note)
            self._note(number, arguments)
            fcntl.ioctl(self._fd, _SEND, _ANSWER.pack(id, 0, -errno.EPERM, 0))
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.EINTR):  # ENOENT: it was killed meanwhile
                raise

    def _note(self, number: int, arguments: list[int]) -> None:
        self._count += 1
        name = name_of(number)
        if name in _WITH_COMMAND:
            name += f"({arguments[_WITH_COMMAND[name]] & 0xFFFFFFFF})"
        if len(self._names) < _MOST_NAMES:
            self._names.setdefault(name)

    def close(self) -> None:
        """Stop listening; what is refused from now on fails with ENOSYS."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
