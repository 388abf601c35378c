"""Parts of the sandbox by themselves: system call numbers, messages, batches, weights, looks."""

from __future__ import annotations

import json
import re
import socket
import time
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from archloop.sandbox import seccomp, wire
from archloop.sandbox.batches import BatchRecipe, Epoch, Normalise, augment
from archloop.sandbox.server import shared_memory
from archloop.sandbox.text import MAX_ERROR, one_line
from archloop.sandbox.watch import LimitError, Watch
from archloop.sandbox.weights import count, trainable_tensors
from archloop.types import Outcome

HEADERS = {
    "x86_64": Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
    "aarch64": Path("/usr/include/asm-generic/unistd.h"),
}


@pytest.mark.parametrize("machine", HEADERS)
def test_system_call_numbers_are_those_of_the_headers(machine: str) -> None:
    if not HEADERS[machine].is_file():
        pytest.skip("no Linux headers here")
    found = re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", HEADERS[machine].read_text("utf-8"))
    numbers = {name: int(number) for name, number in found}
    calls = seccomp.DENIED | seccomp.ONLY_ITSELF
    calls |= {"clone": seccomp.CLONE, "clone3": seccomp.CLONE3, "prlimit64": seccomp.PRLIMIT64}
    newest = max(numbers.values())
    for name, call in calls.items():
        number = getattr(call, machine)
        if number is None:
            assert name not in numbers
        elif number <= newest:
            assert numbers[name] == number, name


def test_no_system_call_is_listed_twice() -> None:
    for machine in HEADERS:
        calls = [*seccomp.DENIED.values(), *seccomp.ONLY_ITSELF.values()]
        numbers = [n for c in calls if (n := getattr(c, machine)) is not None]
        assert len(numbers) == len(set(numbers))


def frame(body: bytes, size: int | None = None) -> bytes:
    return (len(body) if size is None else size).to_bytes(4) + body


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"\0\0",
        frame(b"{", 100),
        frame(b"not json"),
        frame(b"[1]"),
        frame(b"[" * 100_000),
        frame(b"\xff\xfe"),
        frame(b'{"n": ' + b"9" * 5000 + b"}"),
        frame(b"", wire.MAX_FRAME + 1),
    ],
)
def test_anything_malformed_is_no_message(sent: bytes) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(sent)
        theirs.shutdown(socket.SHUT_WR)
        with pytest.raises(wire.WireError):
            wire.receive(ours, time.monotonic() + 5)


def test_a_slow_frame_arrives_whole_and_looks_are_taken_meanwhile() -> None:
    import threading

    ours, theirs = socket.socketpair()
    looks: list[float] = []
    data = frame(json.dumps({"stage": "done"}).encode())

    def trickle() -> None:
        for byte in data:
            theirs.sendall(bytes([byte]))
            time.sleep(0.03)

    with ours, theirs:
        thread = threading.Thread(target=trickle)
        thread.start()
        message = wire.receive(ours, time.monotonic() + 30, lambda: looks.append(1))
        thread.join()
    assert message == {"stage": "done"}
    assert len(looks) >= len(data) - 4


def test_a_closed_receiver_is_a_wire_error() -> None:
    ours, theirs = socket.socketpair()
    theirs.close()
    with ours, pytest.raises(wire.WireError):
        wire.send(ours, {"stage": "done"})


def test_error_lines_are_bounded_and_printable() -> None:
    text = one_line("a\x1b[31m\n\u202eb\ud800" + "c" * 1000)
    assert text.isprintable()
    assert len(text) == MAX_ERROR


def test_shared_memory_can_be_read_and_not_written() -> None:
    import os

    array = np.arange(12, dtype=np.int64).reshape(3, 4)
    fd = shared_memory(array)
    assert np.array_equal(np.frombuffer(os.pread(fd, 96, 0), np.int64), array.ravel())
    with pytest.raises(OSError, match=r"not permitted|Bad file descriptor"):
        os.pwrite(fd, b"x", 0)
    os.close(fd)


RECIPE = BatchRecipe(16, "crop_flip", (0.5, 0.4, 0.3), (0.2, 0.3, 0.25))


def picture_set(n: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (n, 3, 8, 8), np.uint8), np.arange(n, dtype=np.int64)


def test_an_epoch_gives_every_image_once_in_an_order_of_the_seed() -> None:
    images, labels = picture_set(100)
    orders = []
    for seed in (1, 1, 2):
        epoch = Epoch(images, labels, RECIPE, seed)
        batches = list(epoch.batches())
        assert epoch.given == epoch.total == len(batches) == 7
        orders.append(torch.cat([y for _, y in batches]).tolist())
        assert sorted(orders[-1]) == labels.tolist()
    assert orders[0] == orders[1] != orders[2]


def test_a_last_batch_of_one_image_is_left_out() -> None:
    images, labels = picture_set(33)
    epoch = Epoch(images, labels, RECIPE, 0)
    assert [len(y) for _, y in epoch.batches()] == [16, 16]


def test_batches_are_copies_and_lead_nowhere() -> None:
    images, labels = picture_set(32)
    kept = images.copy()
    iterator = Epoch(images, labels, BatchRecipe(16, "none", (0,) * 3, (1,) * 3), 0).batches()
    for x, y in iterator:
        x.zero_()
        y.zero_()
    assert np.array_equal(images, kept)
    assert labels.sum() > 0
    assert next(iterator, None) is None
    public = [name for name in dir(iterator) if not name.startswith("__")]
    assert public == []


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


def test_weights_are_found_wherever_they_are() -> None:
    module = types.ModuleType("candidate")
    module.__dict__["KEPT"] = {"deep": [(torch.zeros(7, requires_grad=True),)]}

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 2)
            self.same = self.layer
            self.frozen = nn.Parameter(torch.zeros(5), requires_grad=False)
            self.register_buffer("buffer", torch.zeros(100))
            self.plain = [{"w": torch.zeros(11, requires_grad=True)}]
            self.lazy = nn.LazyLinear(4)
            self.loss = self.layer.weight.sum()
            self.optimizer = torch.optim.Adam([torch.zeros(13, requires_grad=True)])

    assert count(trainable_tensors(Net(), module)) == 8 + 5 + 11 + 13 + 7


def test_a_look_sees_files_and_memory(tmp_path: Path) -> None:
    import os

    watch = Watch(os.getpid(), tmp_path, 64 << 20, 1 << 20)
    watch()
    held = (tmp_path / "held").open("wb")
    held.write(bytes(2 << 20))
    held.flush()
    (tmp_path / "held").unlink()
    time.sleep(wire.LOOK_SECONDS)
    with pytest.raises(LimitError) as caught:
        watch()
    assert caught.value.outcome is Outcome.SANDBOX_VIOLATION
    held.close()
    keep = np.ones(128 << 20, np.uint8)
    with pytest.raises(LimitError) as caught:
        watch()
    assert caught.value.outcome is Outcome.OUT_OF_MEMORY
    del keep
