"""What a running candidate uses, beyond what resource limits count: its files, all its memory."""

from __future__ import annotations

import time
from pathlib import Path

from archloop.sandbox.wire import LOOK_SECONDS
from archloop.types import Outcome


class LimitError(Exception):
    """A candidate uses too much."""

    def __init__(self, outcome: Outcome, error: str) -> None:
        super().__init__(error)
        self.outcome = outcome


class Watch:
    """Looks at one candidate a few times a second.

    Args:
        pid: Its process, which nobody reaps while it is watched.
        folder: Its private folder.
        memory_bytes: What it may hold more than at the first look.
        disk_bytes: All its files together, deleted ones that it still holds open included.
    """

    def __init__(self, pid: int, folder: Path, memory_bytes: int, disk_bytes: int) -> None:
        self._process, self._folder = Path("/proc") / str(pid), folder
        self._memory, self._disk = memory_bytes, disk_bytes
        self._next = 0.0
        self._base: int | None = None

    def __call__(self) -> None:
        """Look, if the last look was a while ago.

        Raises:
            LimitError: Too much is used.
        """
        if time.monotonic() < self._next:
            return
        memory = self._memory_bytes()
        if self._base is None:
            self._base = memory
        if memory - self._base > self._memory:
            raise LimitError(Outcome.OUT_OF_MEMORY, f"used more than {self._memory >> 20} MB")
        if self._disk_bytes() > self._disk:
            raise LimitError(Outcome.SANDBOX_VIOLATION, f"wrote more than {self._disk >> 20} MB")
        self._next = time.monotonic() + LOOK_SECONDS

    def _memory_bytes(self) -> int:
        """Anonymous and shared memory; 0 where there is no /proc."""
        try:
            lines = (self._process / "status").read_text().splitlines()
        except OSError:
            return 0
        return sum(
            int(line.split()[1]) << 10
            for line in lines
            if line.startswith(("RssAnon:", "RssShmem:"))
        )

    def _disk_bytes(self) -> int:
        """Of the folder, and of deleted files that are still open."""
        sizes: dict[int, int] = {}
        try:
            device = self._folder.stat().st_dev
            for path in self._folder.rglob("*"):
                status = path.lstat()
                sizes[status.st_ino] = status.st_blocks * 512
            for path in (self._process / "fd").iterdir():
                status = path.stat()
                if status.st_nlink == 0 and status.st_dev == device:
                    sizes[status.st_ino] = status.st_blocks * 512
        except OSError:
            # Something vanished under the look, or there is no /proc; the next look is soon.
            return sum(sizes.values())
        return sum(sizes.values())
