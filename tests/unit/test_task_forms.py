"""The forms in which people have images: arrays, tables of paths, saved datasets, and mixtures."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from archloop.config import ProtocolConfig, TaskConfig
from archloop.errors import UsageError
from archloop.tasks import load_task, open_source
from archloop.types import TaskData


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARCHLOOP_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("ARCHLOOP_DATA", raising=False)


def load(path: Path, validation: str = "holdout:2") -> TaskData:
    protocol = ProtocolConfig.model_validate({"validation": validation})
    return load_task(TaskConfig(name=str(path)), protocol)


def pixels(n: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (n, 12, 12)).astype(np.uint8)


def image(i: int) -> Image.Image:
    return Image.fromarray(pixels(1, i)[0])


def every(data: TaskData) -> NDArray[np.uint8]:
    return np.concatenate([data.train_images, data.validation_images])


# One .npz file

X, Y = pixels(8), np.array([4, 7] * 4)


def npz(tmp_path: Path, **arrays: Any) -> Path:
    np.savez(tmp_path / "shapes.npz", **arrays)
    return tmp_path / "shapes.npz"


@pytest.mark.parametrize(
    "arrays",
    [
        {"x": X, "y": Y},
        {"Images": X, "Labels": Y[:, None]},
        {"X_train": X, "y_train": Y.astype(float)},
        {"trainX": X, "trainY": Y.astype("S")},
        {"train_images": X[:, None], "train_labels": Y.astype(str)},
        {"data": X.reshape(8, 144), "target": Y},
        {"pixels": X / 255, "classes": np.array(["no", "names"]), "targets": Y},
        {"x": X / 127.5 - 1, "y": Y},
        {"x": X.astype(np.float32), "y": Y},
        {"x": X.astype(np.uint16), "y": Y},
    ],
)
def test_arrays_by_their_usual_names_types_and_shapes(
    tmp_path: Path, arrays: dict[str, NDArray[Any]]
) -> None:
    data = load(npz(tmp_path, **arrays))
    assert (data.info.title, data.info.class_names) == ("shapes", ("4", "7"))
    assert data.info.shape == (1, 12, 12)
    assert {i.tobytes() for i in every(data)} == {i.tobytes() for i in X}


@pytest.mark.parametrize("axis", [1, 3])
def test_colour_first_or_last(tmp_path: Path, axis: int) -> None:
    layers = np.stack([X, X[::-1], 255 - X], axis)
    names = np.array(["zero", "one"])
    data = load(npz(tmp_path, images=layers, labels=np.eye(2)[[0, 1] * 4], class_names=names))
    assert data.info.shape == (3, 12, 12)
    assert data.info.class_names == ("zero", "one")
    assert (every(data)[:, 0].astype(int) + every(data)[:, 2] == 255).all()


def test_splits_of_arrays(tmp_path: Path) -> None:
    file = npz(tmp_path, x_train=X, y_train=Y, x_val=X[:3], y_val=Y[:3], x_test=X[:5], weights=Y)
    data = load(file, "test")
    assert data.info.n_validation == 3
    assert "test is not used (it has images or labels alone)" in data.info.summary
    assert "arrays not used: weights" in data.info.summary


def test_deep_arrays_are_scaled_by_their_range(tmp_path: Path) -> None:
    data = load(npz(tmp_path, x=X.astype(np.int32) * 16, y=Y))
    assert abs(np.sort(every(data).astype(int), None) - np.sort(X.astype(int), None)).max() <= 1
    assert "values of 12 bits are scaled to 8" in data.info.summary


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": X, "y": np.array([{}] * 8, object)}, "y holds Python objects, which are not loaded"),
        ({"x": X, "y": Y[:5]}, "x has 8 images for 5 labels"),
        ({"x": X, "y": Y + 0.5}, "y are no classes"),
        ({"x": X[:, :, :10, None].repeat(2, 3), "y": Y}, r"x has the shape \(8, 12, 10, 2\)"),
        ({"x": np.where(X > 99, np.nan, X), "y": Y}, "x holds values that are not finite"),
        ({"x": X.astype(str), "y": Y}, "x is of type <U3; expected numbers"),
        ({"a": X, "b": Y}, "no training images with labels; it holds a, b; expected x and y"),
        ({"x_test": X, "y_test": Y}, "no training images with labels"),
        ({"x": X, "y": Y * 0}, "1 class found"),
        ({"x": X * 0, "y": Y}, "all 8 images are constant"),
    ],
)
def test_arrays_that_are_no_task(
    tmp_path: Path, arrays: dict[str, NDArray[Any]], message: str
) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        load(npz(tmp_path, **arrays))
    assert "\n" not in str(caught.value)


def test_a_pickle_in_an_npz_file_is_not_executed(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "sprung"),)

    with pytest.raises(UsageError, match="x holds Python objects"):
        load(npz(tmp_path, x=np.array([Trap()], object), y=Y))
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("content", [b"", b"PK\3\4 no archive", b"\x93NUMPY"])
def test_a_damaged_npz_file_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad.npz").write_bytes(content)
    with pytest.raises(UsageError, match=r"bad\.npz: not a readable \.npz file"):
        load(tmp_path / "bad.npz")


# Tables of paths and labels


def pictures(folder: Path, names: list[str]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for i, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        image(i).save(folder / name)
    return folder


NAMES = [f"{i}.png" for i in range(6)]
LABELLED = [(name, "owl" if i % 2 else "jay") for i, name in enumerate(NAMES)]


def table(file: Path, header: str, rows: list[tuple[str, ...]], end: str = "\n") -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    comma = next(c for c in ",;\t" if c in header)
    file.write_bytes(end.join([header, *(comma.join(row) for row in rows), ""]).encode())
    return file


@pytest.mark.parametrize(
    ("name", "header"),
    [
        ("metadata.csv", "file_name,label"),
        ("metadata.csv", "\ufeffFile Name;Class"),
        ("labels.csv", "image,category"),
        ("birds.tsv", "path\ttarget"),
        ("train.csv", "id_code,class_name"),
    ],
)
@pytest.mark.parametrize("given", ["folder", "file"])
def test_tables_of_paths_and_labels(tmp_path: Path, name: str, header: str, given: str) -> None:
    root = pictures(tmp_path / "birds", NAMES)
    file = table(root / name, header, LABELLED, end="\r\n")
    data = load(root if given == "folder" else file)
    assert (data.info.name, data.info.class_names) == ("birds", ("jay", "owl"))
    assert np.bincount(data.train_labels).tolist() == [2, 2]
    assert "(jay 3, owl 3)" in data.info.summary


def test_images_of_a_table_are_found_by_name(tmp_path: Path) -> None:
    """In another folder, without their ending, or with the separators of another system."""
    root = pictures(tmp_path / "t", [f"images/{name}" for name in NAMES])
    rows = [(Path(name).stem, label) for name, label in LABELLED[:4]]
    rows += [("images\\4.png", "jay"), (str(root / "images" / "5.png"), "owl")]
    data = load(table(root / "labels.csv", "image_id,label", rows).parent)
    assert data.info.n_train + data.info.n_validation == 6


def test_rows_without_a_file_and_files_without_a_row_are_counted(tmp_path: Path) -> None:
    root = pictures(tmp_path / "t", [*NAMES, "more.png"])
    table(root / "metadata.csv", "file_name,label", [*LABELLED, ("lost.png", "owl")])
    summary = load(root).info.summary
    assert "skipped 1: missing 1 (owl 1: lost.png)" in summary
    assert "images that are not in the table: 1" in summary


def test_a_column_names_the_split(tmp_path: Path) -> None:
    root = pictures(tmp_path / "t", NAMES)
    splits = ["Train"] * 4 + ["Val"] * 2
    rows = [(*row, split) for row, split in zip(LABELLED, splits, strict=True)]
    table(root / "metadata.csv", "file_name,label,split", rows)
    assert load(root, "test").info.n_validation == 2
    table(root / "metadata.csv", "file_name,label,split", [*rows[:5], (*LABELLED[5], "spare")])
    with pytest.raises(UsageError, match="split 'spare' is unknown; expected train, training"):
        load(root)


def test_a_table_in_each_split_folder(tmp_path: Path) -> None:
    for split in ("train", "test"):
        root = pictures(tmp_path / "t" / split, NAMES)
        table(root / "metadata.csv", "file_name,label", LABELLED)
    assert load(tmp_path / "t", "test").info.n_validation == 6


def test_json_lines_and_parquet_tables(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [{"file_name": name, "label": label} for name, label in LABELLED]
    root = pictures(tmp_path / "lines", NAMES)
    (root / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    other = pictures(tmp_path / "columns", NAMES)
    pq.write_table(pa.Table.from_pylist(rows), other / "metadata.parquet")
    digests = {load(path).info.digest for path in (root, other, other / "metadata.parquet")}
    assert len(digests) == 1


def test_numbers_are_classes_in_their_order(tmp_path: Path) -> None:
    root = pictures(tmp_path / "t", NAMES)
    rows = [(name, str(9 + i % 2)) for i, name in enumerate(NAMES)]
    assert load(table(root / "labels.csv", "path,y", rows).parent).info.class_names == ("9", "10")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            b"file_name,photographer\n0.png,me\n",
            "no column of labels among file_name, photographer",
        ),
        (b"label,pixel0,pixel1\n3,0,255\n", "no column of paths among label, pixel0, pixel1"),
        (b"0.png,owl\n1.png,jay\n", "no header row; expected a first line such as file_name,label"),
        (b"file_name,label\n0.png,owl\n1.png\n", "line 3: expected as many values as the header"),
        (b"file_name,label\n0.png,\n1.png,owl\n", "train row 0 has no label"),
        ("file_name,label\n0.png,né\n".encode("latin-1"), "not UTF-8"),
        (b'file_name,label\n"0.png,owl\n', "not a readable table"),
        (b"file_name,label\n", "no rows"),
    ],
)
def test_tables_that_are_no_task(tmp_path: Path, content: bytes, message: str) -> None:
    root = pictures(tmp_path / "t", NAMES)
    (root / "metadata.csv").write_bytes(content)
    for path in (root, root / "metadata.csv"):
        with pytest.raises(UsageError, match=message) as caught:
            load(path)
        assert "metadata.csv" in str(caught.value)


# Tables and folders together


@pytest.mark.parametrize(
    ("name", "header", "labels"),
    [
        ("metadata.csv", "file_name,photographer", ("me", "you")),
        ("metadata.csv", "file_name,label", ("0", "1")),
        ("train.parquet", "file_name,width", ("12", "12")),
    ],
)
def test_a_table_beside_class_folders_is_named_and_folders_are_read(
    tmp_path: Path, name: str, header: str, labels: tuple[str, str]
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    files = [f"{kind}/{i}.png" for kind in ("jay", "owl") for i in range(3)]
    root = pictures(tmp_path / "t", files)
    rows = [(file, labels[file.startswith("owl")]) for file in files]
    if name.endswith(".csv"):
        table(root / name, header, rows)
    else:
        columns = zip(*rows, strict=True)
        pq.write_table(pa.table(dict(zip(header.split(","), columns, strict=True))), root / name)
    info = load(root).info
    assert info.class_names == ("jay", "owl")
    assert f"{name} is not read" in info.summary


def test_folders_that_a_table_says_are_no_classes(tmp_path: Path) -> None:
    names = [f"{kind}/{name}" for kind in ("images", "masks") for name in NAMES]
    root = pictures(tmp_path / "t", names)
    table(root / "metadata.csv", "file_name,label", [(f"images/{n}", k) for n, k in LABELLED])
    info = load(root).info
    assert info.class_names == ("jay", "owl")
    assert "images that are not in the table: 6" in info.summary


def test_images_beside_parquet_files_are_counted(tmp_path: Path) -> None:
    from datasets import ClassLabel, Dataset, Features
    from datasets import Image as Picture

    features = Features({"image": Picture(), "label": ClassLabel(names=["jay", "owl"])})
    rows = {"image": [image(i) for i in range(4)], "label": [0, 1, 0, 1]}
    root = pictures(tmp_path / "t", ["assets/teaser.png"])
    Dataset.from_dict(rows, features=features).to_parquet(root / "shard-0.parquet")
    assert "1 image files beside the parquet files are not read" in load(root).info.summary
    assert load(root / "shard-0.parquet").info.class_names == ("jay", "owl")


# datasets.save_to_disk


def saved(rows: int, known: bool = True) -> Any:
    from datasets import ClassLabel, Dataset, Features
    from datasets import Image as Picture

    features = Features({"picture": Picture(), "kind": ClassLabel(names=["jay", "owl"])})
    labels = [i % 2 if known else -1 for i in range(rows)]
    images = [image(i) for i in range(rows)]
    return Dataset.from_dict({"picture": images, "kind": labels}, features=features)


def test_saved_datasets(tmp_path: Path) -> None:
    from datasets import DatasetDict

    saved(6).save_to_disk(tmp_path / "one")
    assert load(tmp_path / "one").info.class_names == ("jay", "owl")
    splits = {"Training": saved(6), "test": saved(4, known=False), "dev": saved(2)}
    DatasetDict(splits).save_to_disk(tmp_path / "several")
    data = load(tmp_path / "several", "test")
    assert (data.info.n_train, data.info.n_validation) == (6, 2)
    assert "test is not used (label -1 of test image 0 is outside" in data.info.summary
    next((tmp_path / "one").glob("*.arrow")).write_bytes(b"junk")
    with pytest.raises(UsageError, match="one: not a readable saved dataset"):
        load(tmp_path / "one")


# What is no task


def test_only_what_does_not_exist_is_said_not_to(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    (tmp_path / "link").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "empty").mkdir()
    pictures(tmp_path / "loose", NAMES)
    found = {
        "notes.txt": "a file of kind .txt; expected a folder of class folders",
        "link": "a link that leads nowhere",
        "pipe": "neither a file nor a folder; expected",
        "empty": "no class folders; it holds nothing; expected CLASS",
        "loose": r"no class folders; it holds files \(6 of \.png\); expected CLASS",
    }
    for name, message in found.items():
        with pytest.raises(UsageError, match=message) as caught:
            load(tmp_path / name)
        assert "no such" not in str(caught.value)
    for name in (str(tmp_path / "gone"), "here/gone.npz"):
        with pytest.raises(UsageError, match="no such file or folder"):
            open_source(name)
