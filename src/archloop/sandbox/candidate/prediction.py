"""Prediction with a trained network that is rebuilt in a new process."""

from __future__ import annotations

import hashlib
import os
import socket

import numpy as np
import torch
from torch import nn

from archloop.sandbox import wire
from archloop.sandbox.candidate import answers, state
from archloop.sandbox.candidate.network import Builder, as_channels_last, check_logits
from archloop.sandbox.candidate.phase import Fault, Phase
from archloop.sandbox.feed.batches import BatchRecipe, Normalise
from archloop.sandbox.job import CandidateJob
from archloop.types import Outcome


def predict(
    sock: socket.socket, builder: Builder, net: nn.Module, job: CandidateJob, phase: Phase
) -> None:
    """Load the weights, then answer every batch of images with logits until told to stop.

    The process gets only images, one batch at a time, in an order without information, and the next
    batch only after the answer; it has neither the data set nor labels.
    """
    message, fds = wire.receive_with_fds(sock, 1)
    with os.fdopen(fds[0], "rb") as file:
        file.seek(0)  # the folder was also that of an earlier, lost process
        data = bytearray(file.read(message["bytes"]))
    phase.enter(Outcome.PROTOCOL_VIOLATION)
    try:
        state.load(net, message["spec"], data)
    except state.StateError as error:
        raise Fault(phase.outcome, f"the network does not take its weights: {error}") from None
    digest = _digest(net)
    phase.enter(Outcome.FORWARD_ERROR)
    if message["channels_last"]:
        as_channels_last(net)
    text = answers.answer(net, job, builder.device, channels_last=message["channels_last"])
    wire.send(sock, {"stage": "ready", "answer": text})
    state.set_eval(net)
    answer = _Answer(net, builder.device, job)
    with torch.no_grad():
        while (rows := wire.receive(sock)["rows"]) > 0:
            logits = answer(wire.receive_bytes(sock, rows * answer.image_bytes), rows)
            wire.send(sock, {"stage": "logits"})
            sock.sendall(logits)
    wire.send(sock, {"stage": "done", "unchanged": _digest(net) == digest})


class _Answer:
    def __init__(self, net: nn.Module, device: torch.device, job: CandidateJob) -> None:
        self._net, self._device, self._classes = net, device, job.classes
        self._shape = job.image_shape
        self.image_bytes = int(np.prod(self._shape))
        self._normalise = Normalise(
            BatchRecipe(
                job.batch_size,
                job.augmentation,
                job.mean,
                job.std,
                job.resize,
            )
        )

    def __call__(self, raw: bytes, rows: int) -> bytes:
        images = np.frombuffer(bytearray(raw), np.uint8).reshape(rows, *self._shape)
        logits = self._net(self._normalise(images).to(self._device))
        check_logits(logits, rows, self._classes)
        plain = logits.detach().as_subclass(torch.Tensor).float().cpu().contiguous()
        return bytes(plain.numpy().tobytes())


def _digest(net: nn.Module) -> str:
    return hashlib.sha256(state.pack(net)[1]).hexdigest()
