"""What is said with one candidate's process, until its verdict: deadlines, limits, messages."""

from __future__ import annotations

import signal
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from archloop.config import SandboxConfig
from archloop.errors import SandboxError
from archloop.sandbox import wire
from archloop.sandbox.server import Child, Ended, ServerLostError
from archloop.sandbox.text import one_line
from archloop.sandbox.watch import LimitError, Watch
from archloop.types import Outcome, Verdict

_CONFINE_SECONDS = 60.0
_MOST_PARAMS = 2**53
_DENIED_SIGNALS = ("SIGSYS", "SIGXFSZ")


class _Ended(Exception):
    """The conversation is over, with this verdict."""

    def __init__(self, outcome: Outcome, error: str) -> None:
        super().__init__(error)
        self.outcome = outcome


class Conversation:
    """One candidate, from its job to its logits.

    Args:
        config: Limits.
        child: Its process.
        job: What it is sent.
        shared_bytes: Images it maps, which are not its own memory.
    """

    def __init__(
        self, config: SandboxConfig, child: Child, job: dict[str, Any], shared_bytes: int
    ) -> None:
        self._config, self._child, self._job = config, child, job
        self._shared_bytes = shared_bytes
        self._phase = Outcome.IMPORT_ERROR
        self._watch: Watch | None = None
        self._n_params: int | None = None
        self._train_seconds: float | None = None

    def probe(self) -> Verdict:
        """Import, instantiate, count, dummy forward.

        Raises:
            wire.WireError: The child ended, or said what no child of ours says.
            ServerLostError: It never came to be.
            SandboxError: It could not be confined.
        """
        try:
            self._build()
            self._expect("done", self._config.build_seconds, "the probe")
        except _Ended as end:
            return self._verdict(end.outcome, str(end))
        return self._verdict(Outcome.VALID, None)

    def evaluate(
        self, validation_fd: int, shape: tuple[int, ...], labels: NDArray[np.int64]
    ) -> Verdict:
        """The probe, one epoch, and top-1 accuracy, judged here, where the labels are.

        Raises:
            wire.WireError: As :meth:`probe`, with the other two.
        """
        try:
            self._build()
            self._phase = Outcome.TRAIN_ERROR
            started = time.monotonic()
            self._expect("trained", self._config.train_seconds, "the epoch")
            self._train_seconds = round(time.monotonic() - started, 3)
            accuracy = float((self._predict(validation_fd, shape).argmax(axis=1) == labels).mean())
        except _Ended as end:
            return self._verdict(end.outcome, str(end))
        return self._verdict(Outcome.VALID, None, round(accuracy, 6))

    def died(self, ended: Ended) -> Verdict:
        """The verdict on a child that ended, or fell silent, without a result."""
        if not ended.by_itself or ended.status is None:
            return self._verdict(self._phase, "the process closed its channel without a result")
        number = ended.status & 0x7F
        if not number:
            code = ended.status >> 8
            return self._verdict(self._phase, f"the process ended with code {code} and no result")
        name = signal.Signals(number).name
        if name == "SIGKILL":
            text = "killed by the system (SIGKILL), as when memory runs out"
            return self._verdict(Outcome.OUT_OF_MEMORY, text)
        outcome = Outcome.SANDBOX_VIOLATION if name in _DENIED_SIGNALS else self._phase
        return self._verdict(outcome, f"the process was killed by {name}")

    def _build(self) -> None:
        self._confine()
        what = "import, instantiation and dummy forward"
        message = self._expect("built", self._config.build_seconds, what)
        n_params = message.get("n_params")
        if type(n_params) is not int or not 0 <= n_params < _MOST_PARAMS:
            raise wire.WireError("no number of parameters")
        self._n_params = n_params

    def _confine(self) -> None:
        """No line of the network runs before this is done, so a failure is not the network's."""
        wire_lost = (wire.WireError, wire.DeadlineError)
        try:
            wire.send(self._child.sock, self._job)
            message = wire.receive(self._child.sock, time.monotonic() + _CONFINE_SECONDS)
        except wire_lost as error:
            raise ServerLostError(f"a process was lost before its job: {error}") from None
        if message.get("stage") != "confined":
            raise SandboxError(f"a candidate could not be confined: {message.get('error')}")
        self._watch = Watch(
            self._child.pid,
            self._child.folder,
            (self._config.memory_mb << 20) + self._shared_bytes,
            self._config.disk_mb << 20,
        )

    def _predict(self, validation_fd: int, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """The logits (M, classes) of the validation images, which the child sees only now."""
        rows, columns = shape[0], int(self._job["classes"])
        seconds = self._config.predict_seconds
        deadline = time.monotonic() + seconds
        wire.send(self._child.sock, {"shape": list(shape)}, (validation_fd,))
        if self._expect("predicted", seconds, "prediction").get("bytes") != rows * columns * 4:
            raise wire.WireError("wrong number of logits")
        try:
            raw = wire.receive_bytes(self._child.sock, rows * columns * 4, deadline, self._watch)
        except wire.DeadlineError:
            raise _timeout(seconds, "prediction") from None
        except LimitError as error:
            raise _Ended(error.outcome, str(error)) from None
        logits = np.frombuffer(raw, np.float32).reshape(rows, columns)
        if not np.isfinite(logits).all():
            raise _Ended(Outcome.NON_FINITE, "a logit is NaN or infinite after training")
        return logits

    def _expect(self, stage: str, seconds: float, what: str) -> dict[str, Any]:
        """The next message, which has to be of this stage; a failure or a deadline is the end."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                message = wire.receive(self._child.sock, deadline, self._watch)
            except wire.DeadlineError:
                raise _timeout(seconds, what) from None
            except LimitError as error:
                raise _Ended(error.outcome, str(error)) from None
            if message.get("stage") == "phase":
                self._phase = _failure_of(message)
            elif message.get("stage") == "failed":
                raise _Ended(_failure_of(message), one_line(str(message.get("error"))))
            elif message.get("stage") == stage:
                return message
            else:
                raise wire.WireError("message out of order")

    def _verdict(
        self, outcome: Outcome, error: str | None, accuracy: float | None = None
    ) -> Verdict:
        return Verdict(outcome, error, self._n_params, accuracy, self._train_seconds)


def _timeout(seconds: float, what: str) -> _Ended:
    return _Ended(Outcome.TIMEOUT, f"{what} took longer than {seconds:g} s")


def _failure_of(message: dict[str, Any]) -> Outcome:
    try:
        outcome = Outcome(str(message.get("outcome")))
    except ValueError:
        raise wire.WireError("unknown outcome") from None
    if outcome.is_valid:
        raise wire.WireError("a failure cannot be valid")
    return outcome
