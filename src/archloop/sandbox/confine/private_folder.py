"""Size and removal of a candidate's private folder, whatever the candidate put there."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import suppress
from itertools import count
from pathlib import Path

_LEAST = 4096
"""Bytes that every file counts at least: empty files use up the inodes of a disk."""
_CLOSED = (errno.EACCES, errno.EPERM, errno.ENAMETOOLONG)


class ClosedError(Exception):
    """A folder that cannot be read: no permission, or nested deeper than the longest path."""


def bytes_by_inode(folder: Path, most: int) -> dict[int, int]:
    """Bytes on disk of everything in a folder, by inode; stops counting above ``most``.

    Raises:
        ClosedError: A folder cannot be read.
    """
    found: dict[int, int] = {}
    total, todo = 0, [str(folder)]
    while todo and total <= most:
        for path, status, is_folder in _entries(todo.pop()):
            size = max(status.st_blocks * 512, _LEAST)
            total += size - found.get(status.st_ino, 0)
            found[status.st_ino] = size
            if total > most:
                break
            if is_folder:
                todo.append(path)
    return found


def _entries(folder: str) -> Iterator[tuple[str, os.stat_result, bool]]:
    """The entries of a folder; those that vanish meanwhile or cannot be read are left out."""
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                with suppress(FileNotFoundError):
                    status = entry.stat(follow_symlinks=False)
                    yield entry.path, status, entry.is_dir(follow_symlinks=False)
    except OSError as error:
        if error.errno in _CLOSED:
            raise ClosedError from None


def remove_folder(folder: Path) -> None:
    """Remove a folder that nobody writes to any more; files that cannot be removed stay.

    Nested folders are moved up before they are emptied, so that neither paths nor calls get deep.
    """
    names = count()
    with suppress(OSError):
        while _flatten(folder, names):
            continue
        folder.rmdir()


def _flatten(folder: Path, names: Iterator[int]) -> bool:
    """Remove the files of a folder and of its subfolders; returns whether there were subfolders."""
    inner = _without_files(folder)
    for path in inner:
        for deeper in _without_files(path):
            deeper.rename(_unused(folder, names))
        path.rmdir()
    return bool(inner)


def _without_files(folder: Path) -> list[Path]:
    """The subfolders of a folder, whose own files are removed."""
    folder.chmod(0o700)
    inner = []
    for path in list(folder.iterdir()):
        if path.is_dir() and not path.is_symlink():
            inner.append(path)
        else:
            path.unlink()
    return inner


def _unused(folder: Path, names: Iterator[int]) -> Path:
    return next(path for n in names if not (path := folder / f"{n}").exists())
