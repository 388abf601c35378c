"""The exchange of messages with one candidate's process, with deadlines and limits."""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any, NamedTuple, TypeVar

from archloop.config import SandboxConfig
from archloop.errors import SandboxError
from archloop.novelty.graph import (
    MAX_BYTES,
    MAX_SHINGLES,
    Graph,
    GraphError,
    checked_sketch,
    parse,
)
from archloop.novelty.macs import Cost
from archloop.novelty.outputs import Outputs, checked_outputs
from archloop.sandbox import wire
from archloop.sandbox.host.server import Child, Ended, ForkServer, ServerLostError
from archloop.sandbox.host.watch import LimitError, Watch
from archloop.sandbox.job import CandidateJob
from archloop.text import one_line
from archloop.types import GraphSketch, Outcome, Verdict

BUILDING = "import, instantiation and dummy forward"
UNFORESEEN = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
)
"""Exceptions that unexpected input from a network may cause here; not faults of the machine."""
_CONFINE_SECONDS = 60.0
_OUTPUTS_SECONDS = 20.0
_MOST = 2**53
_MOST_PHASES = 64
"""Announcements of a process; an honest one makes a few."""
_DENIED_SIGNALS = ("SIGSYS", "SIGXFSZ")
T = TypeVar("T")
_CRASH_LINE = re.compile(r'File "<candidate>", line (\d+) in (\w+)')


class FailedError(Exception):
    """The candidate failed, with this verdict."""

    def __init__(self, verdict: Verdict) -> None:
        super().__init__(verdict.error)
        self.verdict = verdict


class Conversation:
    """One process of a candidate.

    Every method may raise :class:`FailedError` (the candidate failed in a way that is known),
    :class:`wire.WireError` (the child ended or sent an invalid message) and
    :class:`ServerLostError` (the child could not be started).

    Args:
        config: Limits.
        server: Its fork server.
        child: The process.
        job: The job for the process.
    """

    def __init__(
        self, config: SandboxConfig, server: ForkServer, child: Child, job: CandidateJob
    ) -> None:
        self.config, self.server, self.child, self.job = config, server, child, job
        self.phase = Outcome.IMPORT_ERROR
        """The outcome if the process dies now."""
        self.n_params: int | None = None
        self._phases = 0
        self._watch: Watch | None = None

    def build(self) -> int:
        """Confine, import, instantiate, count, dummy forward; returns the number of parameters.

        Raises:
            SandboxError: The process could not be confined.
        """
        self._confine()
        message = self.expect("built", self.config.build_seconds, BUILDING)
        self.n_params = number(message, "n_params")
        return self.n_params

    def _confine(self) -> None:
        """No line of the network runs before this step, so a failure is not the network's fault."""
        sock = self.child.sock
        try:
            wire.send(sock, self.job.to_wire())
            sock.settimeout(_CONFINE_SECONDS)
            message, fds = wire.receive_with_fds(sock)
            sock.settimeout(None)
        except wire.WireError as error:
            raise ServerLostError(f"a process was lost before its job: {error}") from None
        if message.get("stage") != "confined":
            raise SandboxError(f"a candidate could not be confined: {message.get('error')}")
        if fds:
            self.child.refusals.listen(fds[0])
        self._watch = Watch(
            self.child.host_pid,
            self.child.folder,
            self.child.output,
            self.config.memory_mb << 20,
            self.config.disk_mb << 20,
            self.child.refusals,
        )

    def expect(self, stage: str, seconds: float, what: str) -> dict[str, Any]:
        """The next message, which must belong to this stage and arrive within so many seconds."""
        deadline = self._deadline(seconds)
        while True:
            message = self._within(
                seconds, what, lambda: wire.receive(self.child.sock, deadline, self._watch)
            )
            if message.get("stage") == "phase":
                self._phases += 1
                if self._phases > _MOST_PHASES:
                    raise wire.WireError("announcements without end")
                self.phase = _failure_of(message)
            elif message.get("stage") == "failed":
                error = one_line(str(message.get("error")))
                raise FailedError(self.verdict(_failure_of(message), error))
            elif message.get("stage") == stage:
                return message
            else:
                raise wire.WireError("message out of order")

    def receive_bytes(self, size: int, seconds: float, what: str) -> bytes:
        """Raw bytes that follow a message."""
        sock, deadline = self.child.sock, self._deadline(seconds)
        return self._within(
            seconds, what, lambda: wire.receive_bytes(sock, size, deadline, self._watch)
        )

    def send_bytes(self, data: bytes, seconds: float, what: str, fds: tuple[int, ...] = ()) -> None:
        """Send bytes to a process that may not read them; nothing is sent to a process that ended.

        Its last messages can still be read then.
        """
        sock, deadline = self.child.sock, self._deadline(seconds)
        with suppress(wire.WireError):
            self._within(
                seconds, what, lambda: wire.send_bytes(sock, data, deadline, self._watch, fds)
            )

    def _deadline(self, seconds: float) -> float:
        if self._watch is not None:
            self._watch.begin(seconds)
        return time.monotonic() + seconds

    def _within(self, seconds: float, what: str, talk: Callable[[], T]) -> T:
        """The result of ``talk``; a limit that is exceeded meanwhile is this candidate's outcome.

        Not a context manager: since Python 3.12 one that raises another exception than it caught
        stays alive, with the sandbox's images, until the garbage collector runs.
        """
        try:
            return talk()
        except wire.DeadlineError:
            text = f"{what} took longer than {seconds:.3g} s"
            raise FailedError(self.verdict(Outcome.TIMEOUT, text)) from None
        except LimitError as error:
            raise FailedError(self.verdict(error.outcome, str(error))) from None

    def verdict(self, outcome: Outcome, error: str | None) -> Verdict:
        """Complete a verdict with what is known so far."""
        return Verdict(outcome, error, self.n_params)

    def died(self, ended: Ended) -> Verdict:
        """The verdict on a child that ended, or stopped answering, without a result."""
        if not ended.by_itself or ended.status is None:
            return self.verdict(self.phase, "the process closed its channel without a result")
        signal_number = ended.status & 0x7F
        if not signal_number:
            code = ended.status >> 8
            return self.verdict(self.phase, f"the process ended with code {code} and no result")
        name = _signal_name(signal_number)
        if name == "SIGKILL":
            text = "killed by the system (SIGKILL), as when memory runs out"
            return self.verdict(Outcome.OUT_OF_MEMORY, text)
        if name == "SIGXCPU":
            return self.verdict(Outcome.TIMEOUT, "used more processor time than it may")
        outcome = Outcome.SANDBOX_VIOLATION if name in _DENIED_SIGNALS else self.phase
        return self.verdict(outcome, f"the process was killed by {name}{self._crash_place()}")

    def _crash_place(self) -> str:
        """The source line at which a process crashed, from faulthandler's output."""
        found = _CRASH_LINE.search(self.child.output.text())
        return one_line(f" (line {found[1]}, in {found[2]})") if found else ""


class Sketch(NamedTuple):
    """What a candidate's process says of its graph."""

    graph: GraphSketch
    cost: Cost


def sketch(conversation: Conversation) -> tuple[Verdict, Sketch | None]:
    """A candidate's verdict and graph, as its own process found them.

    For exceptions see :class:`Conversation`.
    """
    seconds, what = conversation.config.build_seconds, "comparing the graph"
    conversation.build()
    message = conversation.expect("sketch", seconds, what)
    size = number(message, "bytes", 8 * MAX_SHINGLES)
    if not size:
        return _without_a_graph(conversation, message), None
    shingles = conversation.receive_bytes(size, seconds, what)
    cost = Cost(
        None if message.get("macs") is None else number(message, "macs"),
        number(message, "elements"),
        number(message, "operators"),
    )
    try:
        found = checked_sketch(
            message.get("hash"), shingles, message.get("profile"), message.get("motifs")
        )
    except GraphError as error:
        raise wire.WireError(f"no graph: {error}") from None
    if found.profile is not None and cost.macs is not None:
        found = replace(found, profile=found.profile | {"macs": float(cost.macs)})
    verdict = conversation.verdict(Outcome.VALID, None)
    return verdict, Sketch(replace(found, outputs=_outputs(conversation)), cost)


def _outputs(conversation: Conversation) -> Outputs | None:
    """What the network answers under equal weights; ``None``: not known, or not in time."""
    seconds = min(_OUTPUTS_SECONDS, conversation.config.build_seconds)
    try:
        message = conversation.expect("outputs", seconds, "comparing outputs")
    except (FailedError, wire.WireError):
        return None
    return checked_outputs(message.get("values"))


def _without_a_graph(conversation: Conversation, message: dict[str, Any]) -> Verdict:
    reason = one_line(str(message.get("reason")))
    return conversation.verdict(Outcome.VALID, f"no graph: {reason}")


def trace(conversation: Conversation) -> tuple[Verdict, Graph | None]:
    """A candidate's verdict and graph; for exceptions see :class:`Conversation`."""
    seconds = conversation.config.build_seconds
    conversation.build()
    what = "tracing"
    message = conversation.expect("graph", seconds, what)
    size = number(message, "bytes", MAX_BYTES)
    if not size:
        return _without_a_graph(conversation, message), None
    data = conversation.receive_bytes(size, seconds, what)
    try:
        return conversation.verdict(Outcome.VALID, None), parse(data)
    except GraphError as error:
        raise wire.WireError(f"no graph: {error}") from None


def number(message: dict[str, Any], key: str, most: int = _MOST) -> int:
    """Validate an integer that a candidate sent.

    Raises:
        wire.WireError: It is no integer, or out of range.
    """
    value = message.get(key)
    if type(value) is not int or not 0 <= value <= most:
        raise wire.WireError(f"no number in {key!r}")
    return value


def _signal_name(number: int) -> str:
    """Real-time signals have no name."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _failure_of(message: dict[str, Any]) -> Outcome:
    try:
        outcome = Outcome(str(message.get("outcome")))
    except ValueError:
        raise wire.WireError("unknown outcome") from None
    if outcome.is_valid:
        raise wire.WireError("a failure cannot be valid")
    return outcome
