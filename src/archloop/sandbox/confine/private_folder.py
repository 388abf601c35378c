"""A candidate's private folder: what lies in it, and its end, whatever was made of it."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import suppress
from itertools import count
from pathlib import Path

_LEAST = 4096
"""Bytes that anything counts as: empty files use up a disk's table of them."""
_CLOSED = (errno.EACCES, errno.EPERM, errno.ENAMETOOLONG)


class ClosedError(Exception):
    """A folder that cannot be looked into: closed to its owner, or deeper than a path is long."""


def bytes_by_inode(folder: Path, most: int) -> dict[int, int]:
    """Bytes on disk of all that lies in a folder, by inode; not all, if that is above ``most``.

    Raises:
        ClosedError: See there.
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
    """What is in a folder; what vanishes meanwhile, or the disk does not give, is left out."""
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
    """Remove a folder that nobody writes to any more, as well as it goes.

    Nested folders are moved up before they are emptied, so that neither paths nor calls get deep.
    """
    names = count()
    with suppress(OSError):
        while _flatten(folder, names):
            continue
        folder.rmdir()


def _flatten(folder: Path, names: Iterator[int]) -> bool:
    """Remove the files of a folder and those of its folders; whether any folder was there."""
    inner = _without_files(folder)
    for path in inner:
        for deeper in _without_files(path):
            deeper.rename(_unused(folder, names))
        path.rmdir()
    return bool(inner)


def _without_files(folder: Path) -> list[Path]:
    """The folders in a folder, whose files are removed."""
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
