"""Parquet files as a task: a local copy of a Hugging Face image dataset, or a single file.

The files are read as they are, without a copy in the Hub's cache. Splits are told by the start of
the file name (``train-00000-of-00001.parquet``, ``test.parquet``) or by the folder
(``train/0000.parquet``); files without any split's name are the training split.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from archloop.errors import UsageError
from archloop.tasks.rows import encoded, open_rows
from archloop.tasks.source import EncodedImage, OpenedTask, fingerprint
from archloop.tasks.splits import split_role

if TYPE_CHECKING:
    import pyarrow.parquet as pq

_ROWS_AT_ONCE = 256
_SHARD = re.compile(r"[-_.]\d.*")
"""What follows the split's name in the name of a file."""


class ParquetSource:
    """A parquet file, or those below a folder; with several configurations, those of ``config``."""

    default_size = None

    def __init__(
        self,
        path: Path,
        name: str,
        title: str,
        *,
        config: str | None = None,
        label: str | None = None,
        notes: tuple[str, ...] = (),
    ) -> None:
        self._path = path
        self._config = config
        self._label = label
        self._notes = notes
        self.name = name
        self.title = title

    def key(self) -> str:
        """Names, sizes and times of all files, and which part of them is used."""
        root = self._path.parent if self._path.is_file() else self._path
        return f"{self._config} {self._label}\n{fingerprint(root, parquet_files(self._path))}"

    def open(self) -> OpenedTask:
        """Read the types and the label column.

        Raises:
            UsageError: No training split, damaged files, or no clear image and label column.
        """
        splits = {name: ParquetRows(files) for name, files in self._splits().items()}
        root = f"{self._path.parent if self._path.is_file() else self._path}/"
        return replace(open_rows(splits, self._label, str(self._path), self._notes), root=root)

    def _splits(self) -> dict[str, list[Path]]:
        root = self._path
        if self._config and (root / self._config).is_dir():
            root = root / self._config
        splits = parquet_splits(root)
        for name, files in splits.items():
            folders = sorted({_configuration(file, name) for file in files})
            if split_role(name) is not None and len(folders) > 1:
                listed = ", ".join(str(folder.relative_to(self._path)) for folder in folders)
                raise UsageError(
                    f"{self._path}: several configurations ({listed}); name one of these folders"
                )
        return splits


class ParquetRows:
    """The rows of the files of one split."""

    def __init__(self, files: list[Path]) -> None:
        self._files = files

    @property
    def features(self) -> dict[str, Any]:
        """The column types of the first file."""
        from datasets import Features

        return dict(Features.from_arrow_schema(_open(self._files[0]).schema_arrow))

    def column(self, name: str) -> list[Any]:
        """The values of a column."""
        values: list[Any] = []
        for file in self._files:
            source = _open(file)
            if name not in source.schema_arrow.names:
                raise UsageError(f"{file}: no column {name!r} as in the other files")
            with _readable(file):
                values += source.read(columns=[name]).column(0).to_pylist()
        return values

    def images(self, name: str) -> Iterator[tuple[EncodedImage | None, str]]:
        """The images of a column."""
        for file in self._files:
            row = 0
            with _readable(file):
                for batch in _open(file).iter_batches(_ROWS_AT_ONCE, columns=[name]):
                    for value in batch.column(0).to_pylist():
                        yield encoded(value, file.parent), f"{file} row {row}"
                        row += 1


def parquet_files(path: Path) -> list[Path]:
    """A file itself, or the parquet files below a folder, sorted."""
    return [path] if path.is_file() else sorted(path.rglob("*.parquet"))


def parquet_splits(root: Path) -> dict[str, list[Path]]:
    """The parquet files of each split, by its own name."""
    splits: dict[str, list[Path]] = {}
    unnamed: dict[str, list[Path]] = {}
    for file in parquet_files(root):
        stem = _SHARD.sub("", file.name.removesuffix(".parquet"))
        names = (stem, "" if file.parent == root else file.parent.name)
        own = next((name for name in names if split_role(name) is not None), None)
        if own is not None and root != file:
            splits.setdefault(own, []).append(file)
        else:
            unnamed.setdefault(stem or file.name, []).append(file)
    if not splits and unnamed:
        return {"train": [file for files in unnamed.values() for file in files]}
    return splits | unnamed


def _configuration(file: Path, split: str) -> Path:
    return file.parent.parent if file.parent.name == split else file.parent


def _open(file: Path) -> pq.ParquetFile:
    import pyarrow.parquet as pq

    with _readable(file):
        return pq.ParquetFile(file)


@contextmanager
def _readable(file: Path) -> Iterator[None]:
    """Turn pyarrow's errors for a damaged file, which come while pages are read, into one line."""
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise UsageError(f"{file}: not a readable parquet file ({error})") from None
