"""Training batches, from the images to the candidate."""

from __future__ import annotations

import itertools
import socket
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from archloop.sandbox import wire
from archloop.sandbox.feed.augmentation import augment
from archloop.sandbox.feed.batches import BatchRecipe, Normalise, resize
from archloop.sandbox.feed.feed import TrainData, TrainingData, serve_feed
from archloop.sandbox.feed.ring import ring_bytes
from archloop.sandbox.host.server import empty_memory

RECIPE = BatchRecipe(16, "crop_flip", (0.5, 0.4, 0.3), (0.2, 0.3, 0.25))


def picture_set(n: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (n, 3, 8, 8), np.uint8), np.arange(n, dtype=np.int64)


@dataclass
class Fed:
    """What one candidate got, and what the feeder says of it."""

    batches: list[tuple[torch.Tensor, torch.Tensor]]
    report: dict[str, object]
    left: TrainData


def fed(
    recipe: BatchRecipe,
    n: int,
    *,
    seed: int = 0,
    take: int = 99,
    last: bool = False,
    ask: int = 0,
    rest_after: int = 0,
    relabel: Sequence[int] | None = None,
) -> Fed:
    """Feed up to ``take`` batches of n pictures, as the two processes do it.

    The candidate may ask so many times without reading, or rest for 0.5 s after a batch.
    """
    shape = (recipe.batch_size, 3, 8, 8)
    ring = empty_memory(ring_bytes(shape))
    ours, control = socket.socketpair()
    here, there = socket.socketpair()
    with ours, control, here:
        data = TrainingData(*picture_set(n))
        thread = threading.Thread(target=serve_feed, args=(control, data))
        thread.start()
        job = {
            "batch_size": recipe.batch_size,
            "augmentation": recipe.augmentation,
            "mean": list(recipe.mean),
            "std": list(recipe.std),
            "resize": recipe.resize,
            "seed": seed,
            "relabel": list(relabel or range(n)),
            "shape": list(shape),
            "channels_last": last,
        }
        wire.send(ours, job, (ring, there.fileno()))
        there.close()
        total = wire.receive(ours, time.monotonic() + 30)["total"]
        iterator = TrainData(here, ring, shape, total, channels_last=last)
        assert len(iterator) == total
        for _ in range(ask):
            here.sendall(b"n")
        batches = []
        for batch in itertools.islice(iterator, 0 if ask else take):
            batches.append(batch)
            if len(batches) == rest_after:
                time.sleep(0.5)
        wire.send(ours, {"report": True})
        report = wire.receive(ours, time.monotonic() + 20)
        thread.join()
    return Fed(batches, report, iterator)


def test_an_epoch_gives_every_image_once_in_an_order_of_the_seed() -> None:
    orders = []
    for seed in (1, 1, 2):
        got = fed(RECIPE, 100, seed=seed)
        assert got.report["given"] == got.report["total"] == len(got.batches) == 7
        assert got.report["images"] == 100
        orders.append(torch.cat([y for _, y in got.batches]).tolist())
        assert sorted(orders[-1]) == list(range(100))
    assert orders[0] == orders[1] != orders[2]


def test_classes_have_the_numbers_that_the_job_gives_them() -> None:
    plain, other = (fed(RECIPE, 40, relabel=r) for r in (None, range(40, 0, -1)))
    for (inputs, labels), (same, numbers) in zip(plain.batches, other.batches, strict=True):
        assert torch.equal(inputs, same)
        assert torch.equal(numbers, 40 - labels)


def test_what_was_not_taken_is_not_counted() -> None:
    got = fed(RECIPE, 100, take=3)
    assert got.report["given"] == 3
    assert got.report["total"] == 7
    assert got.report["images"] == 48


def test_a_last_batch_of_one_image_is_left_out() -> None:
    assert [len(y) for _, y in fed(RECIPE, 33).batches] == [16, 16]


def test_both_layouts_hold_the_same_images() -> None:
    one, other = fed(RECIPE, 40), fed(RECIPE, 40, last=True)
    for (x, y), (a, b) in zip(one.batches, other.batches, strict=True):
        assert torch.equal(x, a)
        assert torch.equal(y, b)
        assert x.is_contiguous()
        assert a.is_contiguous(memory_format=torch.channels_last)


def test_batches_are_copies_and_lead_nowhere() -> None:
    plain = BatchRecipe(16, "none", (0,) * 3, (1,) * 3)
    got = fed(plain, 64)
    images, labels = picture_set(64)
    for x, y in got.batches:
        assert np.allclose(x.numpy() * 255, images[y.numpy()], atol=1e-3)
    assert sorted(torch.cat([y for _, y in got.batches]).tolist()) == labels.tolist()
    assert [name for name in dir(got.left) if not name.startswith("_")] == []
    with pytest.raises((OSError, wire.WireError)):
        next(got.left)


def test_resizing_is_what_pillow_does() -> None:
    from PIL import Image

    images, _ = picture_set(4)
    bigger = resize(torch.from_numpy(images), 20).numpy()
    for image, found in zip(images, bigger, strict=True):
        picture = Image.fromarray(image.transpose(1, 2, 0))
        wanted = np.asarray(picture.resize((20, 20), Image.Resampling.BILINEAR))
        assert np.abs(found.transpose(1, 2, 0).astype(int) - wanted).max() <= 1


def test_answers_that_nobody_reads_do_not_hold_up_the_feeder() -> None:
    got = fed(RECIPE, 100, ask=400)
    assert got.report["given"] == got.report["total"]


@pytest.mark.parametrize(("after", "seen"), [(1, False), (4, True), (7, False)])
def test_a_pause_between_batches_is_measured(after: int, seen: bool) -> None:
    pause = fed(RECIPE, 100, rest_after=after).report["pause"]
    assert isinstance(pause, float)
    assert (pause >= 0.5) == seen


def test_normalised_images_have_the_mean_and_deviation_asked_for() -> None:
    images, _ = picture_set(64)
    scaled = images / 255.0
    mean, std = scaled.mean((0, 2, 3)), scaled.std((0, 2, 3))
    x = Normalise(BatchRecipe(1, "none", tuple(mean), tuple(std)))(images)
    assert x.dtype is torch.float32
    assert torch.allclose(x.mean((0, 2, 3)), torch.zeros(3), atol=1e-5)
    assert torch.allclose(x.std((0, 2, 3), correction=0), torch.ones(3), atol=1e-5)


def test_augmentation_flips_and_shifts_whole_images() -> None:
    images, _ = picture_set(200)
    flipped = augment(images, "flip", np.random.default_rng(0))
    same = (flipped == images).all((1, 2, 3))
    mirrored = (flipped == images[..., ::-1]).all((1, 2, 3))
    assert (same ^ mirrored).all()
    assert 60 < same.sum() < 140
    shifted = augment(images, "crop_flip", np.random.default_rng(0))
    assert shifted.shape == images.shape
    padded = np.pad(images, ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = [padded[:, :, r : r + 8, c : c + 8] for r in range(3) for c in range(3)]
    windows += [w[..., ::-1] for w in windows]
    found = np.stack([(shifted == w).all((1, 2, 3)) for w in windows])
    assert found.any(0).all()
    assert (found.sum(1) > 0).all()
