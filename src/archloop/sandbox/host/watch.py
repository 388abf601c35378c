"""Watches what resource limits do not cover in a running candidate: files, memory, output."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path

from archloop.sandbox.confine.private_folder import ClosedError, bytes_by_inode
from archloop.sandbox.host.refusals import Refusals, TooManyError
from archloop.sandbox.wire import LOOK_SECONDS
from archloop.text import printable
from archloop.types import Outcome

_HEAD, _TAIL = 8 << 10, 56 << 10
"""Bytes of output that are kept."""
_READ = 1 << 16
_MOST_WAIT = 3.0
"""Waiting for a CPU core extends a deadline by at most this factor: a candidate may wait on
purpose."""
_MOST_THREADS = 512
"""Threads of one candidate: far more than an honest one has, far fewer than the system's limit."""


class LimitError(Exception):
    """A candidate exceeds a limit."""

    def __init__(self, outcome: Outcome, error: str) -> None:
        super().__init__(error)
        self.outcome = outcome


class Output:
    """The beginning and the end of what a candidate prints; the middle of a flood is dropped.

    Args:
        fd: The reading end of its pipe, which is closed here.
    """

    def __init__(self, fd: int) -> None:
        os.set_blocking(fd, False)
        self._fd, self._head, self._tail = fd, bytearray(), bytearray()

    @property
    def fds(self) -> tuple[int, ...]:
        """Descriptors to wait for: the pipe, while it is open."""
        return () if self._fd < 0 else (self._fd,)

    def read(self) -> None:
        """Read the output that is available now."""
        while self._fd >= 0:
            try:
                part = os.read(self._fd, _READ)
            except BlockingIOError:
                return
            if not part:
                self.close()
            room = _HEAD - len(self._head)
            self._head += part[:room]
            self._tail = (self._tail + part[room:])[-_TAIL:]
            if len(part) < _READ:
                return

    def close(self) -> None:
        """Close the pipe."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def text(self) -> str:
        """The stored output, without control characters."""
        return printable((self._head + self._tail).decode("utf-8", "replace"))


class Watch:
    """Checks one candidate a few times a second, and at once when it prints or is refused a call.

    Args:
        pid: Its process id; the process is not reaped while it is watched.
        folder: Its private folder.
        output: Its output.
        memory_bytes: Memory that it may use in addition to that at the first check.
        disk_bytes: All its files together, deleted ones that it still holds open included.
        refusals: What it is refused, if that is reported.
    """

    def __init__(
        self,
        pid: int,
        folder: Path,
        output: Output,
        memory_bytes: int,
        disk_bytes: int,
        refusals: Refusals | None = None,
    ) -> None:
        self._refusals = refusals or Refusals()
        self._process, self._folder, self._output = Path("/proc") / str(pid), folder, output
        self._memory, self._disk = memory_bytes, disk_bytes
        self._next = 0.0
        self._base: int | None = None
        self._waited_before = self._most_wait = 0.0

    @property
    def fds(self) -> tuple[int, ...]:
        """See :class:`archloop.sandbox.wire.Look`."""
        return self._output.fds + self._refusals.fds

    def __call__(self) -> None:
        """Check the candidate if the last check is old enough.

        Raises:
            LimitError: The candidate exceeds a limit.
        """
        self._output.read()
        try:
            self._refusals.answer()
        except TooManyError:
            text = "made refused system calls without end"
            raise LimitError(Outcome.SANDBOX_VIOLATION, text) from None
        if time.monotonic() < self._next:
            return
        memory, threads = self._status()
        if self._base is None:
            self._base = memory
        if memory - self._base > self._memory:
            raise LimitError(Outcome.OUT_OF_MEMORY, f"used more than {self._memory >> 20} MB")
        if threads > _MOST_THREADS:
            raise LimitError(
                Outcome.SANDBOX_VIOLATION, f"started more than {_MOST_THREADS} threads"
            )
        if self._disk_bytes() > self._disk:
            raise LimitError(Outcome.SANDBOX_VIOLATION, f"wrote more than {self._disk >> 20} MB")
        self._next = time.monotonic() + LOOK_SECONDS

    def begin(self, seconds: float) -> None:
        """Start a deadline of so many seconds."""
        self._waited_before, self._most_wait = self._waited(), _MOST_WAIT * seconds

    def waited(self) -> float:
        """Seconds since a deadline began in which the process was runnable without a CPU core.

        Without this, a candidate could fail because of others on a busy machine. At most three
        times the deadline; 0 where the system does not count it.
        """
        return min(max(0.0, self._waited() - self._waited_before), self._most_wait)

    def _waited(self) -> float:
        try:
            _, nanoseconds, _ = (self._process / "schedstat").read_text().split()
        except (OSError, ValueError):
            return 0.0
        return int(nanoseconds) / 1e9

    def _status(self) -> tuple[int, int]:
        """Bytes of anonymous and shared memory, and threads; zeros where there is no /proc."""
        try:
            # A process may give itself a name that is not valid text.
            lines = (self._process / "status").read_text(errors="replace").splitlines()
        except OSError:
            return 0, 0
        found = {key: value for key, _, value in (line.partition(":") for line in lines)}
        kilobytes = sum(int(found.get(key, "0 kB").split()[0]) for key in ("RssAnon", "RssShmem"))
        return kilobytes << 10, int(found.get("Threads", "0"))

    def _disk_bytes(self) -> int:
        """Bytes on disk of the folder, and of deleted files that are still open."""
        try:
            sizes = bytes_by_inode(self._folder, self._disk)
        except ClosedError:
            text = "made a folder that cannot be looked into"
            raise LimitError(Outcome.SANDBOX_VIOLATION, text) from None
        return sum((sizes | self._deleted()).values())

    def _deleted(self) -> dict[int, int]:
        """Bytes of its open files without a name, by inode; none where there is no /proc."""
        found = {}
        with suppress(OSError):
            device = self._folder.stat().st_dev
            for path in (self._process / "fd").iterdir():
                # A descriptor that is closed meanwhile must not hide the others.
                with suppress(OSError):
                    status = path.stat()
                    if status.st_nlink == 0 and status.st_dev == device:
                        found[status.st_ino] = status.st_blocks * 512
        return found
