"""Tasks: the labelled images that networks are trained and measured on.

A new kind of source is a class with the members of :class:`~archloop.tasks.source.TaskSource` in a
file of its own, and a line in :func:`open_source`. Class count, shape and normalisation are always
read from the data.
"""

from __future__ import annotations

import logging
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from archloop.config import ProtocolConfig, TaskConfig
from archloop.errors import UsageError
from archloop.tasks.arrays import TaskArrays, load_arrays
from archloop.tasks.census import class_counts, shown
from archloop.tasks.digits import DigitsSource
from archloop.tasks.huggingface import HubSource
from archloop.tasks.local import EXPECTED, FILE_SUFFIXES, open_local, title_of
from archloop.tasks.source import TaskSource, TaskUnavailableError
from archloop.tasks.split import SPLIT_SEED, split_task
from archloop.types import TaskData, TaskInfo

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
    summary = _summary(arrays, data.info, protocol.validation == "test")
    logger.info("%s", summary)
    for one in (*arrays.census.skipped, *arrays.census.constant):
        logger.debug("task %s: %s: %s", source.title, one.reason, shown(one.where))
    return replace(data, info=replace(data.info, summary=summary))


def _summary(arrays: TaskArrays, info: TaskInfo, measured_on_test: bool) -> str:
    """Which images are used, and what is not, on one line."""
    labels = arrays.train_labels.tolist()
    line = (
        f"task {info.title}: {info.n_train} training and {info.n_validation} validation images of "
        f"{'x'.join(map(str, info.shape))}, out of {len(labels)} in {info.classes} classes "
        f"({class_counts(info.class_names, labels)})"
    )
    if arrays.test_labels is not None:
        used = "" if measured_on_test else ", which protocol.validation does not use"
        line += f" and {len(arrays.test_labels)} of the test split{used}"
    found = arrays.census.line()
    return shown(line + (f"; {found}" if found else ""))


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
            return open_local(copy, name, named.title, config=named.config, label=named.label)
        return HubSource(named.hub_id, name, named.title, config=named.config, label=named.label)
    if copy:
        return open_local(copy, name, title_of(copy), config=config)
    path = Path(name).expanduser()
    if name and (path.exists() or path.is_symlink()):
        return open_local(path, title_of(path), title_of(path))
    if match and not name.startswith(".") and path.suffix.lower() not in FILE_SUFFIXES:
        return HubSource(base, name, Path(base).name, config=config)
    raise UsageError(
        f"task.name = {name!r}: no such file or folder ({path.absolute()}) or task; allowed: "
        f"{', '.join(task_names())}, a Hugging Face dataset id (owner/name), or {EXPECTED}"
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
    return path if name and path.exists() else None
