"""The LEMUR Neural Network Dataset, read from its pinned wheel as text; never imported."""

from __future__ import annotations

import json
import logging
import zipfile
from collections.abc import Iterator
from pathlib import Path

from archloop.assets import LEMUR_WHEEL, fetch_wheel
from archloop.seeds.source import SeedNetwork

logger = logging.getLogger(__name__)

_CODE = "ab/nn/nn/"
_STATS = "ab/nn/stat/train/img-classification_cifar-10_acc_"


class LemurSource:
    """All networks of the archive with their best recorded first-epoch CIFAR-10 accuracy."""

    def __init__(self, wheel: Path | None = None) -> None:
        """Read ``wheel``, or the pinned one, downloaded on first use."""
        self._wheel = wheel or fetch_wheel(LEMUR_WHEEL)

    @property
    def digest(self) -> str:
        """What identifies the content: the pinned SHA-256."""
        return LEMUR_WHEEL.sha256

    def networks(self) -> Iterator[SeedNetwork]:
        """Every network file, in name order."""
        with zipfile.ZipFile(self._wheel) as archive:
            names = archive.namelist()
            accuracies = dict(_first_epoch_accuracies(archive, names))
            for member in sorted(names):
                if not (member.startswith(_CODE) and member.endswith(".py")):
                    continue
                name = Path(member).stem
                if name == "__init__":
                    continue
                code = archive.read(member).decode("utf-8", "replace")
                yield SeedNetwork(name, name.partition("-")[0], code, accuracies.get(name))

    def n_records(self) -> int:
        """CIFAR-10 training records in the archive, of all epochs."""
        with zipfile.ZipFile(self._wheel) as archive:
            members = [n for n in archive.namelist() if n.startswith(_STATS)]
            return sum(len(json.loads(archive.read(n))) for n in members if n.endswith(".json"))


def _first_epoch_accuracies(
    archive: zipfile.ZipFile, names: list[str]
) -> Iterator[tuple[str, float]]:
    for member in names:
        if member.startswith(_STATS) and member.endswith("/1.json"):
            trials = json.loads(archive.read(member))
            values = [t["accuracy"] for t in trials if isinstance(t.get("accuracy"), int | float)]
            if values:
                yield member[len(_STATS) :].partition("/")[0], max(values)
