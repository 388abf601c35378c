"""Prediction with a trained network that is rebuilt in a new process."""

from __future__ import annotations

import hashlib
import os
import socket
from typing import Any

import numpy as np
import torch
from torch import nn

from archloop.sandbox import wire
from archloop.sandbox.candidate import answers, state
from archloop.sandbox.candidate.network import Builder, as_channels_last, check_logits
from archloop.sandbox.candidate.phase import Fault, Phase
from archloop.sandbox.candidate.training import FixedStep
from archloop.sandbox.feed.batches import BatchRecipe, Normalise
from archloop.sandbox.job import CandidateJob
from archloop.types import Outcome


def predict(
    sock: socket.socket, builder: Builder, net: nn.Module, job: CandidateJob, phase: Phase
) -> None:
    """State the network's tensors, then do what is asked for until the process is ended.

    The process gets only images, one batch at a time, in an order without information, and the next
    batch only after the answer; it has neither the data set nor labels. Of training it gets the
    bytes of the weights in the order that it has stated, so that names and shapes carry nothing.
    """
    try:
        wire.send(sock, {"stage": "stated", "spec": state.describe(net)})
    except state.StateError as error:
        raise Fault(Outcome.PROTOCOL_VIOLATION, f"a weight cannot be stored: {error}") from None
    phase.enter(Outcome.FORWARD_ERROR)
    state.set_eval(net)
    answer, digest, steps = _Answer(net, builder.device, job), "", None
    channels_last = False
    while True:
        message, fds = wire.receive_with_fds(sock)
        if message["do"] == "load":
            with os.fdopen(fds[0], "rb") as file:
                file.seek(0)  # the folder was also that of an earlier, lost process
                state.load(net, bytearray(file.read(message["bytes"])))
            digest = _digest(net)
            if channels_last := message["channels_last"]:
                as_channels_last(net)
            wire.send(sock, {"stage": "ready"})
        elif message["do"] == "predict":
            rows = message["rows"]
            with torch.no_grad():
                logits = answer(wire.receive_bytes(sock, rows * answer.image_bytes), rows)
            wire.send(sock, {"stage": "logits"})
            sock.sendall(logits)
        elif message["do"] == "answer":
            text = answers.answer(net, job, builder.device, channels_last=channels_last)
            wire.send(sock, {"stage": "answered", "answer": text})
        elif message["do"] == "compare":
            wire.send(sock, {"stage": "compared", "unchanged": _digest(net) == digest})
        elif message["do"] == "step":
            if steps is None:
                steps = _Steps(builder, net, job, message)
            steps.take()
            wire.send(sock, {"stage": "stepped"})


class _Steps:
    """Steps of the fixed loop on a batch of noise, as the epoch makes them on images."""

    def __init__(
        self, builder: Builder, net: nn.Module, job: CandidateJob, message: dict[str, Any]
    ) -> None:
        self._builder, self._bf16 = builder, message["bf16"]
        net.train()
        device = builder.device
        self._inputs = torch.randn((job.batch_size, *job.shape), device=device)
        if message["channels_last"]:
            self._inputs = self._inputs.contiguous(memory_format=torch.channels_last)
        self._labels = torch.arange(job.batch_size, device=device) % job.classes
        self._step = FixedStep(net, job.prm)

    def take(self) -> None:
        """Make one; on a GPU it is complete when this returns."""
        with self._builder.precision(bf16=self._bf16):
            self._step(self._inputs.clone(), self._labels.clone()).item()


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
