"""The sandbox as the main process sees it: networks in, verdicts out, from many threads."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from archloop.config import ProtocolConfig, SandboxConfig
from archloop.errors import SandboxError
from archloop.sandbox import wire
from archloop.sandbox.confine import require
from archloop.sandbox.conversation import Conversation
from archloop.sandbox.server import ForkServer, ServerLostError, shared_memory
from archloop.types import Outcome, TaskData, Verdict

MAX_SOURCE = 64 * 1024
"""Characters of the longest source that is run: escaped, it still fits into one frame."""
_GRACE = 2.0
"""Seconds a child that closed its channel may take to end by itself."""

_Talk = Callable[[Conversation], Verdict]


class Sandbox:
    """A warm fork server and what belongs to a task; every method may be called from many threads.

    Args:
        config: Limits and isolation level.
        task: The images; without them only :meth:`probe` can be used.
        protocol: How to train; required with ``task``.

    Raises:
        IsolationError: The isolation level is not available on this machine.
    """

    def __init__(
        self,
        config: SandboxConfig,
        *,
        task: TaskData | None = None,
        protocol: ProtocolConfig | None = None,
    ) -> None:
        require(config.isolation)
        self._config, self._task = config, task
        self._protocol = protocol or ProtocolConfig()
        self._lock = threading.Lock()
        self._closed = False
        self._server = ForkServer(config, task)
        self._validation: _Validation | None = None if task is None else _Validation(task)

    @property
    def isolation(self) -> str:
        """The level every candidate runs at."""
        return self._config.isolation

    @property
    def candidates_folder(self) -> Path:
        """Where candidates have their private folders while they run."""
        return self._server.candidates

    @property
    def server_pid(self) -> int:
        """Process id of the fork server now in use."""
        return self._server.pid

    def probe(
        self,
        code: str,
        *,
        shape: tuple[int, int, int],
        classes: int,
        max_params: int | None = None,
        meta: bool = False,
    ) -> Verdict:
        """Import, instantiate, count parameters, dummy forward pass.

        Args:
            code: The network's source.
            shape: (channels, height, width) of an image.
            classes: Number of logits.
            max_params: Parameter budget.
            meta: On torch's meta device, which allocates nothing.
        """
        job = self._job(code, 0, max_params) | {
            "shape": list(shape),
            "classes": classes,
            "meta": meta,
        }
        return self._judge(job, Conversation.probe, train=False)

    def evaluate(self, code: str, *, seed: int, max_params: int | None = None) -> Verdict:
        """Probe, then one epoch under the protocol, then top-1 on the validation images."""
        validation = self._validation
        if self._task is None or validation is None:
            raise SandboxError("this sandbox has no task to train on")
        info = self._task.info
        job = self._job(code, seed, max_params) | {
            "shape": list(info.shape),
            "classes": info.classes,
            "meta": False,
            "mean": list(info.mean),
            "std": list(info.std),
        }

        def talk(conversation: Conversation) -> Verdict:
            return conversation.evaluate(validation.fd, validation.shape, validation.labels)

        return self._judge(job, talk, train=True)

    def _job(self, code: str, seed: int, max_params: int | None) -> dict[str, Any]:
        protocol = self._protocol
        return {
            "code": code,
            "seed": seed,
            "max_params": max_params,
            "threads": self._config.threads,
            "batch_size": protocol.batch_size,
            "augmentation": protocol.augmentation,
            "prm": {
                "lr": protocol.lr,
                "momentum": protocol.momentum,
                "dropout": protocol.dropout,
                "batch": protocol.batch_size,
                "epoch": 1,
                "transform": protocol.augmentation,
            },
        }

    def _judge(self, job: dict[str, Any], talk: _Talk, *, train: bool) -> Verdict:
        """Run a job; if the fork server is lost under it, again, with a server of its own.

        Of several candidates under one server nobody can say which ended it; of one, one can.
        """
        if len(job["code"]) > MAX_SOURCE:
            return Verdict(Outcome.IMPORT_ERROR, f"source is longer than {MAX_SOURCE} characters")
        for _ in range(2):
            server = self._server
            try:
                return self._run(server, job, talk, train=train)
            except ServerLostError as error:
                self._replace(server)
                if error.while_running:
                    break
        own = ForkServer(self._config, self._task)
        try:
            return self._run(own, job, talk, train=train)
        except ServerLostError as error:
            if not error.while_running:
                raise SandboxError(f"a new fork server was lost too: {error}") from None
            return Verdict(Outcome.SANDBOX_VIOLATION, "the fork server was ended by this network")
        finally:
            own.close()

    def _replace(self, lost: ForkServer) -> None:
        with self._lock:
            if self._closed:
                raise SandboxError("the sandbox was closed while a candidate ran")
            if self._server is lost:
                lost.close()
                self._server = ForkServer(self._config, self._task)

    def _run(self, server: ForkServer, job: dict[str, Any], talk: _Talk, *, train: bool) -> Verdict:
        child = server.fork(train=train)
        conversation = Conversation(self._config, child, job, self._shared_bytes())
        try:
            verdict = talk(conversation)
        except wire.WireError:
            return conversation.died(server.reap(child, grace=_GRACE))
        except BaseException:
            server.reap(child)
            raise
        server.reap(child)
        return verdict

    def _shared_bytes(self) -> int:
        if self._task is None:
            return 0
        task = self._task
        arrays = (task.train_images, task.train_labels, task.validation_images)
        return sum(array.nbytes for array in arrays)

    def close(self) -> None:
        """End the fork server and everything under it; candidates still running are lost."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._server.close()
            if self._validation is not None:
                os.close(self._validation.fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class _Validation:
    """Images and labels in an order that tells a network nothing; the labels stay here."""

    def __init__(self, task: TaskData) -> None:
        order = np.random.default_rng(0).permutation(len(task.validation_labels))
        self.labels: NDArray[np.int64] = task.validation_labels[order]
        self.shape = task.validation_images.shape
        self.fd = shared_memory(task.validation_images[order])
