"""Parts of the sandbox by themselves: messages, batches, weights, looks."""

from __future__ import annotations

import itertools
import json
import os
import socket
import subprocess
import sys
import threading
import time
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import nn

from archloop.config import SandboxConfig
from archloop.sandbox import flags, harness, measure, state, wire
from archloop.sandbox.augmentation import augment
from archloop.sandbox.batches import BatchRecipe, Normalise, resize
from archloop.sandbox.conversation import Conversation, FailedError
from archloop.sandbox.feed import TrainData, TrainingData, serve_feed
from archloop.sandbox.private_folder import ClosedError, bytes_by_inode, remove_folder
from archloop.sandbox.ring import ring_bytes
from archloop.sandbox.server import Child, empty_memory, shared_memory
from archloop.sandbox.training import stepping
from archloop.sandbox.watch import LimitError, Output, Watch
from archloop.sandbox.weights import count, trainable_tensors
from archloop.text import MAX_ERROR, one_line
from archloop.types import Outcome


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
    ours, theirs = socket.socketpair()
    looks: list[float] = []

    class Look:
        fds: tuple[int, ...] = ()

        def __call__(self) -> None:
            looks.append(1)

        def waited(self) -> float:
            return 0.0

    data = frame(json.dumps({"stage": "done"}).encode())

    def trickle() -> None:
        for byte in data:
            theirs.sendall(bytes([byte]))
            time.sleep(0.03)

    with ours, theirs:
        thread = threading.Thread(target=trickle)
        thread.start()
        message = wire.receive(ours, time.monotonic() + 30, Look())
        thread.join()
    assert message == {"stage": "done"}
    assert len(looks) >= len(data) - 4


def test_a_closed_receiver_is_a_wire_error() -> None:
    ours, theirs = socket.socketpair()
    theirs.close()
    with ours, pytest.raises(wire.WireError):
        wire.send(ours, {"stage": "done"})


def test_the_last_words_of_a_process_are_read_after_it_is_gone(tmp_path: Path) -> None:
    """A fake of one moment: it fails and ends while the main process does something else."""
    ours, theirs = socket.socketpair()
    read, write = os.pipe()
    os.close(write)
    child = Child(os.getpid(), -1, ours, tmp_path, Output(read))
    conversation = Conversation(SandboxConfig(), cast("Any", None), child, {})
    wire.send(theirs, {"stage": "failed", "outcome": "train_error", "error": "ValueError: bad"})
    theirs.close()
    conversation.send_bytes(wire.frame({"total": 3}), 1.0, "feeding")
    conversation.send_bytes(b"images", 5, "prediction")
    with pytest.raises(FailedError, match="ValueError: bad"):
        conversation.expect("trained", 5, "the epoch")
    conversation.send_bytes(wire.frame({"total": 3}), 1.0, "feeding")
    with pytest.raises(wire.WireError, match="closed"):
        conversation.expect("trained", 5, "the epoch")
    child.close()


def test_error_lines_are_bounded_and_printable() -> None:
    text = one_line("a\x1b[31m\n\u202eb\ud800" + "c" * 1000)
    assert text.isprintable()
    assert len(text) == MAX_ERROR


def test_shared_memory_can_be_read_and_not_written() -> None:
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
            "shape": list(shape),
            "channels_last": last,
        }
        wire.send(ours, job, (ring, there.fileno()))
        there.close()
        total = wire.receive(ours)["total"]
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


def trained_net() -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.LazyLinear(2))
    net(torch.randn(8, 3, 8, 8))
    return net


def test_weights_travel_as_plain_bytes() -> None:
    net = trained_net()
    spec, data = state.pack(net)
    assert {name for name, _, _ in spec} == set(net.state_dict())
    torch.manual_seed(1)
    other = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.LazyLinear(2))
    other(torch.randn(8, 3, 8, 8))
    state.load(other, json.loads(json.dumps(spec)), bytearray(data))
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name


def test_weights_of_another_network_are_refused() -> None:
    spec, data = state.pack(trained_net())
    with pytest.raises(state.StateError, match=r"lacks 1\.bias"):
        state.load(nn.Sequential(nn.Conv2d(3, 4, 3)), spec, bytearray(data))
    wider = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.Flatten(), nn.LazyLinear(2))
    wider(torch.randn(8, 3, 8, 8))
    with pytest.raises(state.StateError, match=r"weight is torch\.float32 of .*, trained it is"):
        state.load(wider, spec, bytearray(data))


def test_a_weight_with_no_plain_form_is_named() -> None:
    net = nn.Linear(2, 2)
    net.register_buffer("odd", torch.eye(3).to_sparse())
    with pytest.raises(state.StateError, match="odd is a torch.sparse_coo tensor"):
        state.pack(net)


@pytest.mark.skipif(not Path("/proc/self/schedstat").is_file(), reason="needs schedstat")
def test_time_without_a_core_does_not_count(tmp_path: Path) -> None:
    read, write = os.pipe()
    spin = [sys.executable, "-c", "while True: pass"]
    core = str(min(os.sched_getaffinity(0)))
    with (
        subprocess.Popen(["taskset", "-c", core, *spin]) as one,
        subprocess.Popen(["taskset", "-c", core, *spin]) as other,
    ):
        watch = Watch(one.pid, tmp_path, Output(read), 1 << 40, 1 << 40)
        watch.begin(10.0)
        time.sleep(1.0)
        waited = watch.waited()
        watch.begin(0.01)
        again = watch.waited()
        time.sleep(0.3)
        most = watch.waited()
        one.kill()
        other.kill()
    os.close(write)
    assert 0.1 < waited < 1.1
    assert again < waited
    assert most == pytest.approx(0.03), "at most three times the deadline"


def output_of(text: bytes) -> str:
    read, write = os.pipe()
    output = Output(read)
    for start in range(0, len(text), 4096):
        os.write(write, text[start : start + 4096])
        output.read()
    os.close(write)
    output.read()
    assert output.fds == ()
    return output.text()


def test_a_flood_keeps_its_beginning_and_its_end() -> None:
    kept = output_of(b"first\n" + b"x" * 1_000_000 + b"\x1b[31mlast\n")
    assert kept.startswith("first\n")
    assert kept.endswith("[31mlast\n")
    assert len(kept) <= 64 << 10
    assert output_of(b"short") == "short"


def test_flags_of_an_accuracy() -> None:
    assert flags.of_accuracy("cifar10", 0.5, classes=10, steps=700) == []
    assert flags.of_accuracy("cifar10", 0.9, classes=10, steps=0) == ["no_steps", "implausible"]
    assert flags.of_accuracy("mine", 1.0, classes=2, steps=1) == []
    assert not flags.is_long(0.9, 9.9)
    assert flags.is_long(4.9, 9.9)
    assert not flags.is_long(0.8, 0.9)


def test_a_linear_schedule_leaves_the_networks_own_rates_alone() -> None:
    def moved(*, own: bool) -> list[float]:
        weight = nn.Parameter(torch.zeros(1))
        optimizer = torch.optim.SGD([weight], lr=1.0)
        steps = []
        for _ in range(4):
            before = weight.item()
            weight.grad = torch.ones(1)
            optimizer.step()
            steps.append(before - weight.item())
            if own:
                optimizer.param_groups[0]["lr"] *= 0.5
        assert optimizer.param_groups[0]["lr"] == (0.0625 if own else 1.0)
        return steps

    with stepping("linear", 4):
        assert moved(own=False) == [1.0, 0.75, 0.5, 0.25]
        assert moved(own=True) == [1.0, 0.375, 0.125, 0.03125]
    with stepping("constant", 4):
        assert moved(own=False) == [1.0] * 4
    assert moved(own=False) == [1.0] * 4


def test_logits_are_compared_by_what_they_say() -> None:
    honest = np.random.default_rng(0).normal(size=(100, 10)).astype(np.float32)
    noisy = honest + np.random.default_rng(1).normal(0.0, 1e-3, honest.shape).astype(np.float32)
    assert flags.same_logits(honest, noisy)
    assert flags.same_logits(np.zeros((3, 2), np.float32), np.zeros((3, 2), np.float32))
    other = np.roll(honest, 1, axis=0)
    assert not flags.same_logits(honest, other)
    shift = np.float32(1e4)  # of all logits of an image: no prediction changes
    assert not flags.same_logits(honest + shift, other + shift)
    few = np.ones((100, 1), np.float32)
    few[:40] = 1e6  # a large spread of some images must not hide the others
    assert not flags.same_logits(honest * few, other * few)
    wide = np.zeros(10, np.float32)
    wide[3] = -1e6  # nor that of one class
    assert not flags.same_logits(honest + wide, other + wide)


def test_a_description_of_weights_is_bounded() -> None:
    spec = [["w", "float32", [1] * 64]]
    assert measure._spec(spec) == spec
    with pytest.raises(wire.WireError):
        measure._spec([["w", "float32", [1] * 65]])


def test_steps_are_counted_by_parameter_whatever_makes_them() -> None:
    class Wrapper(torch.optim.Optimizer):
        def __init__(self, inner: torch.optim.Optimizer) -> None:
            super().__init__(inner.param_groups, {})
            self.param_groups, self.inner = inner.param_groups, inner

        def step(self, closure: Any = None) -> None:
            self.inner.step()
            if closure is not None:
                closure()

    weight, other = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
    weight.grad = torch.ones(1)
    with stepping("linear", 4) as steps:
        for _ in range(2):
            before = weight.item()
            torch.optim.SGD([nn.Parameter(torch.zeros(1)), weight], lr=1.0).step()
        assert before - weight.item() == 0.75, "a new optimiser does not begin anew"
        wrapper = Wrapper(torch.optim.SGD([weight], lr=1.0))
        wrapper.step()  # one step, at one and the same share
        assert weight.item() == pytest.approx(-2.25)
        with pytest.raises(ZeroDivisionError):
            wrapper.step(lambda: 1 / 0)
        assert steps.most == 4, "what the inner one did before counts"
        torch.optim.SGD([other], lr=1.0).step()
        assert steps.most == 4
        wrapper.step()
        assert wrapper.param_groups[0]["lr"] == 1.0
    assert steps.most == 5


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
    read, write = os.pipe()
    watch = Watch(os.getpid(), tmp_path, Output(read), 64 << 20, 1 << 20)
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
    os.close(write)


def nested(folder: Path, name: str, times: int) -> int:
    """A descriptor of the innermost of so many folders; paths to it may be too long for a call."""
    fd = os.open(folder, os.O_RDONLY)
    for _ in range(times):
        os.mkdir(name, dir_fd=fd)
        inner = os.open(name, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = inner
    return fd


@pytest.mark.parametrize(("name", "times"), [("n" * 250, 20), ("n", 2500)])
def test_a_folder_too_deep_to_look_into_is_seen_and_removed(
    name: str, times: int, tmp_path: Path
) -> None:
    root = tmp_path / "root"
    root.mkdir()
    fd = nested(root, name, times)
    os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
    os.close(fd)
    with pytest.raises(ClosedError):
        bytes_by_inode(root, 1 << 40)
    remove_folder(root)
    assert not root.exists()


def test_empty_files_count_and_a_folder_is_removed_with_all_that_is_in_it(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    for folder in (root / "a" / "b", root / "0" / "0", outside):
        folder.mkdir(parents=True)
    for n in range(100):
        (root / "a" / f"{n}").touch()
    (outside / "file").touch()
    (root / "a" / "link").symlink_to(outside)
    (root / "a" / "twin").hardlink_to(root / "a" / "0")
    assert sum(bytes_by_inode(root, 1 << 40).values()) == 105 * 4096
    assert 10 <= len(bytes_by_inode(root, 10 * 4096)) <= 11
    remove_folder(root)
    assert not root.exists()
    assert (outside / "file").is_file()


def test_a_folder_closed_to_its_owner_is_seen_and_removed(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "closed" / "inner").mkdir(parents=True)
    (root / "closed").chmod(0o300)
    if os.access(root / "closed", os.R_OK):
        pytest.skip("nothing is closed to root")
    with pytest.raises(ClosedError):
        bytes_by_inode(root, 1 << 40)
    remove_folder(root)
    assert not root.exists()


def test_shared_memory_keeps_its_size() -> None:
    fd = empty_memory(4096)
    for size in (0, 8192):
        with pytest.raises(OSError, match="not permitted"):
            os.ftruncate(fd, size)
    os.close(fd)


def test_answers_that_nobody_reads_do_not_hold_up_the_feeder() -> None:
    got = fed(RECIPE, 100, ask=400)
    assert got.report["given"] == got.report["total"]


@pytest.mark.parametrize(("after", "seen"), [(1, False), (4, True), (7, False)])
def test_a_pause_between_batches_is_measured(after: int, seen: bool) -> None:
    pause = fed(RECIPE, 100, rest_after=after).report["pause"]
    assert isinstance(pause, float)
    assert (pause >= 0.5) == seen


def test_a_tensor_with_two_names_is_one_weight() -> None:
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    net[1].weight = net[0].weight
    spec, data = state.pack(net)
    assert len(spec) == 3
    other = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    other[1].weight = other[0].weight
    state.load(other, spec, bytearray(data))
    assert torch.equal(other[1].weight, net[0].weight)


def test_a_message_with_descriptors_to_a_process_that_does_not_read_ends_at_its_deadline() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, pytest.raises(wire.DeadlineError):
        wire.send_bytes(ours, bytes(4 << 20), time.monotonic() + 0.2, None, (0,))


def test_what_cannot_be_reported_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    ours, theirs = socket.socketpair()
    theirs.close()
    with ours:
        harness._report(ours, Outcome.TRAIN_ERROR, "ValueError: bad")
    assert capsys.readouterr().err == "not reported: train_error: ValueError: bad\n"
