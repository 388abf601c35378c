"""Atomic writing: files and folders appear under their names only when they are complete."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from archloop.errors import ArchloopError, UsageError

_PART = ".part"
"""Temporary folder for incomplete files."""
_MOST_BYTES = 1 << 20
"""Largest file that is read as the source of a network, several times of what can be run."""


def read_regular(file: Path, most: int = _MOST_BYTES) -> bytes:
    """The content of a file that somebody else may have put there: at once, and within bounds.

    A link to a file is followed. A device, a FIFO or a socket is not opened, as that could block,
    or have an effect.

    Raises:
        UsageError: It is no regular file, larger than ``most`` bytes, or not readable.
    """
    try:
        if stat.S_ISREG(file.stat().st_mode):
            # O_NONBLOCK for the case that it becomes a FIFO now.
            fd = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            with open(fd, "rb") as source:  # noqa: PTH123 - a descriptor
                data = source.read(most + 1) if stat.S_ISREG(os.fstat(fd).st_mode) else None
            if data is not None and len(data) > most:
                raise UsageError(f"{file}: larger than {most:,} bytes")
            if data is not None:
                return data
    except OSError as error:
        raise UsageError(f"{file}: cannot be read: {error.strerror or error}") from None
    raise UsageError(f"{file}: not a regular file")


@contextmanager
def replacing(file: Path) -> Iterator[TextIO]:
    """A text file to write; when it is complete, it replaces an older one of its name.

    Raises:
        OSError: It cannot be written; the message names the file, and the incomplete file is
            removed.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f".{file.name}.part")
    try:
        with partial.open("w", encoding="utf-8") as sink:
            yield sink
        partial.replace(file)
    except OSError as error:
        raise type(error)(error.errno, error.strerror, str(file)) from None
    finally:
        partial.unlink(missing_ok=True)


def write_text(file: Path, text: str) -> None:
    """Write a file atomically; see :func:`replacing`."""
    with replacing(file) as sink:
        sink.write(text)


def check_new(folder: Path) -> None:
    """Check that a folder is absent or empty.

    Raises:
        UsageError: It contains something, which would be mixed with the new files.
    """
    if folder.is_dir() and any(entry.name != _PART for entry in folder.iterdir()):
        raise UsageError(f"{folder}: holds files already; name a new folder or an empty one")


@contextmanager
def filling(folder: Path, *, replace: bool = False) -> Iterator[Path]:
    """A temporary folder whose files are moved to ``folder`` when all of them are written.

    After an error the folder is unchanged; leftovers of a killed process are removed on the next
    attempt.

    Args:
        folder: Created if absent, with its parents.
        replace: New files may replace older ones of the same name.

    Raises:
        UsageError: The folder holds files already, and ``replace`` is not set.
        OSError: It cannot be written, or the disk is full; the message names the folder or file.
    """
    if not replace:
        check_new(folder)
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    part = folder / _PART  # inside ``folder``, which may be the current folder or a separate disk
    shutil.rmtree(part, ignore_errors=True)
    try:
        part.mkdir(parents=True)
        yield part
        for entry in sorted(part.iterdir()):
            entry.replace(folder / entry.name)
    except OSError as error:
        if error.filename is None:  # an error of a full disk
            error.filename = str(folder)
        raise
    finally:
        shutil.rmtree(part, ignore_errors=True)
        with suppress(OSError):  # it is not empty after a success
            for path in made:
                path.rmdir()


def not_writable(folder: Path, size: int = 1) -> str | None:
    """The reason why ``size`` bytes cannot be written to a folder; ``None``: they can."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(size))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return error.strerror or str(error)
    return None


@contextmanager
def naming(folder: Path) -> Iterator[None]:
    """Raise one clear error, with the folder's name, when a library fails to write to it.

    torch, safetensors and OpenVINO raise various errors on a full disk, some without saying so;
    therefore a test file is written to find the reason.

    Raises:
        UsageError: The folder cannot be written.
    """
    try:
        yield
    except ArchloopError:
        raise
    except Exception as error:
        if not (isinstance(error, OSError) and error.filename) and (
            reason := not_writable(folder, 2**20)
        ):
            raise UsageError(f"{folder}: cannot be written: {reason}") from error
        raise
