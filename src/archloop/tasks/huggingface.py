"""Image datasets of the Hugging Face Hub, through ``datasets``; fetched and decoded once."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit
from urllib.request import getproxies

from archloop.errors import UsageError
from archloop.tasks.columns import Columns, find_columns, number_labels
from archloop.tasks.parquet import TEST_SPLITS, encoded
from archloop.tasks.source import EncodedImage, OpenedTask, SourceSplit, TaskUnavailableError

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

_CONNECT_SECONDS = 5.0
"""Timeout of a first connection: without a network, the Hub's client would retry for half a
minute."""


class HubSource:
    """A dataset id, with a configuration (subset) where it has several."""

    default_size = None

    def __init__(
        self,
        id: str,
        name: str,
        title: str,
        *,
        config: str | None = None,
        label: str | None = None,
    ) -> None:
        self._id = id
        self._config = config
        self._label = label
        self.name = name
        self.title = title

    def key(self) -> str:
        """The id and configuration: a dataset is fetched once, whatever the Hub has later."""
        return f"{self._id} {self._config} {self._label}"

    def open(self) -> OpenedTask:
        """Fetch the dataset, or take it from the Hub's own cache.

        Raises:
            TaskUnavailableError: It does not exist or cannot be reached.
            UsageError: It has no training split, or no clear image and label column.
        """
        splits = self._load()
        if "train" not in splits:
            raise UsageError(f"{self._id}: no training split; it has {', '.join(splits)}")
        chosen = {"train": splits["train"]}
        for name in TEST_SPLITS:
            if name in splits:
                chosen["test"] = splits[name]
                break
        columns = find_columns(chosen["train"].features, self._label, self._id)
        values = {name: list(split[columns.label]) for name, split in chosen.items()}
        class_names, labels = number_labels(values, columns, self._id)

        def split(name: str) -> SourceSplit:
            data = chosen[name]
            return SourceSplit(name, labels[name], lambda: self._images(data, name, columns))

        return OpenedTask(class_names, split("train"), split("test") if "test" in chosen else None)

    def _images(
        self, data: Dataset, split: str, columns: Columns
    ) -> Iterator[tuple[EncodedImage, str]]:
        from datasets import Image

        raw = data.select_columns([columns.image]).cast_column(columns.image, Image(decode=False))
        for row, value in enumerate(raw):
            where = f"{self._id} {split} row {row}"
            yield encoded(value[columns.image], where), where

    def _load(self) -> DatasetDict:
        from datasets import load_dataset
        from datasets.exceptions import DatasetsError

        if not self._in_hub_cache() and not _hub_reachable():
            raise self._unavailable("the Hugging Face Hub cannot be reached")
        try:
            return load_dataset(self._id, self._config)
        # RuntimeError: the dataset is a script, which the library no longer runs.
        except (OSError, ValueError, RuntimeError, DatasetsError) as error:
            raise self._unavailable(str(error).splitlines()[0]) from None

    def _in_hub_cache(self) -> bool:
        from datasets import config

        # The cache changes the spelling of the part after the owner (``Fashion`` becomes
        # ``fashion``).
        owner = self._id.partition("/")[0]
        return any(Path(config.HF_DATASETS_CACHE).glob(f"{owner}___*"))

    def _unavailable(self, reason: str) -> TaskUnavailableError:
        folder = self.name.partition(":")[0]
        return TaskUnavailableError(
            f"task {self.name}: {reason}; put a copy of {self._id} (its parquet files) into "
            f"{folder}/ below the folder that ARCHLOOP_DATA names, or give a local folder as "
            "task.name"
        )


def _hub_reachable() -> bool:
    from datasets import config

    if config.HF_HUB_OFFLINE:
        return False
    if getproxies():
        return True  # with a proxy, only the Hub's client can tell whether it is reachable
    address = urlsplit(config.HF_ENDPOINT)
    port = address.port or (80 if address.scheme == "http" else 443)
    try:
        socket.create_connection((address.hostname or "", port), _CONNECT_SECONDS).close()
    except OSError:
        return False
    return True
