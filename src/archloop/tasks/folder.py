"""A folder of class folders as a task: ``CLASS/*.png``, or these below ``train`` and ``test``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from archloop.errors import UsageError
from archloop.tasks.source import EncodedImage, OpenedTask, SourceSplit, fingerprint

IMAGE_SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}
)
"""File name endings of images; other files in a class folder are ignored."""

_TEST_NAMES = ("test", "validation", "valid", "val")
_SPLIT_NAMES = frozenset({"train", *_TEST_NAMES})


class FolderSource:
    """Images in class folders, scaled to 32x32 unless ``task.image_size`` says otherwise."""

    default_size = 32

    def __init__(self, root: Path, name: str, title: str) -> None:
        self._root = root
        self.name = name
        self.title = title

    def key(self) -> str:
        """Names, sizes and times of all image files."""
        return fingerprint(self._root, [f for f in _files(self._root) if _is_image(f)])

    def open(self) -> OpenedTask:
        """Class names are the folder names, sorted.

        Raises:
            UsageError: No class folders, a class folder without images, or a test class that has
            no
                training folder.
        """
        train, test = self._split_folders()
        classes = _folders(train)
        if not classes:
            raise UsageError(
                f"{train}: no class folders; expected CLASS/*.png, or train/CLASS/*.png and "
                "test/CLASS/*.png"
            )
        names = tuple(folder.name for folder in classes)
        test_split = None if test is None else self._test_split(test, train, names)
        return OpenedTask(names, _split("train", train, names), test_split)

    def _split_folders(self) -> tuple[Path, Path | None]:
        found = {folder.name for folder in _folders(self._root)}
        if "train" not in found or not found <= _SPLIT_NAMES:
            return self._root, None
        tests = [self._root / name for name in _TEST_NAMES if name in found]
        return self._root / "train", tests[0] if tests else None

    def _test_split(self, test: Path, train: Path, names: tuple[str, ...]) -> SourceSplit:
        for folder in _folders(test):
            if folder.name not in names:
                raise UsageError(f"{folder}: class {folder.name!r} has no folder in {train}")
        present = [name for name in names if (test / name).is_dir()]
        if not present:
            raise UsageError(f"{test}: no class folders; expected {test.name}/CLASS/*.png")
        return _split("test", test, names, present)


def _split(
    split: str, folder: Path, names: tuple[str, ...], present: Sequence[str] | None = None
) -> SourceSplit:
    files: list[Path] = []
    labels: list[int] = []
    for name in names if present is None else present:
        own = [file for file in _files(folder / name) if _is_image(file)]
        if not own:
            kinds = ", ".join(sorted(suffix[1:] for suffix in IMAGE_SUFFIXES))
            raise UsageError(f"{folder / name}: class without images; expected files of {kinds}")
        files += own
        labels += [names.index(name)] * len(own)

    def images() -> Iterator[tuple[EncodedImage, str]]:
        for file in files:
            yield file, str(file)

    return SourceSplit(split, labels, images)


def _folders(root: Path) -> list[Path]:
    return sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))


def _files(root: Path) -> list[Path]:
    return sorted(p for p in root.rglob("*") if p.is_file() and not p.name.startswith("."))


def _is_image(file: Path) -> bool:
    return file.suffix.lower() in IMAGE_SUFFIXES
