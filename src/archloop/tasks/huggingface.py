"""Image datasets through ``datasets``: those of the Hugging Face Hub, and saved folders."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from archloop.errors import UsageError
from archloop.tasks.rows import encoded, open_rows
from archloop.tasks.source import EncodedImage, OpenedTask, TaskUnavailableError, fingerprint

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
        splits = {name: _DatasetRows(data, self._id, name) for name, data in self._load().items()}
        return open_rows(splits, self._label, self._id)

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


class SavedSource:
    """A folder that ``save_to_disk`` wrote, of a ``Dataset`` or a ``DatasetDict``."""

    default_size = None

    def __init__(self, root: Path, name: str, title: str) -> None:
        self._root = root
        self.name = name
        self.title = title

    def key(self) -> str:
        """Names, sizes and times of all files."""
        files = sorted(path for path in self._root.rglob("*") if path.is_file())
        return fingerprint(self._root, files)

    def open(self) -> OpenedTask:
        """Map the files; a ``Dataset`` without splits is the training split.

        Raises:
            UsageError: A file is damaged, or there is no clear training split, image and label.
        """
        import pyarrow as pa
        from datasets import DatasetDict, load_from_disk
        from datasets.exceptions import DatasetsError

        try:
            data = load_from_disk(str(self._root))
        except (
            OSError,
            ValueError,
            TypeError,
            KeyError,
            pa.ArrowException,
            DatasetsError,
        ) as error:
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise UsageError(f"{self._root}: not a readable saved dataset ({reason})") from None
        splits = dict(data) if isinstance(data, DatasetDict) else {"train": data}
        found = {
            str(name): _DatasetRows(rows, str(self._root), str(name))
            for name, rows in splits.items()
        }
        return open_rows(found, None, str(self._root))


def is_saved(root: Path) -> bool:
    """Whether ``save_to_disk`` wrote a folder."""
    return (root / "dataset_dict.json").is_file() or (root / "state.json").is_file()


class _DatasetRows:
    """The rows of a ``Dataset``."""

    def __init__(self, data: Dataset, where: str, split: str) -> None:
        self._data = data
        self._where = f"{where} {split}"
        self._base = Path(where)

    @property
    def features(self) -> Mapping[str, Any]:
        """The column types."""
        columns: Mapping[str, Any] = self._data.features
        return columns

    def column(self, name: str) -> list[Any]:
        """The values of a column."""
        if name not in self._data.column_names:
            raise UsageError(f"{self._where}: no column {name!r}")
        return list(self._data[name])

    def images(self, name: str) -> Iterator[tuple[EncodedImage | None, str]]:
        """The images of a column."""
        from datasets import Image

        raw = self._data.select_columns([name])
        if type(raw.features[name]).__name__ == "Image":
            raw = raw.cast_column(name, Image(decode=False))
        for row, value in enumerate(raw):
            yield encoded(value[name], self._base), f"{self._where} row {row}"


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
