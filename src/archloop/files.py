"""Files and folders that appear under their names when they are whole, or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from archloop.errors import ArchloopError, UsageError

_PART = ".part"
"""Folder for what is not whole yet."""


@contextmanager
def replacing(file: Path) -> Iterator[TextIO]:
    """A text file to write, which takes its name, and an older one's place, when it is whole.

    Raises:
        OSError: It cannot be written; the file is named, and what is there of it is removed.
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
    """Write a file as a whole; see :func:`replacing`."""
    with replacing(file) as sink:
        sink.write(text)


def check_new(folder: Path) -> None:
    """Whether a folder is there to be filled: absent, or empty.

    Raises:
        UsageError: There is something in it, which would be mixed with what comes.
    """
    if folder.is_dir() and any(entry.name != _PART for entry in folder.iterdir()):
        raise UsageError(f"{folder}: holds files already; name a new folder or an empty one")


@contextmanager
def filling(folder: Path, *, replace: bool = False) -> Iterator[Path]:
    """A place to write what comes to lie in a folder when all of it is there.

    After a fault the folder is as it was; what a kill leaves goes with the next try.

    Args:
        folder: Made if absent, with the folders it is in.
        replace: Files may take the place of older ones of their names.

    Raises:
        UsageError: The folder holds files already, and ``replace`` is not set.
        OSError: It cannot be written, or the disk is full; the folder or file is named.
    """
    if not replace:
        check_new(folder)
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    part = folder / _PART  # inside, not beside: it may be the current one, or a disk of its own
    shutil.rmtree(part, ignore_errors=True)
    try:
        part.mkdir(parents=True)
        yield part
        for entry in sorted(part.iterdir()):
            entry.replace(folder / entry.name)
    except OSError as error:
        if error.filename is None:  # of a full disk
            error.filename = str(folder)
        raise
    finally:
        shutil.rmtree(part, ignore_errors=True)
        with suppress(OSError):  # not empty where all went well
            for path in made:
                path.rmdir()


def not_writable(folder: Path, size: int = 1) -> str | None:
    """Why ``size`` bytes cannot be written to a folder, made if absent; ``None``: they can."""
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
    """Name a folder in the fault of a library that could not write to it.

    torch, safetensors and OpenVINO have errors of their own for a full disk, some without a word
    about it, so that writing is tried once more.

    Raises:
        UsageError: The folder takes no more.
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
