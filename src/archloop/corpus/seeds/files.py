"""Seed networks from a folder of ``.py`` files, or from a JSONL file of chat rows."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from archloop.code.chat import extract_code
from archloop.corpus.pairs import pair_from_json, read_rows
from archloop.corpus.seeds.source import SeedNetwork
from archloop.errors import UsageError
from archloop.files import read_regular


class DirectorySource:
    """Every ``.py`` file below a folder; the family is the name of its parent folder."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._files = sorted(path.rglob("*.py")) if path.is_dir() else []
        if not self._files:
            raise UsageError(f"seeds.path: {path} has no .py files")

    @property
    def digest(self) -> str:
        """SHA-256 over names and contents."""
        return _digest(str(f.relative_to(self._path)) + "\0" + _source(f) for f in self._files)

    def networks(self) -> Iterator[SeedNetwork]:
        """Every file, in path order."""
        for file in self._files:
            name = file.relative_to(self._path).with_suffix("").as_posix()
            yield SeedNetwork(name, file.parent.name, _source(file), None)


class JsonlSource:
    """The assistants' code blocks of a chat corpus."""

    def __init__(self, path: Path) -> None:
        self._path = path
        if not path.is_file():
            raise UsageError(f"seeds.path: {path} is no file")

    @property
    def digest(self) -> str:
        """SHA-256 of the file."""
        return _digest([_read(self._path)])

    def networks(self) -> Iterator[SeedNetwork]:
        """Every row with a code block, in file order; different networks get different names.

        An accuracy that is no number counts as not measured.
        """
        codes: dict[str, str] = {}
        for number, pair in enumerate(read_rows(self._path, pair_from_json), 1):
            if code := extract_code(pair.code):
                name, family = pair.id, str(pair.meta.get("family", ""))
                while codes.setdefault(name, code) != code:
                    name = f"{name}-{number}"
                yield SeedNetwork(name, family, code, pair.first_epoch_accuracy)


def _source(file: Path) -> str:
    return read_regular(file).decode("utf-8", "replace")


def _read(file: Path) -> str:
    return file.read_text("utf-8", errors="replace")


def _digest(texts: Iterator[str] | list[str]) -> str:
    sha = hashlib.sha256()
    for text in texts:
        sha.update(text.encode("utf-8", "replace") + b"\0")
    return sha.hexdigest()
