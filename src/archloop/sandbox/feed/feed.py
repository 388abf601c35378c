"""Training batches: a process without generated code (the feeder) sends them to a candidate.

The candidate asks with one byte and gets the number of images in the next batch, which is in a slot
of shared memory; it copies the batch out and may ask for the next. It never has access to the data
set, so every image reaches it once. Batches are counted in the feeder, where the candidate cannot
forge the count.
"""

from __future__ import annotations

import mmap
import os
import select
import socket
import time
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from archloop.sandbox import wire
from archloop.sandbox.feed.batches import BatchRecipe, Epoch
from archloop.sandbox.feed.ring import SLOTS, ring_bytes, slot_bytes
from archloop.sandbox.job import FeedJob

_ASK = b"n"


@dataclass(frozen=True)
class TrainingData:
    """The training images, mapped read-only."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]


class Slot(NamedTuple):
    """One slot of shared memory, for one batch."""

    inputs: torch.Tensor
    """(B, C, H, W) float32."""
    labels: torch.Tensor
    """(B,) int64."""


def _slots(memory: mmap.mmap, shape: tuple[int, ...], *, channels_last: bool) -> list[Slot]:
    b, c, h, w = shape
    size = b * c * h * w
    found = []
    for index in range(SLOTS):
        start = index * slot_bytes(shape)
        flat = torch.frombuffer(memory, dtype=torch.float32, count=size, offset=start)
        inputs = flat.view(b, h, w, c).permute(0, 3, 1, 2) if channels_last else flat.view(shape)
        labels = torch.frombuffer(memory, dtype=torch.int64, count=b, offset=start + size * 4)
        found.append(Slot(inputs, labels))
    return found


def _map(fd: int, shape: tuple[int, ...]) -> mmap.mmap:
    memory = mmap.mmap(fd, ring_bytes(shape))
    os.close(fd)
    return memory


class TrainData:
    """The argument of ``learn()``: an iterator of (inputs, labels) that gives every batch once."""

    __slots__ = ("_index", "_slots", "_sock", "_total")

    def __init__(
        self,
        sock: socket.socket,
        ring: int,
        shape: tuple[int, ...],
        total: int,
        *,
        channels_last: bool,
    ) -> None:
        self._sock, self._total, self._index = sock, total, 0
        self._slots = _slots(_map(ring, shape), shape, channels_last=channels_last)

    def __len__(self) -> int:
        """Batches of the epoch."""
        return self._total

    def __iter__(self) -> TrainData:
        return self

    def __next__(self) -> tuple[torch.Tensor, torch.Tensor]:
        self._sock.sendall(_ASK)
        rows = int.from_bytes(wire.receive_bytes(self._sock, 4))
        if not rows:
            raise StopIteration
        slot = self._slots[self._index % SLOTS]
        self._index += 1
        return slot.inputs[:rows].clone(), slot.labels[:rows].clone()


def serve_feed(control: socket.socket, data: TrainingData) -> None:
    """Serve one epoch to one candidate, and report to the main process how many batches it took.

    Raises:
        wire.WireError: The main process closed.
    """
    message, (ring, peer) = wire.receive_with_fds(control, 2)
    job = FeedJob.from_wire(message)
    recipe = BatchRecipe(job.batch_size, job.augmentation, job.mean, job.std, job.resize)
    slots = _slots(_map(ring, job.shape), job.shape, channels_last=job.channels_last)
    labels = np.array(job.relabel, np.int64)[data.labels]
    epoch = Epoch(data.images, labels, recipe, job.seed)
    with socket.socket(fileno=peer) as candidate:
        # A candidate that does not read the answers gets no further batches.
        candidate.setblocking(False)
        wire.send(control, {"total": epoch.total})
        _give(epoch, slots, candidate, control)


def _give(
    epoch: Epoch, slots: list[Slot], candidate: socket.socket, control: socket.socket
) -> None:
    poller = select.poll()
    poller.register(candidate, select.POLLIN)
    poller.register(control, select.POLLIN)
    given = images = 0
    first = last = time.monotonic()
    pause = 0.0
    ready = epoch.write(0, *slots[0])
    while True:
        asking = {fd for fd, _ in poller.poll()}
        if control.fileno() in asking:
            wire.receive(control)
            report: dict[str, Any] = {"given": given, "total": epoch.total, "images": images}
            wire.send(control, report | {"first": first, "last": last, "pause": pause})
            return
        if not _asked(candidate):
            poller.unregister(candidate)
            continue
        if ready:
            now = time.monotonic()
            first = first if given else now
            # Not before the second batch: the first step includes one-time preparation.
            pause = max(pause, now - last) if given > 1 else pause
            last = now
        try:
            candidate.sendall(ready.to_bytes(4))
        except OSError:
            poller.unregister(candidate)
            continue
        if ready:
            given, images = given + 1, images + ready
            ready = epoch.write(given, *slots[given % SLOTS]) if given < epoch.total else 0


def _asked(candidate: socket.socket) -> bool:
    try:
        return candidate.recv(1) != b""
    except OSError:
        return False
