from __future__ import annotations

import logging
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from archloop.config import ProtocolConfig, TaskConfig
from archloop.errors import UsageError
from archloop.tasks import TaskUnavailableError, load_task, open_source
from archloop.tasks.arrays import load_arrays
from archloop.tasks.huggingface import HubSource
from archloop.tasks.split import channel_statistics, stratified
from archloop.types import TaskData

ARCHLOOP_DATA = os.environ.get("ARCHLOOP_DATA", "")

needs_cifar10 = pytest.mark.skipif(
    not (Path(ARCHLOOP_DATA) / "cifar10").is_dir() or not ARCHLOOP_DATA,
    reason="needs a copy of CIFAR-10 under ARCHLOOP_DATA",
)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARCHLOOP_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("ARCHLOOP_DATA", raising=False)


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from datasets import config

    monkeypatch.setattr(config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(config, "HF_DATASETS_CACHE", tmp_path / "hub_cache")


def load(name: str | Path, validation: str = "holdout:4", **settings: int | None) -> TaskData:
    size = settings.pop("image_size", None)
    config = TaskConfig(name=str(name), image_size=size)
    return load_task(config, ProtocolConfig.model_validate({"validation": validation, **settings}))


def picture(value: int, mode: str = "RGB", size: tuple[int, int] = (32, 32)) -> Image.Image:
    """One colour but for the last pixel: a task of images of one colour each is refused."""
    image = Image.new(mode, size, value if mode == "L" else (value, 2, 3))
    image.putpixel((size[0] - 1, size[1] - 1), 200 if mode == "L" else (200, 100, 0))
    return image


def class_folders(root: Path, classes: tuple[str, ...] = ("cat", "dog"), n: int = 5) -> Path:
    for label, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for i in range(n):
            picture(40 * label + i).save(root / name / f"{i}.png")
    return root


def parquet_files(
    root: Path, image: str = "img", label: str = "label", test: bool = True, n: int = 6
) -> Path:
    """A dataset as the Hub lays it out, written by ``datasets`` itself."""
    from datasets import ClassLabel, Dataset, Features
    from datasets import Image as ImageFeature

    features = Features({image: ImageFeature(), label: ClassLabel(names=["zero", "one"])})
    root.mkdir(parents=True)
    for split in ("train", "test") if test else ("train",):
        rows = {image: [picture(i) for i in range(n)], label: [i % 2 for i in range(n)]}
        data = Dataset.from_dict(rows, features=features)
        data.to_parquet(root / f"{split}-00000-of-00001.parquet")
    return root


# Splits


def test_digits() -> None:
    data = load("digits", "holdout:297")
    info = data.info
    assert (info.name, info.title, info.shape, info.classes) == (
        "digits",
        "Digits",
        (1, 32, 32),
        10,
    )
    assert (info.n_train, info.n_validation) == (1500, 297)
    assert data.train_images.shape == (1500, 1, 32, 32)
    assert data.train_images.dtype == np.uint8
    assert data.train_labels.dtype == np.int64
    assert data.validation_images.shape == (297, 1, 32, 32)
    assert data.train_images.max() == 255
    scaled = data.train_images / 255
    assert info.mean == pytest.approx((scaled.mean(),))
    assert info.std == pytest.approx((scaled.std(),))
    shares = np.bincount(data.validation_labels) / np.bincount(data.train_labels)
    assert shares == pytest.approx(297 / 1500, abs=0.01)


def test_digits_can_be_learnt_from() -> None:
    data = load("digits", "holdout:297")
    # Nearest neighbour: fails at once if images and labels were paired wrongly.
    train = data.train_images.reshape(1500, -1).astype(np.float32)
    test = data.validation_images.reshape(297, -1).astype(np.float32)
    distance = (train**2).sum(1) - 2 * test @ train.T
    found = data.train_labels[distance.argmin(axis=1)]
    assert (found == data.validation_labels).mean() > 0.95


def test_split_is_the_same_in_every_process(tmp_path: Path) -> None:
    data = load("digits", "holdout:100")
    again = load("digits", "holdout:100")
    assert data.info == again.info
    assert np.array_equal(data.validation_images, again.validation_images)
    code = (
        "from archloop.tasks import load_task; from archloop.config import *;"
        "p = ProtocolConfig(validation='holdout:100', augmentation='none', lr=0.5);"
        "print(load_task(TaskConfig(name='digits'), p).info.digest)"
    )
    environment = {**os.environ, "ARCHLOOP_CACHE": str(tmp_path / "other")}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    assert done.stdout.strip() == data.info.digest


def test_digest_tells_splits_and_data_apart(tmp_path: Path) -> None:
    root = class_folders(tmp_path / "a")
    digests = {
        load(root).info.digest,
        load(root, "holdout:2").info.digest,
        load(root, train_images=2).info.digest,
        load(root, validation_images=2).info.digest,
        load(root, image_size=8).info.digest,
    }
    assert len(digests) == 5
    picture(99).save(root / "cat" / "0.png")
    assert load(root).info.digest not in digests


def test_held_out_images_are_not_trained_on() -> None:
    data = load("digits", "holdout:400")
    train = {image.tobytes() for image in data.train_images}
    held = [image.tobytes() for image in data.validation_images]
    assert sum(image in train for image in held) == 0
    assert len(train) + len(set(held)) == 1797


def test_caps_are_stratified_and_leave_the_holdout_alone() -> None:
    full = load("digits", "holdout:300")
    small = load("digits", "holdout:300", train_images=200, validation_images=50)
    assert small.info.n_train == 200
    assert small.info.n_validation == 50
    assert np.bincount(small.train_labels).tolist() == [20] * 10
    assert set(np.bincount(small.validation_labels)) == {5}
    held = {image.tobytes() for image in full.validation_images}
    assert all(image.tobytes() in held for image in small.validation_images)
    assert load("digits", "holdout:300", train_images=10**6).info.n_train == 1497


@pytest.mark.parametrize(("n", "expected"), [(0, [0, 0, 0]), (5, [3, 1, 1]), (13, [9, 3, 1])])
def test_stratified_takes_shares(n: int, expected: list[int]) -> None:
    labels = np.repeat([0, 1, 2], [10, 4, 2])
    chosen = stratified(labels, n, 0, 0)
    assert np.bincount(labels[chosen], minlength=3).tolist() == expected
    assert len(set(chosen)) == n
    assert np.array_equal(chosen, np.sort(chosen))


def test_stratified_keeps_one_of_each_class_out_while_it_can() -> None:
    labels = np.repeat([0, 1, 2], [20, 1, 1])
    for n in range(1, 20):
        left = np.delete(labels, stratified(labels, n, 0, 0))
        assert set(left) == {0, 1, 2}
        assert len(left) == 22 - n


def test_stratified_choice_never_changes() -> None:
    labels = np.arange(40) % 4
    assert stratified(labels, 8, 0, 0).tolist() == [6, 8, 11, 12, 22, 25, 27, 29]
    assert stratified(labels, 8, 1, 0).tolist() != stratified(labels, 8, 0, 0).tolist()
    assert stratified(labels, 8, 0, 1).tolist() != stratified(labels, 8, 0, 0).tolist()


def test_channel_statistics() -> None:
    images = np.random.default_rng(0).integers(0, 256, (3000, 3, 5, 4)).astype(np.uint8)
    images[:, 2] = 51
    mean, std = channel_statistics(images)
    assert mean == pytest.approx((images / 255).mean(axis=(0, 2, 3)))
    assert std[:2] == pytest.approx((images / 255).std(axis=(0, 2, 3))[:2])
    assert std[2] == 1.0, "a constant channel must stay usable as a divisor"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"validation": "holdout:9"}, "at most holdout:8"),
        ({"validation": "holdout:5000"}, "10 training images in 2 classes"),
        ({"validation": "test"}, "no test split; use 'holdout:N'"),
        ({"train_images": 1}, "2 classes"),
    ],
)
def test_impossible_splits(tmp_path: Path, settings: dict[str, int], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load(class_folders(tmp_path / "pets"), **settings)
    assert load(tmp_path / "pets", "holdout:8").info.n_train == 2


# Folders of class folders


def test_class_folders(tmp_path: Path) -> None:
    root = class_folders(tmp_path / "pets", ("dog", "cat"))
    (root / "cat" / "notes.txt").write_text("not an image")
    (root / ".hidden").mkdir()
    data = load(root)
    assert (data.info.name, data.info.title) == ("pets", "pets")
    assert data.info.class_names == ("cat", "dog")
    assert data.info.shape == (3, 32, 32)
    assert np.bincount(data.validation_labels).tolist() == [2, 2]
    every = np.concatenate([data.train_images, data.validation_images])
    labels = np.concatenate([data.train_labels, data.validation_labels])
    # "dog" was painted with red 0..4, "cat" with 40..44.
    assert ((every[:, 0, 0, 0] < 40) == (labels == 1)).all()


def test_folders_with_a_test_split(tmp_path: Path) -> None:
    class_folders(tmp_path / "pets" / "train")
    class_folders(tmp_path / "pets" / "test", n=3)
    data = load(tmp_path / "pets", "test")
    assert (data.info.n_train, data.info.n_validation) == (10, 6)
    assert load(tmp_path / "pets", "holdout:4").info.n_train == 6


def test_class_called_train_is_a_class(tmp_path: Path) -> None:
    data = load(class_folders(tmp_path / "vehicles", ("car", "plane", "train")), "holdout:3")
    assert data.info.class_names == ("car", "plane", "train")


def test_images_are_scaled_not_squeezed(tmp_path: Path) -> None:
    root = tmp_path / "wide"
    for name in ("a", "b"):
        (root / name).mkdir(parents=True)
        for i in range(3):
            wide = picture(0, size=(60, 20))
            wide.paste((200, 200, 200), (18, 0, 42, 20))  # the centre square
            wide.paste((100, 100, 100), (28, 8, 32, 12))
            wide.save(root / name / f"{i}.bmp")
    data = load(root, "holdout:2", image_size=16)
    assert data.info.shape == (3, 16, 16)
    assert (data.train_images[:, :, 0] == 200).all(), "the edges are of the centre square"


def test_grayscale_is_one_channel(tmp_path: Path) -> None:
    root = class_folders(tmp_path / "a")
    for file in root.rglob("*.png"):
        Image.open(file).convert("L").save(file)
    data = load(root)
    assert data.info.shape == (1, 32, 32)
    assert len(data.info.mean) == len(data.info.std) == 1


def test_one_colour_image_makes_the_task_colour(tmp_path: Path) -> None:
    root = class_folders(tmp_path / "a")
    for file in sorted(root.rglob("*.png"))[:-1]:
        picture(77, "L").save(file)
    data = load(root)
    assert data.info.shape == (3, 32, 32)
    every = np.concatenate([data.train_images, data.validation_images])
    gray = (every[..., :16] == 77).all(axis=(1, 2, 3))
    assert gray.sum() == 9


@pytest.mark.parametrize("mode", ["RGBA", "P", "CMYK", "LA", "1", "I;16"])
def test_every_pixel_type_is_read(tmp_path: Path, mode: str) -> None:
    root = tmp_path / "a"
    for name in ("x", "y"):
        (root / name).mkdir(parents=True)
        for i in range(2):
            if mode == "I;16":
                odd = Image.fromarray(np.full((32, 32), 51 * 256, np.uint16))
                odd.putpixel((31, 31), 2**16 - 1)
            else:
                odd = Image.new("RGB", (32, 32), (255, 255, 255))
                odd.putpixel((31, 31), (0, 0, 0))
                odd = odd.convert(mode)
            odd.save(root / name / f"{i}.tif")
    data = load(root, "holdout:2")
    assert data.info.shape == ((1 if mode in ("LA", "1", "I;16") else 3), 32, 32)
    assert (data.train_images[..., :31] == (51 if mode == "I;16" else 255)).all()
    assert (data.train_images[..., 31, 31] == (255 if mode == "I;16" else 0)).all()


def test_damaged_images_are_counted_and_named(tmp_path: Path) -> None:
    root = class_folders(tmp_path / "pets")
    bad = root / "dog" / "3.png"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    Image.fromarray(noise).save(bad)
    bad.write_bytes(bad.read_bytes()[:3000])
    (root / "cat" / "0.png").write_bytes(b"no image at all")
    info = load(root).info
    assert info.n_train + info.n_validation == 8
    assert "(cat 4, dog 4); skipped 2: unreadable 1 (cat 1: cat/0.png)" in info.summary
    assert "truncated 1 (dog 1: dog/3.png)" in info.summary
    bad.unlink()
    assert load(root).info.n_train == 4


def test_a_class_of_damaged_images_is_refused(tmp_path: Path) -> None:
    root = class_folders(tmp_path / "pets")
    for file in (root / "dog").iterdir():
        file.write_bytes(b"")
    with pytest.raises(UsageError, match=r"class 'dog' has no image .*: 5 unreadable \(dog/0\.png"):
        load(root)
    assert list((tmp_path / "cache" / "tasks").iterdir()) == [], "nothing half-decoded stays"


def test_empty_class_is_named(tmp_path: Path) -> None:
    root = class_folders(tmp_path / "pets")
    (root / "bird").mkdir()
    with pytest.raises(UsageError, match="pets/bird: class without images"):
        load(root)


def test_unknown_test_class_is_named(tmp_path: Path) -> None:
    class_folders(tmp_path / "pets" / "train")
    class_folders(tmp_path / "pets" / "test", ("cat", "cow"))
    with pytest.raises(UsageError, match="test/cow: class 'cow' has no folder in"):
        load(tmp_path / "pets", "test")
    assert "test/ is not used (" in load(tmp_path / "pets").info.summary


def test_folder_without_class_folders(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="expected CLASS"):
        load(tmp_path / "empty")
    with pytest.raises(UsageError, match="1 class found"):
        load(class_folders(tmp_path / "one", ("cat",)))


# Hugging Face layout


@pytest.mark.parametrize(("image", "label"), [("img", "label"), ("image", "fine_label")])
def test_parquet_files(tmp_path: Path, image: str, label: str) -> None:
    data = load(parquet_files(tmp_path / "tiny" / "plain_text", image, label).parent, "test")
    assert data.info.class_names == ("zero", "one")
    assert (data.info.n_train, data.info.n_validation) == (6, 6)
    assert data.train_images[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4, 5]
    assert data.train_labels.tolist() == [0, 1, 0, 1, 0, 1]


def test_parquet_without_a_test_split(tmp_path: Path) -> None:
    root = parquet_files(tmp_path / "tiny", test=False)
    assert load(root, "holdout:2").info.n_train == 4
    with pytest.raises(UsageError, match="no test split"):
        load(root, "test")


def test_named_task_from_a_local_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parquet_files(tmp_path / "data" / "svhn" / "cropped_digits", "image", "label")
    parquet_files(tmp_path / "data" / "svhn" / "full_numbers", "image", "label", n=8)
    parquet_files(tmp_path / "data" / "someone" / "things", "image", "label")
    monkeypatch.setenv("ARCHLOOP_DATA", str(tmp_path / "data"))
    info = load("svhn", "test").info
    assert (info.name, info.title, info.n_train) == ("svhn", "SVHN", 6)
    assert load("someone/things", "test").info.title == "things"
    parquet_files(tmp_path / "data" / "someone" / "parts" / "a", n=8)
    parquet_files(tmp_path / "data" / "someone" / "parts" / "b", n=6)
    assert load("someone/parts:b", "test").info.n_train == 6
    with pytest.raises(UsageError, match="several configurations"):
        load(tmp_path / "data" / "svhn", "test")


def rows_as_parquet(path: Path, **columns: list[object]) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)
    return path.parent


def png(tmp_path: Path, value: int, size: tuple[int, int] = (32, 32)) -> dict[str, object]:
    file = tmp_path / "one.png"
    picture(value, size=size).save(file)
    return {"bytes": file.read_bytes(), "path": None}


def test_parquet_without_hub_metadata(tmp_path: Path) -> None:
    images = [png(tmp_path, i) for i in range(4)]
    root = rows_as_parquet(
        tmp_path / "t" / "train.parquet", image=images, label=["b", "a", "b", "a"]
    )
    data = load(root, "holdout:2")
    assert data.info.class_names == ("a", "b")


@pytest.mark.parametrize(
    ("labels", "message"),
    [([0, 1, 0, None], "train row 3 has no label"), ([0, 0, 0, 0], "1 class found")],
)
def test_bad_labels(tmp_path: Path, labels: list[object], message: str) -> None:
    images = [png(tmp_path, i) for i in range(4)]
    root = rows_as_parquet(tmp_path / "t" / "train.parquet", image=images, label=labels)
    with pytest.raises(UsageError, match=message):
        load(root, "holdout:1")


def test_images_of_several_sizes(tmp_path: Path) -> None:
    images = [png(tmp_path, 1), png(tmp_path, 2), png(tmp_path, 3, (48, 40)), png(tmp_path, 4)]
    root = rows_as_parquet(tmp_path / "t" / "train.parquet", image=images, label=[0, 1, 0, 1])
    with pytest.raises(UsageError, match=r"train\.parquet row 2: 48x40 pixels among .* 32x32; set"):
        load(root, "holdout:1")
    assert load(root, "holdout:1", image_size=16).info.shape == (3, 16, 16)


def test_damaged_rows_are_counted_and_named(tmp_path: Path) -> None:
    good = png(tmp_path, 1)
    junk, gone = {"bytes": b"junk", "path": None}, {"bytes": None, "path": "gone.png"}
    root = rows_as_parquet(
        tmp_path / "t" / "train.parquet",
        image=[good, junk, good, gone, good],
        label=[0, 1, 1, 0, 0],
    )
    summary = load(root, "holdout:1").info.summary
    assert "skipped 2: unreadable 1 (1 1: train.parquet row 1); missing 1 (0 1: train" in summary


@pytest.mark.parametrize("part", ["footer", "images", "labels"])
def test_damaged_parquet_file(tmp_path: Path, part: str) -> None:
    root = parquet_files(tmp_path / "tiny")
    file = root / "train-00000-of-00001.parquet"
    content, metadata = file.read_bytes(), pq.read_metadata(file)
    if part == "footer":
        file.write_bytes(content[:200])
    else:
        column = metadata.row_group(0).column(0 if part == "images" else metadata.num_columns - 1)
        begin = column.dictionary_page_offset or column.data_page_offset
        end = begin + column.total_compressed_size
        file.write_bytes(content[:begin] + b"\xff" * (end - begin) + content[end:])
    with pytest.raises(UsageError, match=r"train-00000.*: not a readable parquet file"):
        load(root, "test")


def test_columns_that_are_not_there(tmp_path: Path) -> None:
    root = rows_as_parquet(tmp_path / "t" / "train.parquet", text=["a"], label=[0])
    with pytest.raises(UsageError, match="expected one image column, found none among .*text"):
        load(root)
    root = rows_as_parquet(tmp_path / "u" / "train.parquet", image=[png(tmp_path, 1)], weight=[0.5])
    with pytest.raises(UsageError, match="no label column found among .*weight"):
        load(root)


def test_class_of_the_schema_without_images(tmp_path: Path) -> None:
    root = parquet_files(tmp_path / "tiny", n=1)
    with pytest.raises(UsageError, match="class 'one' has no training image"):
        load(root)


# The Hub


@pytest.fixture
def listening_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """A port that accepts connections in place of the Hub, which these tests never ask."""
    from datasets import config

    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setattr(config, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(config, "HF_ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        monkeypatch.setattr(config, "HF_DATASETS_CACHE", tmp_path / "hub_cache")
        for name in ("http_proxy", "https_proxy", "all_proxy"):
            monkeypatch.delenv(name, raising=False)
            monkeypatch.delenv(name.upper(), raising=False)
        yield


@pytest.mark.usefixtures("listening_hub")
def test_datasets_are_read_through_the_hub_library(tmp_path: Path) -> None:
    root = parquet_files(tmp_path / "tiny")
    arrays = load_arrays(HubSource(str(root), "tiny", "Tiny"), None)
    assert arrays.class_names == ("zero", "one")
    assert arrays.train_images[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4, 5]
    assert arrays.test_labels is not None
    assert arrays.test_labels.tolist() == [0, 1, 0, 1, 0, 1]
    assert arrays.digest == load_arrays(open_source(str(root)), None).digest


@pytest.mark.usefixtures("listening_hub")
def test_a_dataset_that_is_a_script_is_named(tmp_path: Path) -> None:
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "tiny.py").touch()
    with pytest.raises(TaskUnavailableError, match="scripts are no longer supported"):
        load_arrays(HubSource(str(tmp_path / "tiny"), "tiny", "Tiny"), None)


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("name", ["cifar100", "someone/things", "someone/things:part"])
def test_offline_says_how_to_provide_the_data(name: str) -> None:
    with pytest.raises(
        TaskUnavailableError, match="put a copy of .* ARCHLOOP_DATA names"
    ) as caught:
        load(name)
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("offline")
def test_auto_falls_back_to_digits(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        assert load("auto", "holdout:100").info.name == "digits"
    assert "CIFAR-10 is not available, so digits" in caplog.text


def test_auto_takes_cifar10_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parquet_files(tmp_path / "data" / "cifar10")
    monkeypatch.setenv("ARCHLOOP_DATA", str(tmp_path / "data"))
    info = load("auto", "test").info
    assert (info.name, info.title, info.n_train) == ("cifar10", "CIFAR-10", 6)


def test_auto_does_not_hide_a_damaged_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (parquet_files(tmp_path / "data" / "cifar10") / "train-00000-of-00001.parquet").write_bytes(
        b"x"
    )
    monkeypatch.setenv("ARCHLOOP_DATA", str(tmp_path / "data"))
    with pytest.raises(UsageError, match="not a readable parquet file"):
        load("auto", "test")


@pytest.mark.parametrize("name", ["cifar11", "./missing", "/no/such/folder", "a/b/c", ""])
def test_unknown_names(name: str) -> None:
    with pytest.raises(UsageError, match="allowed: auto, cifar10, .* or a folder"):
        open_source(name)


# The cache


def test_later_loads_decode_nothing(tmp_path: Path) -> None:
    root = class_folders(tmp_path / "pets")
    first = load(root)
    (folder,) = (tmp_path / "cache" / "tasks").iterdir()
    images = np.load(folder / "train_images.npy")
    np.save(folder / "train_images.npy", np.full_like(images, 7))
    assert (load(root).train_images == 7).all()
    assert load(root).info.class_names == first.info.class_names


def test_arrays_are_copies(tmp_path: Path) -> None:
    root = class_folders(tmp_path / "pets")
    data = load(root)
    data.train_images[:] = 0
    assert not np.array_equal(load(root).train_images, data.train_images)


def test_two_processes_decode_once(tmp_path: Path) -> None:
    root = class_folders(tmp_path / "pets", n=200)
    code = (
        "import sys, logging; logging.basicConfig(level=logging.INFO, stream=sys.stdout);"
        "from archloop.tasks import load_task; from archloop.config import *;"
        f"load_task(TaskConfig(name={str(root)!r}), ProtocolConfig(validation='holdout:9'))"
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    outputs = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert sum("decoding pets" in output for output in outputs) == 1


def test_an_interrupted_decode_is_done_again(tmp_path: Path) -> None:
    root = class_folders(tmp_path / "pets")
    load(root)
    (folder,) = (tmp_path / "cache" / "tasks").iterdir()
    (folder / "meta.json").unlink()
    folder.rename(folder.with_name(f".{folder.name}.partial"))
    assert load(root).info.n_train == 6
    assert [path.name for path in (tmp_path / "cache" / "tasks").iterdir()] == [folder.name]


_ON_A_SMALL_DISK = ["unshare", "-Urm", "sh", "-c", 'mount -t tmpfs -o size=1m none "$0" && "$@"']


def test_a_full_disk_is_an_error_and_leaves_nothing_half_written(tmp_path: Path) -> None:
    root, cache = class_folders(tmp_path / "pets"), tmp_path / "cache"
    cache.mkdir()
    on_a_small_disk = [*_ON_A_SMALL_DISK, str(cache)]
    if not shutil.which("unshare") or subprocess.run([*on_a_small_disk, "true"]).returncode:
        pytest.skip("no user namespaces here")
    code = (
        "from archloop.tasks import load_task; from archloop.config import *; import os\n"
        f"try: load_task(TaskConfig(name={str(root)!r}, image_size=256), ProtocolConfig())\n"
        f"except OSError as error: print(error, os.listdir({str(cache / 'tasks')!r}))"
    )
    done = subprocess.run(
        [*on_a_small_disk, sys.executable, "-c", code], stdout=subprocess.PIPE, text=True
    )
    assert done.returncode == 0
    assert re.search(r"No space left on device: '.*/train_images\.npy' \[\]", done.stdout)


# The real thing


@needs_cifar10
def test_real_cifar10(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARCHLOOP_DATA", ARCHLOOP_DATA)
    data = load("cifar10", "holdout:5000", train_images=1000)
    info = data.info
    assert (info.title, info.shape, info.classes) == ("CIFAR-10", (3, 32, 32), 10)
    assert info.class_names[0] == "airplane"
    assert np.bincount(data.train_labels).tolist() == [100] * 10
    assert np.bincount(data.validation_labels).tolist() == [500] * 10
    # The means of the whole training set, as widely published; ours is a sample of it.
    assert info.mean == pytest.approx((0.4914, 0.4822, 0.4465), abs=0.02)
    assert info.std == pytest.approx((0.2470, 0.2435, 0.2616), abs=0.02)
    whole = load("cifar10", "test")
    assert (whole.info.n_train, whole.info.n_validation) == (50_000, 10_000)
    assert whole.info.mean == pytest.approx((0.4914, 0.4822, 0.4465), abs=0.001)


def test_a_holdout_can_be_a_share_of_the_training_images() -> None:
    data = load("digits", "holdout:10%")
    assert data.info.n_validation == 179
    assert data.info.n_train == 1797 - 179
