"""Which kind of source a file or folder on this machine is."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from archloop.errors import UsageError
from archloop.tasks.columns import has_image_column
from archloop.tasks.folder import EXPECTED as CLASS_FOLDERS
from archloop.tasks.folder import FolderSource
from archloop.tasks.huggingface import SavedSource, is_saved
from archloop.tasks.npz import NpzSource
from archloop.tasks.parquet import ParquetRows, ParquetSource, parquet_files, parquet_splits
from archloop.tasks.source import TaskSource
from archloop.tasks.splits import by_role, split_role
from archloop.tasks.table import TABLE_SUFFIXES, Table, TableSource, read_table
from archloop.tasks.walk import is_hidden, is_image, subfolders, walk

EXPECTED = (
    f"a folder of class folders ({CLASS_FOLDERS}), parquet files with an image column, a table of "
    "paths and labels (metadata.csv), one .npz file, or a folder of datasets.save_to_disk"
)

FILE_SUFFIXES = frozenset({".npz", ".parquet", *TABLE_SUFFIXES})
"""Endings of the files that are tasks."""

_USUAL_STEMS = frozenset({"metadata", "labels", "annotations", "data", "dataset", "images"})


def open_local(
    path: Path, name: str, title: str, *, config: str | None = None, label: str | None = None
) -> TaskSource:
    """The source of a file or folder that exists.

    Args:
        path: The file or folder.
        name: As in the configuration and in records.
        title: As written in a prompt.
        config: The configuration (subset) of a Hugging Face dataset.
        label: The label column, where it is known.

    Raises:
        UsageError: It is of no accepted kind; says what was found and what is expected.
    """
    if path.is_file():
        return _file(path, name, title, config, label)
    if path.is_symlink() and not path.exists():
        raise UsageError(f"{path}: a link that leads nowhere ({path.readlink()})")
    if not path.is_dir():
        raise UsageError(f"{path}: neither a file nor a folder; expected {EXPECTED}")
    return _folder(path, name, title, config, label)


def title_of(path: Path) -> str:
    """What to call a file or folder: a table called ``metadata.csv`` has its folder's name."""
    full = path.resolve()
    if not full.is_file():
        return full.name
    usual = full.stem.casefold() in _USUAL_STEMS or split_role(full.stem) is not None
    return full.parent.name if usual else full.stem


def _folder(path: Path, name: str, title: str, config: str | None, label: str | None) -> TaskSource:
    if is_saved(path):
        return SavedSource(path, name, title)
    parquet = parquet_files(path)
    if parquet and _holds_images(path, config):
        notes = _images_beside(path)
        return ParquetSource(path, name, title, config=config, label=label, notes=notes)
    folders = _class_folders(path)
    tables = _tables(path)
    one_folder = tables and _labels_within_folders(tables)
    if folders < 2 or one_folder:
        if tables:
            shown = ", ".join(file.relative_to(path).as_posix() for file in tables.values())
            return TableSource(path, tables, name, title, (f"labels are those of {shown}",))
        if parquet and folders == 0:
            return ParquetSource(path, name, title, config=config, label=label)
        if folders == 0 and (candidates := _candidates(path)):
            # None has paths and labels; opening the first says what it lacks.
            return TableSource(path, {"train": candidates[0]}, name, title)
    arrays = [file for file in sorted(path.glob("*.npz")) if not is_hidden(file.name)]
    if folders == 0 and len(arrays) == 1:
        return NpzSource(arrays[0], name, title)
    beside = [file for file in (*_candidates(path), *parquet) if file.is_file()]
    unread = [f"{f.relative_to(path).as_posix()} is not read" for f in dict.fromkeys(beside)]
    return FolderSource(path, name, title, tuple(unread[:3]))


def _file(path: Path, name: str, title: str, config: str | None, label: str | None) -> TaskSource:
    suffix = path.suffix.lower()
    if suffix == ".npz":
        return NpzSource(path, name, title)
    if suffix in TABLE_SUFFIXES:
        return TableSource(path, {"train": path}, name, title)
    if suffix == ".parquet":
        if not has_image_column(ParquetRows([path]).features) and read_table(path).is_labelled:
            return TableSource(path, {"train": path}, name, title)
        return ParquetSource(path, name, title, config=config, label=label)
    raise UsageError(f"{path}: a file of kind {suffix or 'no ending'}; expected {EXPECTED}")


def _holds_images(path: Path, config: str | None) -> bool:
    """Whether parquet files hold the images, rather than lie beside them."""
    root = path / config if config and (path / config).is_dir() else path
    splits = parquet_splits(root)
    named = [files[0] for name, files in splits.items() if split_role(name) == "train"]
    first = next(iter(named or [files[0] for files in splits.values()]), None)
    if first is None:
        return False
    try:
        return has_image_column(ParquetRows([first]).features)
    except UsageError:
        return not any(is_image(entry.path) for entry in walk(path))  # damaged, and all there is


def _images_beside(path: Path) -> tuple[str, ...]:
    n = sum(entry.reason is None and is_image(entry.path) for entry in walk(path))
    return (f"{n} image files beside the parquet files are not read",) if n else ()


def _class_folders(path: Path) -> int:
    """How many class folders with images there are, below ``train`` where there is one."""
    found = {folder.name: folder for folder in subfolders(path)}
    train, _tests, _rest = by_role(found, path)
    if train is not None and (not _rest or subfolders(found[train])):
        found = {folder.name: folder for folder in subfolders(found[train])}
    return sum(
        any(entry.reason is None and is_image(entry.path) for entry in walk(folder))
        for folder in found.values()
    )


def _candidates(path: Path) -> list[Path]:
    """Tables in the folder and in its split folders."""
    places = [path, *(folder for folder in subfolders(path) if split_role(folder.name))]
    files = [file for place in places for file in sorted(place.iterdir())]
    kinds = TABLE_SUFFIXES | {".parquet"}
    return [f for f in files if f.is_file() and f.suffix.lower() in kinds and not is_hidden(f.name)]


def _tables(path: Path) -> dict[str, Path]:
    """The table of each split, or one for all; empty where none has paths and labels.

    Raises:
        UsageError: Several tables could be the one.
    """
    labelled: dict[str, list[Path]] = defaultdict(list)
    others = []
    for file in _candidates(path):
        try:
            if not read_table(file).is_labelled:
                continue
        except UsageError:
            continue
        split = next(
            (name for name in (file.stem, file.parent.name) if _names_split(name, path)), None
        )
        if split is None:
            others.append(file)
        else:
            labelled[split].append(file)
    usual = [file for file in others if file.stem.casefold() == "metadata"] or others
    if any(split_role(split) == "train" for split in labelled):
        return {split: files[0] for split, files in labelled.items()}
    if len(usual) > 1:
        listed = ", ".join(str(file.relative_to(path)) for file in usual[:5])
        raise UsageError(
            f"{path}: several tables of paths and labels ({listed}); name one of them in task.name"
        )
    return {"train": usual[0]} if usual else {}


def _names_split(name: str, root: Path) -> bool:
    return name != root.name and split_role(name) is not None


def _labels_within_folders(tables: dict[str, Path]) -> bool:
    """Whether tables tell images of one folder apart, so that folders are not classes."""
    read = [read_table(file) for file in tables.values()]
    return all(_within_one_folder(table) for table in read)


def _within_one_folder(table: Table) -> bool:
    folders = set()
    labels = set()
    for row in table.rows:
        parent = Path(row[table.path_column or ""].replace("\\", "/")).parent
        if split_role(parent.name) is None:
            folders.add(parent)
        labels.add(row[table.label_column or ""])
    return len(folders - {Path()}) == 1 and len(labels) > 1
