"""Tasks: the labelled images that networks are trained and measured on.

A new kind of source is a class with the members of :class:`~archloop.tasks.source.TaskSource` in a
file of its own, and a line in :func:`open_source`. Class count, shape and normalisation are always
read from the data.
"""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path
from typing import NamedTuple

from archloop.config import ProtocolConfig, TaskConfig
from archloop.errors import UsageError
from archloop.tasks.arrays import load_arrays
from archloop.tasks.digits import DigitsSource
from archloop.tasks.folder import FolderSource
from archloop.tasks.huggingface import HubSource
from archloop.tasks.parquet import ParquetSource
from archloop.tasks.source import TaskSource, TaskUnavailableError
from archloop.tasks.split import SPLIT_SEED, split_task
from archloop.types import TaskData

__all__ = ["TaskSource", "TaskUnavailableError", "load_task", "open_source", "task_names"]

logger = logging.getLogger(__name__)


class _Named(NamedTuple):
    title: str
    hub_id: str
    config: str | None
    label: str | None


_NAMED = {
    "cifar10": _Named("CIFAR-10", "uoft-cs/cifar10", None, "label"),
    "cifar100": _Named("CIFAR-100", "uoft-cs/cifar100", None, "fine_label"),
    "svhn": _Named("SVHN", "ufldl-stanford/svhn", "cropped_digits", "label"),
    "mnist": _Named("MNIST", "ylecun/mnist", None, "label"),
}

_HUB_ID = re.compile(r"(?P<id>[\w.-]+/[\w.-]+)(?::(?P<config>[\w.-]+))?")


def task_names() -> list[str]:
    """The task names that are not paths or Hugging Face ids."""
    return ["auto", *_NAMED, "digits"]


def load_task(config: TaskConfig, protocol: ProtocolConfig, *, seed: int = SPLIT_SEED) -> TaskData:
    """Load a task and split it as the protocol asks.

    Decoded images are cached, so all but the first load take well under a second.

    Args:
        config: Which images. ``auto`` is CIFAR-10 where it can be had, else digits; the returned
            ``info.name`` says which.
        protocol: ``validation``, ``train_images`` and ``validation_images`` are used.
        seed: Seed of the split. Keep the default: runs are comparable only on the same split.

    Raises:
        UsageError: Naming the file, row or class that is wrong, and what would be right.
        TaskUnavailableError: The data is neither here nor reachable; says how to provide it.
    """
    if config.name == "auto":
        return _load_auto(config, protocol, seed)
    source = open_source(config.name)
    arrays = load_arrays(source, config.image_size)
    data = split_task(arrays, protocol, name=source.name, title=source.title, seed=seed)
    logger.info(
        "task %s: %d classes, %d training and %d validation images of %s",
        source.title,
        data.info.classes,
        data.info.n_train,
        data.info.n_validation,
        "x".join(map(str, data.info.shape)),
    )
    return data


def open_source(name: str) -> TaskSource:
    """The source of a task; a copy in the folder ``ARCHLOOP_DATA`` comes first.

    Raises:
        UsageError: No task or folder has this name.
    """
    if name == "digits":
        return DigitsSource()
    match = _HUB_ID.fullmatch(name)
    base, config = (match["id"], match["config"]) if match else (name, None)
    copy = _local_copy(base)
    if named := _NAMED.get(name):
        if copy:
            return _local(copy, name, named)
        return HubSource(named.hub_id, name, named.title, config=named.config, label=named.label)
    if copy:
        return _local(copy, name, _Named(Path(base).name, base, config, None))
    path = Path(name).expanduser()
    if name and path.is_dir():
        title = path.resolve().name
        return _local(path, title, _Named(title, title, None, None))
    if match and not name.startswith("."):
        return HubSource(base, name, Path(base).name, config=config)
    raise UsageError(
        f"task.name = {name!r}: no such folder ({path.absolute()}) or task; allowed: "
        f"{', '.join(task_names())}, a Hugging Face dataset id (owner/name), or a folder of class "
        "folders"
    )


def _load_auto(config: TaskConfig, protocol: ProtocolConfig, seed: int) -> TaskData:
    try:
        return load_task(config.model_copy(update={"name": "cifar10"}), protocol, seed=seed)
    except TaskUnavailableError as error:
        logger.info("task auto: CIFAR-10 is not available, so digits (%s)", error)
    return load_task(config.model_copy(update={"name": "digits"}), protocol, seed=seed)


def _local_copy(name: str) -> Path | None:
    root = os.environ.get("ARCHLOOP_DATA")
    if not root or Path(name).is_absolute() or ".." in Path(name).parts:
        return None
    path = Path(root).expanduser() / name
    return path if name and path.is_dir() else None


def _local(path: Path, name: str, like: _Named) -> TaskSource:
    if next(path.rglob("*.parquet"), None) is None:
        return FolderSource(path, name, like.title)
    return ParquetSource(path, name, like.title, config=like.config, label=like.label)
