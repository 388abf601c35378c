"""What the project keeps in its cache, and how to clear it; all of it is made again when needed.

Only what archloop writes is listed and removed: ``ARCHLOOP_CACHE`` may name a folder with other
files, and the Hugging Face hub's cache belongs to other programs too.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from archloop.errors import UsageError
from archloop.machine.downloads import LOCKS, cache_dir

KINDS = {
    "wheels": "downloads from the package index",
    "models": "unpacked LLMs",
    "openvino": "converted LLMs",
    "tasks": "decoded images",
    "corpora": "seed corpora",
    "graphs": "traced graphs of seed networks",
}
"""The folders in the cache, and what is in them."""
_MERGED = ".merged-*"
"""Converted LLMs with an adapter, in the cache itself; only a killed process leaves one."""


@dataclass(frozen=True)
class Entry:
    """A file or folder of the cache."""

    path: Path
    kind: str
    size: int
    """Bytes of all files in it; what a link leads to does not count."""


def entries() -> list[Entry]:
    """Everything in the cache, by kind and name; a cache that does not exist has nothing."""
    cache = cache_dir()
    found = [
        Entry(path, kind, _size(path))
        for folder, kind in KINDS.items()
        for path in sorted(_children(cache / folder))
    ]
    left = [Entry(path, "leftovers", _size(path)) for path in sorted(cache.glob(_MERGED))]
    return found + left


def clear() -> list[Entry]:
    """Remove everything that :func:`entries` lists, and return it.

    Raises:
        UsageError: A process is writing to the cache. Nothing is removed then.
        OSError: Something cannot be removed; the message names it.
    """
    with ExitStack() as held:
        for file in sorted((cache_dir() / LOCKS).glob("*.lock")):
            try:
                held.enter_context(FileLock(file, timeout=0))
            except Timeout:
                raise UsageError(
                    f"{cache_dir()}: another process is writing {file.stem}; "
                    "clear the cache when it is done"
                ) from None
        removed = entries()
        for entry in removed:
            if entry.path.is_dir() and not entry.path.is_symlink():
                shutil.rmtree(entry.path)
            else:
                entry.path.unlink(missing_ok=True)
    return removed


def _children(folder: Path) -> Iterator[Path]:
    """What is in a folder, hidden leftovers of killed processes included."""
    if folder.is_dir():
        yield from folder.iterdir()


def _size(path: Path) -> int:
    """Bytes of a file, or of all files in a folder; what vanishes meanwhile counts nothing."""
    total = 0
    folders = [path]
    try:
        if path.is_symlink() or not path.is_dir():
            return path.lstat().st_size
        while folders:
            with os.scandir(folders.pop()) as found:
                for entry in found:
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(Path(entry.path))
                    else:
                        total += entry.stat(follow_symlinks=False).st_size
    except FileNotFoundError:
        pass
    return total
