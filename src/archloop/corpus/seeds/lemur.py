"""The LEMUR Neural Network Dataset as text, from its wheel or a folder; never imported.

The layout is that of nn-dataset 2.1.0: ``nn/{name}.py`` and
``stat/train/{task}_{dataset}_{metric}_{name}/{epoch}.json``, below ``ab/nn/`` in the wheel; what
``archloop corpus export`` writes (``train/`` without ``stat/``, as nn-gpt does) is read too.
"""

from __future__ import annotations

import hashlib
import json
import math
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from archloop.corpus.seeds.source import SeedNetwork
from archloop.errors import UsageError
from archloop.files import read_regular
from archloop.machine.downloads import LEMUR_WHEEL, fetch_wheel, sha256_of

_TRIALS = "train/img-classification_cifar-10_acc_"
_FIRST_EPOCH = "1"
_MOST_BYTES = 64 << 20
"""Largest file of a folder that is read."""


class LemurSource:
    """All networks of a release with their best recorded first-epoch CIFAR-10 accuracy.

    Args:
        path: A wheel, or a folder in the same layout; ``None``: the pinned wheel, downloaded on
            first use.

    Raises:
        UsageError: It is no wheel or folder, or there are no networks.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._pinned = path is None
        self._path = path or fetch_wheel(LEMUR_WHEEL)
        if not self._path.exists():
            raise UsageError(f"seeds.path: {self._path} is no folder or wheel of LEMUR")
        # Listing the members of a release takes a second, so the archive stays open for all
        # threads.
        self._archive = _opened(self._path) if self._path.is_file() else None
        self._members = self._list()
        self._networks = _networks(self._members)
        if not self._networks:
            raise UsageError(f"seeds.path: {self._path} has no nn/NAME.py as LEMUR has")

    @property
    def digest(self) -> str:
        """Identifies the content: the pinned SHA-256, or a SHA-256 over the files."""
        if self._pinned:
            return LEMUR_WHEEL.sha256
        if self._path.is_file():
            return sha256_of(self._path)
        sha = hashlib.sha256()
        for name, text in self._texts(self._members):
            sha.update(f"{name}\0{text}\0".encode("utf-8", "replace"))
        return sha.hexdigest()

    def networks(self) -> Iterator[SeedNetwork]:
        """Every network file, in name order."""
        accuracies = dict(self._first_epoch_accuracies())
        for member, code in self._texts(self._networks):
            name = Path(member).stem
            yield SeedNetwork(name, name.partition("-")[0], code, accuracies.get(name))

    def n_records(self) -> int:
        """CIFAR-10 training records, of all epochs."""
        return sum(len(_read_trials(*found)) for found in self._texts(self._trials()))

    def _list(self) -> list[str]:
        if self._archive is not None:
            return sorted(self._archive.namelist())
        return sorted(
            file.relative_to(self._path).as_posix()
            for kind in ("*.py", "*.json")
            for file in self._path.rglob(kind)
        )

    def _texts(self, members: list[str]) -> Iterator[tuple[str, str]]:
        for name in members:
            try:
                if self._archive is not None:
                    data = self._archive.read(name)
                else:
                    data = read_regular(self._path / name, _MOST_BYTES)
            except (zipfile.BadZipFile, zlib.error, OSError) as error:
                raise UsageError(f"seeds.path: {name} cannot be read: {error}") from None
            yield name, data.decode("utf-8", "replace")

    def _trials(self) -> list[str]:
        return [n for n in self._members if f"/{n}".find(f"/{_TRIALS}") >= 0 and n[-5:] == ".json"]

    def _first_epoch_accuracies(self) -> Iterator[tuple[str, float]]:
        first = [n for n in self._trials() if Path(n).stem == _FIRST_EPOCH]
        for member, text in self._texts(first):
            recorded = [trial.get("accuracy") for trial in _read_trials(member, text)]
            values = [v for v in recorded if isinstance(v, int | float) and math.isfinite(v)]
            if values:
                yield Path(member).parent.name.split("_", 3)[3], max(values)


def _read_trials(member: str, text: str) -> list[dict[str, Any]]:
    try:
        trials = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"seeds.path: {member} is no JSON: {error}") from None
    if not isinstance(trials, list) or not all(isinstance(trial, dict) for trial in trials):
        raise UsageError(f"seeds.path: {member} is no list of trials as LEMUR has")
    return trials


def _opened(wheel: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(wheel)
    except (zipfile.BadZipFile, OSError) as error:
        reason = f"seeds.path: {wheel} is no wheel of LEMUR: {error}"
        raise UsageError(reason) from None


def _networks(members: list[str]) -> list[str]:
    """Those of the folder ``nn`` in the package ``nn``, else of any folder ``nn``."""
    paths = [Path(m) for m in members if m.endswith(".py") and not m.endswith("/__init__.py")]
    found = [p for p in paths if p.parent.name == "nn"]
    found = [p for p in found if p.parent.parent.name == "nn"] or found
    names = Counter(p.stem for p in found)
    if twice := [p.as_posix() for p in found if names[p.stem] > 1]:
        raise UsageError(f"seeds.path: {twice[0]} and {twice[1]}: LEMUR has one network of a name")
    return [p.as_posix() for p in found]
