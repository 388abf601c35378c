"""A table of paths and labels as a task: CSV, TSV, JSON lines, or a parquet file without images."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from archloop.errors import UsageError
from archloop.tasks.columns import Classes
from archloop.tasks.source import EncodedImage, OpenedTask, SourceSplit, fingerprint
from archloop.tasks.splits import by_role, first_usable, usual_names
from archloop.tasks.walk import is_hidden, is_image, walk

TABLE_SUFFIXES = frozenset({".csv", ".tsv", ".jsonl"})
PATH_COLUMNS = [
    "file_name",
    "filename",
    "file",
    "path",
    "file_path",
    "filepath",
    "image_path",
    "image_file",
    "image_name",
    "image",
    "img",
    "img_path",
    "image_id",
    "img_id",
    "id_code",
]
LABEL_COLUMNS = [
    "label",
    "labels",
    "class",
    "class_name",
    "classname",
    "category",
    "target",
    "y",
    "class_id",
]
_SPLIT_COLUMNS = ("split", "set", "subset", "partition")
EXPECTED = (
    f"a column of paths ({', '.join(PATH_COLUMNS[:5])}, image ...) and one of labels "
    f"({', '.join(LABEL_COLUMNS[:5])} ...)"
)


@dataclass(frozen=True)
class Table:
    """The rows of one file, all values as text."""

    file: Path
    header: tuple[str, ...]
    rows: list[dict[str, str]]

    @cached_property
    def path_column(self) -> str | None:
        """The column that names the images' files."""
        return self._first(PATH_COLUMNS)

    @cached_property
    def label_column(self) -> str | None:
        """The column of the labels."""
        return self._first(LABEL_COLUMNS)

    @cached_property
    def split_column(self) -> str | None:
        """The column that says which split a row belongs to, where there is one."""
        return self._first(_SPLIT_COLUMNS)

    @property
    def is_labelled(self) -> bool:
        """Whether it has paths and labels."""
        return self.path_column is not None and self.label_column is not None

    def _first(self, usual: Sequence[str]) -> str | None:
        plain = {re.sub(r"[\s\-.]+", "_", name.strip().casefold()): name for name in self.header}
        return next((plain[name] for name in usual if name in plain), None)


class TableSource:
    """Images whose labels are in tables, scaled to 32x32 unless ``task.image_size`` says so."""

    default_size = 32

    def __init__(
        self,
        root: Path,
        tables: dict[str, Path],
        name: str,
        title: str,
        notes: tuple[str, ...] = (),
    ) -> None:
        """Name the tables.

        Args:
            root: The folder that is the task, or the table alone.
            tables: The table of each split; the rows of a single one may name their split.
            name: As in the configuration.
            title: As written in a prompt.
            notes: What a reader of the summary should know of the choice.
        """
        self._folder = root if root.is_dir() else root.parent
        self._is_folder = root.is_dir()
        self._tables = tables
        self._notes = notes
        self.name = name
        self.title = title

    def key(self) -> str:
        """Names, sizes and times of the tables, of their images and of what is beside them."""
        files = list(self._tables.values())
        if self._is_folder:
            files += [entry.path for entry in walk(self._folder)]
        finder = _Finder(self._folder)
        for table in map(_labelled, self._tables.values()):
            files += filter(None, (finder.find(table, row) for row in table.rows))
        return fingerprint(self._folder, list(dict.fromkeys(files)))

    def open(self) -> OpenedTask:
        """Read the tables and find the images.

        Raises:
            UsageError: A table is damaged or lacks a column, or no training split is named.
        """
        splits: dict[str, list[tuple[Table, dict[str, str]]]] = {}
        for name, file in self._tables.items():
            table = _labelled(file)
            for row in table.rows:
                own = name
                if table.split_column and len(self._tables) == 1:
                    own = row[table.split_column]
                splits.setdefault(own, []).append((table, row))
        listed = " and ".join(str(file) for file in self._tables.values())
        if not splits:
            raise UsageError(f"{listed}: no rows")
        train, tests, rest = by_role(splits, listed)
        if train is None or rest:
            wrong = (
                f"split {rest[0]!r} is unknown" if rest else f"no training split, but {tests[0]}"
            )
            raise UsageError(f"{listed}: {wrong}; expected {usual_names()}")
        values = {name: _labels(rows) for name, rows in splits.items()}
        whole = all(re.fullmatch(r"-?\d+", value or "") for value in values[train])
        as_read = {
            name: [int(v) if whole and v and re.fullmatch(r"-?\d+", v) else v for v in own]
            for name, own in values.items()
        }
        finder = _Finder(self._folder)
        classes = Classes.of(as_read[train], None, f"{listed}: {train}")

        def split(kind: str, name: str) -> SourceSplit:
            labels = classes.labels(as_read[name], name)
            rows = splits[name]
            found = [finder.find(table, row) for table, row in rows]

            def images() -> Iterator[tuple[EncodedImage | None, str]]:
                for (table, row), file in zip(rows, found, strict=True):
                    yield file, row[table.path_column or ""]

            return SourceSplit(kind, labels, images, name)

        first = split("train", train)
        test, lines = first_usable(
            ((name, partial(split, "test", name)) for name in tests), len(classes.names)
        )
        notes = [*self._notes]
        unlisted = finder.unlisted(everywhere=self._is_folder)
        if unlisted:
            notes.append(f"images that are not in the table: {unlisted}")
        return OpenedTask(classes.names, first, test, notes=tuple(notes), unused=tuple(lines))


class _Finder:
    """Finds the files that rows name, as written or by their names alone."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._taken: set[Path] = set()

    @cached_property
    def _files(self) -> list[Path]:
        return [e.path for e in walk(self._root) if e.reason is None and is_image(e.path)]

    @cached_property
    def _by_name(self) -> dict[str, list[Path]]:
        found: dict[str, list[Path]] = {}
        for file in self._files:
            for name in {file.name, file.stem}:  # ids in tables often lack the ending
                found.setdefault(name, []).append(file)
        return found

    def find(self, table: Table, row: dict[str, str]) -> Path | None:
        name = row[table.path_column or ""].replace("\\", "/")
        if not name or "\0" in name:
            return None
        for base in dict.fromkeys((table.file.parent, self._root)):
            file = base / name
            if file.is_file():
                self._taken.add(file)
                return file
        alike = self._by_name.get(Path(name).name, [])
        inside = [file for file in alike if file.is_relative_to(table.file.parent)]
        if len(alike) != 1 and len(inside) != 1:
            return None
        file = alike[0] if len(alike) == 1 else inside[0]
        self._taken.add(file)
        return file

    def unlisted(self, *, everywhere: bool) -> int:
        """How many image files no row names, in the whole folder or beside those that are named."""
        files = self._files if everywhere else _beside(self._taken)
        return len(set(files) - self._taken)


def _beside(files: Iterable[Path]) -> Iterator[Path]:
    for folder in {file.parent for file in files}:
        yield from (f for f in folder.iterdir() if is_image(f) and not is_hidden(f.name))


def read_table(file: Path) -> Table:
    """Read a table of any accepted kind.

    Raises:
        UsageError: It is damaged.
    """
    if file.suffix.lower() == ".parquet":
        return _parquet(file)
    try:
        text = file.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{file}: not UTF-8 ({error.reason} at byte {error.start})") from None
    if file.suffix.lower() == ".jsonl":
        return _json_lines(file, text)
    first = text.partition("\n")[0]
    delimiter = max(",;\t|", key=first.count)
    try:
        reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        header = tuple(reader.fieldnames or ())
        rows = []
        for found in reader:
            if None in found or None in found.values():
                raise UsageError(
                    f"{file} line {reader.line_num}: expected as many values as the header has, "
                    f"{len(header)}"
                )
            rows.append({name: value.strip() for name, value in found.items()})
    except csv.Error as error:
        raise UsageError(f"{file}: not a readable table ({error})") from None
    return Table(file, header, rows)


def _json_lines(file: Path, text: str) -> Table:
    rows = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UsageError(f"{file} line {number}: not JSON ({error})") from None
        if not isinstance(row, dict):
            raise UsageError(f"{file} line {number}: expected an object")
        rows.append({name: _text(value) for name, value in row.items()})
    header = tuple(dict.fromkeys(name for row in rows for name in row))
    return Table(file, header, [{name: row.get(name, "") for name in header} for row in rows])


def _parquet(file: Path) -> Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(file)
    except (pa.ArrowException, OSError) as error:
        raise UsageError(f"{file}: not a readable parquet file ({error})") from None
    rows = [{name: _text(value) for name, value in row.items()} for row in table.to_pylist()]
    return Table(file, tuple(table.column_names), rows)


def _text(value: Any) -> str:
    return "" if value is None else str(value).strip()


def _labelled(file: Path) -> Table:
    table = read_table(file)
    if table.is_labelled:
        return table
    columns = ", ".join(table.header[:8]) + (" ..." if len(table.header) > 8 else "")
    if any(is_image(Path(cell)) for cell in table.header):
        raise UsageError(f"{file}: no header row; expected a first line such as file_name,label")
    missing = "paths" if table.path_column is None else "labels"
    raise UsageError(f"{file}: no column of {missing} among {columns}; expected {EXPECTED}")


def _labels(rows: list[tuple[Table, dict[str, str]]]) -> list[str | None]:
    return [row[table.label_column or ""] or None for table, row in rows]
