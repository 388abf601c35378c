"""A folder of class folders as a task: ``CLASS/*.png``, or these below ``train`` and ``test``."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from archloop.errors import UsageError
from archloop.tasks.source import EncodedImage, OpenedTask, Skipped, SourceSplit, fingerprint
from archloop.tasks.splits import by_role, first_usable, split_role, usual_names
from archloop.tasks.walk import IMAGE_SUFFIXES, Entry, holds, is_hidden, is_image, subfolders, walk

EXPECTED = "CLASS/*.png, or train/CLASS/*.png and test/CLASS/*.png"


class FolderSource:
    """Images in class folders, scaled to 32x32 unless ``task.image_size`` says otherwise."""

    default_size = 32

    def __init__(self, root: Path, name: str, title: str, notes: tuple[str, ...] = ()) -> None:
        self._root = root
        self._notes = notes
        self.name = name
        self.title = title

    def key(self) -> str:
        """Names, sizes and times of everything in the folder, as all of it is counted."""
        return fingerprint(self._root, [entry.path for entry in walk(self._root)])

    def open(self) -> OpenedTask:
        """Class names are the folder names, sorted.

        Raises:
            UsageError: No class folders, a class folder without images, a folder beside ``train``
                that is no split, or two folders for one class.
        """
        train, tests = self._split_folders()
        classes = subfolders(train)
        if not classes:
            raise UsageError(
                f"{train}: no class folders; it holds {holds(train)}; expected {EXPECTED}, or a "
                "table such as metadata.csv with the columns file_name and label"
            )
        if len(classes) == 1 and subfolders(classes[0]):
            raise UsageError(
                f"{train}: 1 class found ({classes[0].name!r}); a task needs at least two; if "
                f"{classes[0]} holds the class folders, name it in task.name"
            )
        names = tuple(folder.name for folder in classes)
        notes = [*self._notes, *_alike(train, names)]
        skipped: list[Skipped] = []
        split = self._split("train", train, dict(zip(names, classes, strict=True)), names, skipped)
        test, lines = first_usable(
            (
                (f"{t.name}/", partial(self._test_split, t, train, names, skipped, notes))
                for t in tests
            ),
            len(names),
        )
        skipped += self._outside(train)
        notes += self._nested(train, split)
        return OpenedTask(
            names, split, test, tuple(skipped), tuple(notes), tuple(lines), f"{self._root}/"
        )

    def _split_folders(self) -> tuple[Path, list[Path]]:
        """The folder of the training split, and those that could be the test split."""
        found = {folder.name: folder for folder in subfolders(self._root)}
        train, tests, rest = by_role(found, self._root)
        if train is None:
            if tests:
                raise UsageError(
                    f"{self._root}: {tests[0]}/ is named like a split, but there is no train/ "
                    f"beside it; expected {EXPECTED} (if {tests[0]} is a class, put all class "
                    "folders into train/)"
                )
            return self._root, []
        if rest and not any(subfolders(found[train])):
            return self._root, self._only_classes(tests)  # ``train`` is a class, beside ``car``
        if rest:
            raise UsageError(
                f"{found[rest[0]]}: {rest[0]}/ beside {train}/ is not the name of a split; "
                f"expected {usual_names()}; rename it, or move it away"
            )
        return found[train], [found[name] for name in tests]

    def _only_classes(self, tests: list[str]) -> list[Path]:
        if tests:
            raise UsageError(
                f"{self._root}: train/ holds no class folders, and {tests[0]}/ is named like a "
                f"split; expected {EXPECTED}"
            )
        return []

    def _test_split(
        self,
        test: Path,
        train: Path,
        names: tuple[str, ...],
        skipped: list[Skipped],
        notes: list[str],
    ) -> SourceSplit:
        folders: dict[str, Path] = {}
        found = subfolders(test)
        if not found:
            raise UsageError(f"it has no class folders; expected {test.name}/CLASS/*.png")
        for folder in found:
            name = _matching(folder.name, names)
            if name is None:
                raise UsageError(f"{folder}: class {folder.name!r} has no folder in {train}")
            if name in folders:
                raise UsageError(f"{folders[name]} and {folder} are both class {name!r}")
            folders[name] = folder
        notes += [
            f"{self._relative(folder)}/ is taken for the class {name}, whose name differs in case "
            "or Unicode normal form"
            for name, folder in folders.items()
            if folder.name != name
        ]
        return self._split("test", test, folders, names, skipped)

    def _split(
        self,
        split: str,
        root: Path,
        folders: dict[str, Path],
        names: tuple[str, ...],
        skipped: list[Skipped],
    ) -> SourceSplit:
        files: list[Path] = []
        labels: list[int] = []
        dropped: list[Skipped] = []
        for label, name in enumerate(names):
            if name not in folders:
                continue
            own: list[Path] = []
            lost: list[Skipped] = []
            for entry in walk(folders[name]):
                reason = _reason(entry)
                if reason is None:
                    own.append(entry.path)
                else:
                    lost.append(Skipped(reason, self._relative(entry.path), name))
            if not own:
                kinds = ", ".join(sorted(suffix[1:] for suffix in IMAGE_SUFFIXES))
                raise UsageError(
                    f"{folders[name]}: class without images; it holds {holds(folders[name])}; "
                    f"expected files of {kinds}"
                )
            files += own
            labels += [label] * len(own)
            dropped += lost
        skipped += dropped

        def images() -> Iterator[tuple[EncodedImage, str]]:
            for file in files:
                yield file, str(file)

        return SourceSplit(split, labels, images, "" if root == self._root else f"{root.name}/")

    def _outside(self, train: Path) -> Iterator[Skipped]:
        """What lies beside the class folders."""
        for root in dict.fromkeys((self._root, train)):
            for path in sorted(root.iterdir()):
                if is_hidden(path.name):
                    yield Skipped("hidden", self._relative(path))
                elif not path.is_dir():
                    image = path.is_file() and is_image(path)
                    entry = Entry(path, None if path.is_file() else "link that leads nowhere")
                    reason = "outside the class folders" if image else _reason(entry)
                    yield Skipped(reason or "", self._relative(path))

    def _nested(self, train: Path, split: SourceSplit) -> Iterator[str]:
        """A line on images in folders inside class folders, which count as the class's."""
        files = [Path(where) for _, where in split.images()]
        inner = [file.parent for file in files if file.parent.parent != train]
        if not inner:
            return
        listed = list(dict.fromkeys(inner))
        shown = ", ".join(f"{self._relative(folder)}/" for folder in listed[:3])
        more = f" and {len(listed) - 3} more" if len(listed) > 3 else ""
        splits = any(
            split_role(part) for file in inner for part in file.relative_to(train).parts[1:]
        )
        warning = " (splits belong above the classes: train/CLASS)" if splits else ""
        yield (
            f"{len(inner)} in folders inside class folders count as the class's: "
            f"{shown}{more}{warning}"
        )

    def _relative(self, path: Path) -> str:
        return path.relative_to(self._root).as_posix()


def _reason(entry: Entry) -> str | None:
    """Why an entry is no image of its class; ``None``: it is one."""
    if entry.reason is not None or is_image(entry.path):
        return entry.reason
    return f"of another kind ({entry.path.suffix.lower() or 'no ending'})"


def _matching(name: str, classes: Sequence[str]) -> str | None:
    """The training class of a test folder: file systems change case and Unicode normal form."""
    for form in (str, _normal, _folded):
        same = [known for known in classes if form(known) == form(name)]
        if len(same) == 1:
            return same[0]
    return None


def _normal(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", _normal(name).casefold())


def _alike(root: Path, names: Sequence[str]) -> Iterator[str]:
    """A line on classes that differ in case only; letters may be classes, so they are no error.

    Raises:
        UsageError: Two look the same, as they differ in Unicode normal form only.
    """
    known: dict[str, str] = {}
    for name in names:
        other = known.setdefault(_folded(name), name)
        if other == name:
            continue
        if _normal(other) == _normal(name):
            raise UsageError(
                f"{root}: the class folders {ascii(other)} and {ascii(name)} are one name in two "
                "Unicode normal forms; move the files of one into the other"
            )
        yield f"the classes {other} and {name} differ in case only"
