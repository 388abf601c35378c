"""A local copy of a Hugging Face image dataset: parquet files, as the Hub lays them out.

The files are read as they are, without a copy in the Hub's cache. Splits are told by the start of
the file name (``train-00000-of-00001.parquet``, ``test.parquet``) or by the folder
(``train/0000.parquet``).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from archloop.errors import UsageError
from archloop.tasks.columns import Columns, find_columns, number_labels
from archloop.tasks.source import EncodedImage, OpenedTask, SourceSplit, fingerprint

if TYPE_CHECKING:
    import pyarrow.parquet as pq

TEST_SPLITS = ("test", "validation", "valid", "val")
"""Names of the test split of ``protocol.validation = "test"``; the first that exists is used."""

_ROWS_AT_ONCE = 256


class ParquetSource:
    """The parquet files below a folder; with several configurations, those of ``config``."""

    default_size = None

    def __init__(
        self,
        root: Path,
        name: str,
        title: str,
        *,
        config: str | None = None,
        label: str | None = None,
    ) -> None:
        self._root = root
        self._config = config
        self._label = label
        self.name = name
        self.title = title

    def key(self) -> str:
        """Names, sizes and times of all files, and which part of them is used."""
        files = fingerprint(self._root, sorted(self._root.rglob("*.parquet")))
        return f"{self._config} {self._label}\n{files}"

    def open(self) -> OpenedTask:
        """Read the types and the label column.

        Raises:
            UsageError: No training split, damaged files, or no clear image and label column.
        """
        splits = self._splits()
        if "train" not in splits:
            raise UsageError(f"{self._root}: no training split; expected train-*.parquet")
        chosen = {"train": splits["train"]}
        for name in TEST_SPLITS:
            if name in splits:
                chosen["test"] = splits[name]
                break
        where = str(self._root)
        features = _features(chosen["train"][0])
        columns = find_columns(features, self._label, where)
        values = {name: _column(files, columns.label) for name, files in chosen.items()}
        class_names, labels = number_labels(values, columns, where)

        def split(name: str) -> SourceSplit:
            files = chosen[name]
            return SourceSplit(name, labels[name], lambda: _images(files, columns))

        return OpenedTask(class_names, split("train"), split("test") if "test" in chosen else None)

    def _splits(self) -> dict[str, list[Path]]:
        root = self._root
        if self._config and (root / self._config).is_dir():
            root = root / self._config
        splits: dict[str, list[Path]] = {}
        for file in sorted(root.rglob("*.parquet")):
            names = (file.name.partition("-")[0].removesuffix(".parquet"), file.parent.name)
            for name in names:
                if name in ("train", *TEST_SPLITS):
                    splits.setdefault(name, []).append(file)
                    break
        for name, files in splits.items():
            folders = sorted({_configuration(file, name) for file in files})
            if len(folders) > 1:
                listed = ", ".join(str(folder.relative_to(self._root)) for folder in folders)
                raise UsageError(
                    f"{self._root}: several configurations ({listed}); name one of these folders"
                )
        return splits


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


def _features(file: Path) -> dict[str, Any]:
    from datasets import Features

    return dict(Features.from_arrow_schema(_open(file).schema_arrow))


def _column(files: list[Path], name: str) -> list[Any]:
    values: list[Any] = []
    for file in files:
        source = _open(file)
        if name not in source.schema_arrow.names:
            raise UsageError(f"{file}: no column {name!r} as in the other files")
        with _readable(file):
            values += source.read(columns=[name]).column(0).to_pylist()
    return values


def _images(files: list[Path], columns: Columns) -> Iterator[tuple[EncodedImage, str]]:
    for file in files:
        row = 0
        with _readable(file):
            for batch in _open(file).iter_batches(_ROWS_AT_ONCE, columns=[columns.image]):
                for value in batch.column(0).to_pylist():
                    yield encoded(value, f"{file} row {row}"), f"{file} row {row}"
                    row += 1


def encoded(value: Any, where: str) -> EncodedImage:
    """The image of a row, which holds its bytes or the path of its file.

    Raises:
        UsageError: It holds neither.
    """
    if value and value.get("bytes"):
        content: bytes = value["bytes"]
        return content
    if value and value.get("path") and Path(value["path"]).is_file():
        return Path(value["path"])
    raise UsageError(f"{where}: no image; remove the row")
