"""Accepted networks of a run in LEMUR's own layout, which its reader and nn-gpt take.

``nn/{name}.py`` and ``train/{task}_{dataset}_{metric}_{name}/{epoch}.json``: a list of trials with
sorted keys, as nn-gpt writes ``new_lemur`` (nn-dataset 2.1.0 has the same below ``stat/``). A name
is ``{prefix}-{md5 of the code without blanks}`` and holds no underscore, which separates the parts
of the statistics folder's name. A trial's ``transform`` names a file of LEMUR's folder
``transform``, which its reader opens; a transform that LEMUR lacks is written as
``transform/{name}.py``.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from archloop.config import ProtocolConfig
from archloop.errors import UsageError
from archloop.files import write_text
from archloop.store.run_dir import TASK_SIZE, Run
from archloop.types import Candidate

_TASK, _METRIC = "img-classification", "acc"
_PREFIX = re.compile(r"[A-Za-z0-9-]+")
"""Allowed prefixes; an underscore separates the parts of the statistics folder's name."""
_DATASETS = {"cifar10": "cifar-10", "cifar100": "cifar-100"}
"""Tasks that have another name in LEMUR."""
_SIZES = (32, 64, 128, 256, 299, 512)
"""Pixels a side that LEMUR has transforms for."""
_PADDING = 4
"""Of random crops at 32 pixels a side, as in :mod:`archloop.sandbox.feed.augmentation`."""


def lemur_name(prefix: str, code: str) -> str:
    """The name LEMUR gives to a network; names of equal code are equal."""
    return f"{prefix}-{hashlib.md5(''.join(code.split()).encode()).hexdigest()}"


def export_run(run: Run, out: Path, prefix: str = "archloop") -> list[str]:
    """Write the accepted networks of a run, and return their names.

    Raises:
        UsageError: The prefix has characters that are not allowed, or nothing was accepted.
    """
    if not _PREFIX.fullmatch(prefix):
        raise UsageError(f"--prefix {prefix!r}: expected letters, digits and '-'")
    accepted = [c for c in run.store.accepted() if c.code]
    if not accepted:
        raise UsageError(f"{run.paths.root}: nothing was accepted, so there is nothing to export")
    dataset = _dataset(run.task())
    transform, source = _transform(run)
    if source is not None:
        write_text(out / "transform" / f"{transform}.py", source)
    names = []
    for candidate in accepted:
        assert candidate.code is not None
        name = lemur_name(prefix, candidate.code)
        write_text(out / "nn" / f"{name}.py", candidate.code.rstrip("\n") + "\n")
        trials = [_trial(candidate, run.config.protocol, transform)]
        text = json.dumps(trials, indent=4, sort_keys=True) + "\n"
        write_text(out / "train" / f"{_TASK}_{dataset}_{_METRIC}_{name}" / "1.json", text)
        names.append(name)
    return names


def _dataset(task: str) -> str:
    return _DATASETS.get(task, Path(task).name.replace("_", "-"))


def _transform(run: Run) -> tuple[str, str | None]:
    """The name of the transform that matches the protocol, and its source if LEMUR lacks it."""
    augmentation = run.config.protocol.augmentation
    size = run.config.protocol.resize or run.config.task.image_size
    kind = "" if augmentation == "none" else f"_{augmentation}"
    name = "norm" + (f"_{size}" if size else "") + kind
    if augmentation != "crop_flip" and (size is None or size in _SIZES):
        return name, None
    steps = [f"Resize(({size}, {size}))"] if size else []
    if augmentation == "crop_flip":
        side = size or run.store.get_meta(TASK_SIZE, {"shape": (3, 32, 32)})["shape"][1]
        steps.append(f"RandomCrop({side}, padding={max(1, round(_PADDING * side / 32))})")
    steps += ["RandomHorizontalFlip()"] if kind else []
    steps += ["ToTensor()", "Normalize(*norm)"]
    body = "".join(f"        transforms.{step},\n" for step in steps)
    heading = "import torchvision.transforms as transforms\n\n\ndef transform(norm):\n"
    return name, f"{heading}    return transforms.Compose([\n{body}    ])\n"


def _trial(candidate: Candidate, protocol: ProtocolConfig, transform: str) -> dict[str, Any]:
    trial: dict[str, Any] = {
        "accuracy": candidate.first_epoch_accuracy,
        "batch": protocol.batch_size,
        "dropout": protocol.dropout,
        "lr": protocol.lr,
        "momentum": protocol.momentum,
        "transform": transform,
        "uid": hashlib.md5(f"{candidate.code_sha256} {candidate.protocol}".encode()).hexdigest(),
    }
    if candidate.train_seconds is not None:
        trial["duration"] = round(candidate.train_seconds * 1e9)
    return trial
