"""What lies below a folder: every entry is either a file to look at or is counted with a reason."""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from archloop.errors import UsageError

IMAGE_SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}
)
"""File name endings of images."""

_LEFT_BY_SYSTEMS = frozenset({"__macosx", "@eadir", "$recycle.bin", "lost+found"})
"""Folders of archives and disks that hold nothing of a data set's."""


@dataclass(frozen=True)
class Entry:
    """A file, or something else with the reason why it is none."""

    path: Path
    reason: str | None = None
    """``None``: a file of any kind."""


def is_hidden(name: str) -> bool:
    """Whether a file or folder is meant to be overlooked."""
    return name.startswith(".") or name.casefold() in _LEFT_BY_SYSTEMS


def is_image(file: Path) -> bool:
    """Whether a file is named like an image."""
    return file.suffix.lower() in IMAGE_SUFFIXES


def subfolders(root: Path) -> list[Path]:
    """The folders in a folder, sorted, without the hidden ones."""
    return sorted(path for path in _listed(root) if path.is_dir() and not is_hidden(path.name))


def walk(root: Path) -> list[Entry]:
    """Everything below a folder, sorted by path; links to folders are followed.

    Raises:
        UsageError: A folder cannot be read.
    """
    return sorted(_walk(root, (os.path.realpath(root),)), key=lambda entry: entry.path)


def _walk(root: Path, above: tuple[str, ...]) -> Iterator[Entry]:
    for path in _listed(root):
        if is_hidden(path.name):
            yield Entry(path, "hidden")
            continue
        try:
            mode = path.stat().st_mode
        except OSError:
            yield Entry(path, "link that leads nowhere" if path.is_symlink() else "unreadable")
            continue
        if stat.S_ISDIR(mode):
            real = os.path.realpath(path)
            if real in above or Path(above[-1]).is_relative_to(real):
                yield Entry(path, "link that leads back")
            else:
                yield from _walk(path, (*above, real))
        else:
            yield Entry(path, None if stat.S_ISREG(mode) else "not a file")


def _listed(root: Path) -> list[Path]:
    try:
        return list(root.iterdir())
    except OSError as error:
        raise UsageError(f"{root}: cannot be read ({error.strerror})") from None


def holds(root: Path) -> str:
    """What is in a folder, for an error: its folders, and its files by ending."""
    entries = [path for path in _listed(root) if not is_hidden(path.name)]
    folders = sorted(f"{path.name}/" for path in entries if path.is_dir())
    endings = Counter(path.suffix.lower() or "no ending" for path in entries if not path.is_dir())
    files = [f"{n} of {ending}" for ending, n in endings.most_common(5)]
    parts = []
    if folders:
        more = f" and {len(folders) - 5} more" if len(folders) > 5 else ""
        parts.append(f"the folders {', '.join(folders[:5])}{more}")
    if files:
        parts.append(f"files ({', '.join(files)})")
    return " and ".join(parts) or "nothing"
