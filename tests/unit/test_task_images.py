"""What becomes of each image: splits, pixel types, and the line that counts what is not used."""

from __future__ import annotations

import os
import struct
import unicodedata
import zlib
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from archloop.config import ProtocolConfig, TaskConfig
from archloop.errors import UsageError
from archloop.tasks import load_task
from archloop.tasks.splits import split_role
from archloop.types import TaskData


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARCHLOOP_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("ARCHLOOP_DATA", raising=False)


def load(root: Path, validation: str = "holdout:4", size: int | None = None) -> TaskData:
    config = TaskConfig(name=str(root), image_size=size)
    return load_task(config, ProtocolConfig.model_validate({"validation": validation}))


def noise(seed: int, channels: int = 3) -> NDArray[np.uint8]:
    pixels = np.random.Generator(np.random.PCG64(seed)).integers(0, 256, (32, 32, 3))
    return pixels.astype(np.uint8) if channels == 3 else pixels[..., 0].astype(np.uint8)


def folders(
    *parts: str | Path, classes: tuple[str, ...] = ("cat", "dog"), n: int = 4, first: int = 0
) -> Path:
    """Class folders of images that are all different."""
    root = Path(*parts)
    for label, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for i in range(first, first + n):
            Image.fromarray(noise(100 * label + i)).save(root / name / f"{i}.png")
    return root


def every(data: TaskData) -> NDArray[np.uint8]:
    return np.concatenate([data.train_images, data.validation_images])


# Data that works stays what it was


@pytest.mark.parametrize(
    ("mode", "holdout", "test"),
    [
        ("RGB", "b5940032f82a2b0b6389cfd45b4e3ae7", "b7d9a0a9c6cd3074b975ca62ab3f6ddf"),
        ("L", "b8e7f3b6590e815b4148a2afbb094f06", "b81979cee0f26b85f4b27d4c48b4351d"),
        ("RGBA", "b5940032f82a2b0b6389cfd45b4e3ae7", "b7d9a0a9c6cd3074b975ca62ab3f6ddf"),
        ("I;16", "b8e7f3b6590e815b4148a2afbb094f06", "b81979cee0f26b85f4b27d4c48b4351d"),
    ],
)
def test_the_digest_of_ordinary_folders_never_changes(
    tmp_path: Path, mode: str, holdout: str, test: str
) -> None:
    for s, split in enumerate(("train", "test")):
        for c, name in enumerate(("cat", "dog")):
            (tmp_path / "t" / split / name).mkdir(parents=True)
            for i in range(5):
                pixels = noise(100 * s + 10 * c + i, 3 if mode.startswith("RGB") else 1)
                image = Image.fromarray(
                    pixels.astype(np.uint16) * 257 if mode == "I;16" else pixels
                )
                if mode == "RGBA":
                    image.putalpha(255)
                image.save(tmp_path / "t" / split / name / f"{i}.png")
    assert load(tmp_path / "t").info.digest.startswith(holdout)
    assert load(tmp_path / "t", "test").info.digest.startswith(test)


# Splits


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("train", "train"),
        ("TRAINING", "train"),
        ("train_images", "train"),
        ("Training Set", "train"),
        ("seg_train", "train"),
        ("trainset", "train"),
        ("Testing", "test"),
        ("eval", "test"),
        ("Valid", "validation"),
        ("dev", "validation"),
        ("val-data", "validation"),
        ("trains", None),
        ("contest", None),
        ("train station", None),
        ("data", None),
        ("", None),
    ],
)
def test_names_of_splits(name: str, role: str | None) -> None:
    assert split_role(name) == role


@pytest.mark.parametrize(("train", "test"), [("Train", "VAL"), ("training_set", "Testing")])
def test_split_folders_in_any_spelling(tmp_path: Path, train: str, test: str) -> None:
    folders(tmp_path, "t", train)
    folders(tmp_path, "t", test, n=2, first=50)
    data = load(tmp_path / "t", "test")
    assert data.info.class_names == ("cat", "dog")
    assert (data.info.n_train, data.info.n_validation) == (8, 4)


def test_test_is_preferred_to_validation_and_the_other_is_named(tmp_path: Path) -> None:
    folders(tmp_path, "t", "train")
    folders(tmp_path, "t", "Val", n=3, first=50)
    folders(tmp_path, "t", "Test", n=2, first=60)
    data = load(tmp_path / "t", "test")
    assert data.info.n_validation == 4
    assert "Val/ is not used (the test split is Test/)" in data.info.summary


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("train", "spare"), "t/spare: spare/ beside train/ is not the name of a split; expected"),
        (("train", "Training"), "are both the training split"),
        (("val", "test"), "test/ is named like a split, but there is no train/"),
    ],
)
def test_split_folders_that_are_not_clear(
    tmp_path: Path, names: tuple[str, str], message: str
) -> None:
    for name in names:
        folders(tmp_path, "t", name)
    with pytest.raises(UsageError, match=message):
        load(tmp_path / "t")


def test_a_split_name_beside_classes_is_no_class(tmp_path: Path) -> None:
    folders(tmp_path, "t")
    folders(tmp_path, "t", "test", n=1, first=50)
    with pytest.raises(UsageError, match="if test is a class, put all class folders into train/"):
        load(tmp_path / "t")


@pytest.mark.parametrize("wrong", ["flat", "unknown class", "damaged", "empty"])
def test_a_test_split_that_cannot_be_used_stops_only_who_wants_it(
    tmp_path: Path, wrong: str
) -> None:
    folders(tmp_path, "t", "train")
    test = tmp_path / "t" / "test"
    if wrong == "flat":
        test.mkdir()
        Image.fromarray(noise(7)).save(test / "7.png")
    elif wrong == "unknown class":
        folders(test, classes=("cat", "horse"))
    else:
        folders(test, n=1)
        (test / "cat" / "0.png").unlink() if wrong == "empty" else None
        for file in test.rglob("*.png") if wrong == "damaged" else ():
            file.write_bytes(file.read_bytes()[:60])
    data = load(tmp_path / "t")
    assert (data.info.n_train, data.info.n_validation) == (4, 4)
    assert "test/ is not used (" in data.info.summary
    with pytest.raises(UsageError, match=r"no test split that can be used: test/ is not used \("):
        load(tmp_path / "t", "test")


# Names


def test_test_classes_match_in_case_and_normal_form(tmp_path: Path) -> None:
    folders(tmp_path, "t", "train", classes=("möwe", "Star"))
    names = (unicodedata.normalize("NFD", "möwe"), "star")
    folders(tmp_path, "t", "test", classes=names, n=1, first=50)
    data = load(tmp_path / "t", "test")
    assert data.info.class_names == ("Star", "möwe")
    assert sorted(data.validation_labels.tolist()) == [0, 1]
    assert "test/star/ is taken for the class Star" in data.info.summary


def test_class_folders_that_look_alike(tmp_path: Path) -> None:
    twice = ("möwe", unicodedata.normalize("NFD", "möwe"))
    with pytest.raises(UsageError, match="are one name in two Unicode normal forms"):
        load(folders(tmp_path, "twice", classes=twice))
    # Letters are classes of their own in both cases.
    summary = load(folders(tmp_path, "letters", classes=("Q", "q"))).info.summary
    assert "the classes Q and q differ in case only" in summary


# Counting


def test_everything_that_is_not_used_is_counted_by_reason_and_class(tmp_path: Path) -> None:
    root = folders(tmp_path, "t")
    (root / "cat" / "shot.heic").write_text("x")
    (root / "cat" / ".hidden.png").touch()
    (root / "cat" / ".ipynb_checkpoints").mkdir()
    Image.fromarray(noise(900)).save(root / "cat" / ".ipynb_checkpoints" / "0.png")
    (root / "dog" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (root / "dog" / "loop").symlink_to(root)
    os.mkfifo(root / "dog" / "pipe.png")
    Image.fromarray(noise(901)).save(root / "stray.png")
    (root / "dog" / "old").mkdir()
    Image.fromarray(noise(902)).save(root / "dog" / "old" / "9.png")
    Image.new("RGB", (32, 32), (9, 9, 9)).save(root / "dog" / "black.png")
    (root / "cat" / "copy.png").write_bytes((root / "cat" / "0.png").read_bytes())
    (root / "dog" / "other.png").write_bytes((root / "cat" / "1.png").read_bytes())
    summary = load(root).info.summary
    assert "out of 12 in 2 classes (cat 5, dog 7)" in summary
    for part in (
        "skipped 7: ",
        "of another kind (.heic) 1 (cat 1: cat/shot.heic)",
        "hidden 2 (cat 2: cat/.hidden.png, cat/.ipynb_checkpoints)",
        "link that leads nowhere 1 (dog 1: dog/gone.png)",
        "link that leads back 1 (dog 1: dog/loop)",
        "not a file 1 (dog 1: dog/pipe.png)",
        "outside the class folders 1 (stray.png)",
        "constant 1 (dog 1: dog/black.png), used all the same",
        "1 in folders inside class folders count as the class's: dog/old/",
        "1 equal to another image of their class",
        "1 equal to an image of another class",
    ):
        assert part in summary
    assert load(root).info.summary == summary, "the cache keeps it"
    (root / "cat" / "second.heic").write_text("x")
    assert "(.heic) 2 (cat 2" in load(root).info.summary


def test_links_to_folders_are_followed(tmp_path: Path) -> None:
    root = folders(tmp_path, "t", n=3)
    folders(tmp_path, "more", classes=("x",), n=2, first=50)
    (root / "cat" / "more").symlink_to(tmp_path / "more" / "x")
    assert "(cat 5, dog 3)" in load(root).info.summary


def test_the_summary_stays_one_short_line(tmp_path: Path) -> None:
    root = folders(tmp_path, "t", classes=tuple(f"class{i}" for i in range(30)), n=2)
    for i in range(30):
        (root / f"class{i}" / "no\nimage\x1b[2J.txt").touch()
    summary = load(root).info.summary
    assert summary.isprintable()
    assert "in 30 classes (2 to 2 each)" in summary
    assert "and 20 classes more" in summary
    assert "and 27 more" in summary
    assert len(summary) < 800


def test_images_of_the_test_split_that_are_trained_on_are_counted(tmp_path: Path) -> None:
    folders(tmp_path, "t", "train")
    folders(tmp_path, "t", "test", n=2, first=3)
    assert "2 of the test split equal to a training image" in load(tmp_path / "t").info.summary


# Pixels


def drawing() -> Image.Image:
    """A bright square on nothing."""
    mask = np.zeros((32, 32), np.uint8)
    mask[8:24, 8:24] = 255
    return Image.fromarray(mask)


def pair(root: Path, first: Image.Image, second: Image.Image, **save: object) -> Path:
    """Two classes of two images each."""
    for name, image in (("x", first), ("y", second)):
        (root / name).mkdir(parents=True)
        for i in range(2):
            image.save(root / name / f"{i}.png", **save)
    return root


@pytest.mark.parametrize(("colour", "inside", "outside"), [(0, 0, 255), (255, 255, 0)])
def test_transparent_images_are_composed_where_they_can_be_seen(
    tmp_path: Path, colour: int, inside: int, outside: int
) -> None:
    icon = Image.new("RGBA", (32, 32), (colour,) * 3 + (0,))
    icon.putalpha(drawing())
    data = load(pair(tmp_path / "t", icon, icon.rotate(90)), "holdout:2")
    assert (data.train_images[:, :, 16, 16] == inside).all()
    assert (data.train_images[:, :, 0, 0] == outside).all()
    assert "4 transparent, composed on white or black" in data.info.summary


@pytest.mark.parametrize("mode", ["P", "LA", "RGB", "1"])
def test_every_kind_of_transparency(tmp_path: Path, mode: str) -> None:
    """The square is black in each, and what lies around it is transparent."""
    if mode == "LA":
        image = Image.new("LA", (32, 32), (0, 0))
        image.putalpha(drawing())
        key = None
    else:
        image = Image.eval(drawing(), lambda v: 255 - v).convert("RGB" if mode == "RGB" else "L")
        image = image if mode == "RGB" else image.convert(mode)
        image = Image.eval(image, lambda v: v and 77) if mode == "RGB" else image
        key = {"RGB": (77, 77, 77), "P": 255, "1": 255}[mode]
    save = {} if key is None else {"transparency": key}
    data = load(pair(tmp_path / "t", image, image.rotate(90), **save), "holdout:2")
    assert (data.train_images[:, :, 16, 16] == 0).all()
    assert (data.train_images[:, :, 0, 0] == 255).all()


def test_images_without_content_are_named_and_a_task_of_them_is_refused(tmp_path: Path) -> None:
    root = folders(tmp_path, "t", n=3)
    Image.new("RGBA", (32, 32), (90, 20, 5, 0)).save(root / "cat" / "clear.png")
    assert "constant 1 (cat 1: cat/clear.png)" in load(root).info.summary
    clear = Image.new("RGBA", (32, 32), (90, 20, 5, 0))
    with pytest.raises(UsageError, match="all 4 images are constant and transparent"):
        load(pair(tmp_path / "clear", clear, clear))
    red, blue = Image.new("RGB", (32, 32), (255, 0, 0)), Image.new("RGB", (32, 32), (0, 0, 255))
    with pytest.raises(UsageError, match=r"all 4 images are constant, one colour .*x/0\.png"):
        load(pair(tmp_path / "flat", red, blue))


@pytest.mark.parametrize(("bits", "suffix"), [(6, "png"), (8, "tif"), (10, "png"), (12, "tif")])
def test_16_bit_images_are_scaled_by_the_bits_that_they_fill(
    tmp_path: Path, bits: int, suffix: str
) -> None:
    values = (np.arange(32 * 32).reshape(32, 32) % 2**bits).astype(np.uint16)
    values[0, 0] = 2**bits - 1
    for name in ("x", "y"):
        (tmp_path / "t" / name).mkdir(parents=True)
        for i in range(2):
            Image.fromarray(np.roll(values, i, 1)).save(tmp_path / "t" / name / f"{i}.{suffix}")
    data = load(tmp_path / "t", "holdout:2")
    assert set(np.unique(every(data))) == set(np.unique(values >> max(bits - 8, 0)).tolist())
    assert f"values of {max(bits, 8)} bits or fewer, scaled to 8" in data.info.summary


def colour_of_16_bits(scale: int) -> bytes:
    """A PNG, written by hand as Pillow writes none."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + check

    rows = noise(3).astype(">u2") * scale
    content = b"".join(b"\0" + row.astype(">u2").tobytes() for row in rows)
    header = struct.pack(">IIBBBBB", 32, 32, 16, 2, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(content)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


@pytest.mark.parametrize("scale", [1, 4, 257])
def test_colour_of_16_bits_is_read_whole_or_refused(tmp_path: Path, scale: int) -> None:
    root = folders(tmp_path, "t")
    for file in root.rglob("*.png"):
        file.write_bytes(colour_of_16_bits(scale))
    if scale == 257:
        assert (every(load(root))[0] == noise(3).transpose(2, 0, 1)).all()
        return
    with pytest.raises(UsageError, match="t: colour images of 16 bits whose values stay below"):
        load(root)


def test_turned_photos_are_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the top of the picture is on its right side
    pixels = noise(5)
    root = pair(tmp_path / "t", Image.fromarray(pixels), Image.fromarray(pixels), exif=exif)
    upright = np.rot90(pixels, -1).transpose(2, 0, 1)
    assert (load(root, "holdout:2").train_images == upright).all()


@pytest.mark.parametrize("kind", ["gif", "webp", "tif"])
def test_the_first_frame_of_several_is_used_and_counted(tmp_path: Path, kind: str) -> None:
    frames = [Image.fromarray(noise(n, 1)) for n in range(3)]
    options = {"lossless": True} if kind == "webp" else {}
    for name in ("x", "y"):
        (tmp_path / "t" / name).mkdir(parents=True)
        for i in range(2):
            frames[0].save(
                tmp_path / "t" / name / f"{i}.{kind}",
                save_all=True,
                append_images=frames[1:],
                **options,
            )
    data = load(tmp_path / "t", "holdout:2")
    assert (data.train_images == noise(0, 1)).all()
    assert "4 with several frames, of which the first is used" in data.info.summary
