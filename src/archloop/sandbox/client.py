"""The evaluation of one candidate as the main process sees it: deadlines, messages, verdict."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from archloop.config import ProtocolConfig, SandboxConfig
from archloop.errors import SandboxError
from archloop.sandbox import wire
from archloop.sandbox.confine import require
from archloop.sandbox.server import Child, ForkServer, ServerLostError, shared_memory
from archloop.sandbox.text import one_line
from archloop.types import Outcome, TaskData, Verdict

_ATTEMPTS = 3
"""How often a candidate is started anew after the fork server was lost under it."""
_GRACE = 0.5
_POLL_SECONDS = 0.25
"""Between two looks at the candidate's folder."""
_CONFINE_SECONDS = 30.0


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
        self._server = ForkServer(config, task)
        self._labels: np.ndarray[Any, Any] | None = None
        self._validation_fd = -1
        if task is not None:
            self._labels, self._validation_fd = _shuffled_validation(task)

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
        return self._attempt(job, train=False)

    def evaluate(self, code: str, *, seed: int, max_params: int | None = None) -> Verdict:
        """Probe, then one epoch under the protocol, then top-1 on the validation images."""
        if self._task is None:
            raise SandboxError("this sandbox has no task to train on")
        info = self._task.info
        job = self._job(code, seed, max_params) | {
            "shape": list(info.shape),
            "classes": info.classes,
            "meta": False,
            "mean": list(info.mean),
            "std": list(info.std),
        }
        return self._attempt(job, train=True)

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

    def _attempt(self, job: dict[str, Any], *, train: bool) -> Verdict:
        """Run a job; a lost fork server is replaced and the candidate started again."""
        for _ in range(_ATTEMPTS):
            server = self._server
            try:
                return self._run(server, job, train=train)
            except ServerLostError:
                self._replace(server)
        raise SandboxError(f"the fork server was lost {_ATTEMPTS} times under one candidate")

    def _replace(self, lost: ForkServer) -> None:
        with self._lock:
            if self._server is lost:
                lost.close()
                self._server = ForkServer(self._config, self._task)

    def _run(self, server: ForkServer, job: dict[str, Any], *, train: bool) -> Verdict:
        child = server.fork(train=train)
        candidate = _Candidate(self._config, child, job)
        try:
            if train:
                verdict = candidate.train(self._validation_fd, self._validation_shape())
                logits = candidate.logits
            else:
                verdict, logits = candidate.build(), None
        except wire.WireError:
            return candidate.died(server.reap(child, grace=_GRACE))
        except OSError:
            server.reap(child)
            raise
        server.reap(child)
        return self._score(verdict, logits) if logits is not None else verdict

    def _validation_shape(self) -> list[int]:
        assert self._task is not None
        return list(self._task.validation_images.shape)

    def _score(self, verdict: Verdict, logits: np.ndarray[Any, Any]) -> Verdict:
        """Top-1 accuracy over the validation images, judged here, where the labels are."""
        if not np.isfinite(logits).all():
            return Verdict(
                Outcome.NON_FINITE, "a logit is NaN or infinite after training", verdict.n_params
            )
        accuracy = float((logits.argmax(axis=1) == self._labels).mean())
        return Verdict(
            Outcome.VALID, None, verdict.n_params, round(accuracy, 6), verdict.train_seconds
        )

    def close(self) -> None:
        """End the fork server and everything under it."""
        with self._lock:
            self._server.close()
            if self._validation_fd >= 0:
                os.close(self._validation_fd)
                self._validation_fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _shuffled_validation(task: TaskData) -> tuple[np.ndarray[Any, Any], int]:
    """Labels, and a descriptor of the images, in an order that tells a network nothing."""
    order = np.random.default_rng(0).permutation(len(task.validation_labels))
    return task.validation_labels[order], shared_memory(task.validation_images[order])


def _named_failure(message: dict[str, Any]) -> Outcome:
    try:
        outcome = Outcome(str(message.get("outcome")))
    except ValueError:
        raise wire.WireError("unknown outcome") from None
    if outcome.is_valid:
        raise wire.WireError("a failure cannot be valid")
    return outcome


class _Candidate:
    """One conversation with one child."""

    def __init__(self, config: SandboxConfig, child: Child, job: dict[str, Any]) -> None:
        self._config, self._child, self._job = config, child, job
        self._phase = Outcome.IMPORT_ERROR
        self._n_params: int | None = None
        self.logits: np.ndarray[Any, Any] | None = None

    def build(self) -> Verdict:
        """Up to the dummy forward pass."""
        sock = self._child.sock
        wire.send(sock, self._job)
        self._expect("confined", _CONFINE_SECONDS, "confinement")
        limit = self._config.build_seconds
        message = self._expect("built", limit, "import, instantiation and dummy forward")
        if isinstance(message, Verdict):
            return message
        n_params = message.get("n_params")
        self._n_params = n_params if isinstance(n_params, int) else None
        self._phase = Outcome.TRAIN_ERROR
        if not self._job.get("mean"):
            last = self._expect("done", limit, "the probe")
            return last if isinstance(last, Verdict) else Verdict(Outcome.VALID, None, n_params)
        return Verdict(Outcome.VALID, None, self._n_params)

    def train(self, validation_fd: int, shape: list[int]) -> Verdict:
        """The whole evaluation; ``logits`` holds what came back."""
        built = self.build()
        if built.outcome is not Outcome.VALID:
            return built
        started = time.monotonic()
        message = self._expect("trained", self._config.train_seconds, "the epoch")
        seconds = round(time.monotonic() - started, 3)
        if isinstance(message, Verdict):
            return message
        wire.send(self._child.sock, {"shape": shape}, (validation_fd,))
        deadline = time.monotonic() + self._config.predict_seconds
        message = self._expect("predicted", self._config.predict_seconds, "prediction")
        if isinstance(message, Verdict):
            return message
        size = shape[0] * self._job["classes"] * 4
        if message.get("bytes") != size:
            raise wire.WireError("wrong number of logits")
        try:
            raw = wire.receive_bytes(self._child.sock, size, deadline)
        except wire.DeadlineError:
            return self._timeout(self._config.predict_seconds, "prediction")
        self.logits = np.frombuffer(raw, np.float32).reshape(shape[0], self._job["classes"])
        return Verdict(Outcome.VALID, None, self._n_params, None, seconds)

    def _expect(self, stage: str, seconds: float, what: str) -> dict[str, Any] | Verdict:
        """The next message, of the wanted stage; a failure or a deadline is a verdict."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                next_look = min(deadline, time.monotonic() + _POLL_SECONDS)
                message = wire.receive(self._child.sock, next_look)
            except wire.DeadlineError:
                if time.monotonic() >= deadline:
                    return self._timeout(seconds, what)
                if self._folder_bytes() > self._config.disk_mb << 20:
                    text = f"wrote more than {self._config.disk_mb} MB"
                    return Verdict(Outcome.SANDBOX_VIOLATION, text, self._n_params)
                continue
            if message.get("stage") == "failed":
                return self._failure(message)
            if message.get("stage") == "phase":
                self._phase = _named_failure(message)
                continue
            if message.get("stage") != stage:
                raise wire.WireError("message out of order")
            return message

    def _failure(self, message: dict[str, Any]) -> Verdict:
        error = one_line(str(message.get("error")))
        return Verdict(_named_failure(message), error, self._n_params)

    def _timeout(self, seconds: float, what: str) -> Verdict:
        return Verdict(Outcome.TIMEOUT, f"{what} took longer than {seconds:g} s", self._n_params)

    def _folder_bytes(self) -> int:
        total = 0
        for path in Path(self._child.folder).rglob("*"):
            try:
                total += path.lstat().st_size
            except OSError:
                continue
        return total

    def died(self, status: int | None) -> Verdict:
        """The verdict on a child that ended, or fell silent, without a result."""
        if status is not None and status & 0x7F:
            name = signal.Signals(status & 0x7F).name
            if name == "SIGKILL":
                text = "killed by the system (SIGKILL), as when memory runs out"
                return Verdict(Outcome.OUT_OF_MEMORY, text, self._n_params)
            return Verdict(self._phase, f"the process was killed by {name}", self._n_params)
        code = None if status is None else status >> 8
        text = f"the process ended with code {code} and no result"
        return Verdict(self._phase, text, self._n_params)
