"""The phases of a candidate, and the outcome that a failure means in each."""

from __future__ import annotations

import errno
import os
import re
import socket
import sysconfig
import traceback

from archloop.sandbox import wire
from archloop.text import one_line
from archloop.types import Outcome

_MEMORY_SIGNS = ("allocate memory", "out of memory", "bad_alloc", "std::bad_alloc")
_LONGEST_CHAIN = 10
_DENIED = (errno.EPERM, errno.EACCES, errno.EROFS, errno.EFBIG, errno.ENOSPC, errno.EDQUOT)
SOURCE = "<candidate>"
"""What a candidate's source is called in tracebacks."""
_ADDRESS = re.compile(r"\s*\bat 0x[0-9a-fA-F]+|\b0x[0-9a-fA-F]{6,}")
"""A memory address, which differs from process to process."""


class Fault(Exception):
    """A failure of the network that the harness detects itself."""

    def __init__(self, outcome: Outcome, error: str) -> None:
        super().__init__(error)
        self.outcome = outcome


class Phase:
    """The outcome that an exception means now; the main process knows it in case the child dies."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self.outcome = Outcome.IMPORT_ERROR

    def enter(self, outcome: Outcome) -> None:
        """Enter the phase in which a failure means ``outcome``."""
        if outcome is not self.outcome:
            self.outcome = outcome
            wire.send(self._sock, {"stage": "phase", "outcome": outcome.value})


def classify(error: BaseException, phase: Outcome) -> Outcome:
    """The outcome that an exception, or its cause, means in a phase."""
    causes: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and len(causes) < _LONGEST_CHAIN:
        causes.append(cause)
        cause = cause.__cause__ or cause.__context__
    if isinstance(error, MemoryError) or any(sign in str(error) for sign in _MEMORY_SIGNS):
        return Outcome.OUT_OF_MEMORY
    if any(_is_denial(cause) for cause in causes):
        return Outcome.SANDBOX_VIOLATION
    return phase


def _is_denial(error: BaseException) -> bool:
    # Without sockets, host names cannot be resolved.
    return isinstance(error, socket.gaierror) or (
        isinstance(error, OSError) and error.errno in _DENIED
    )


def error_line(error: BaseException) -> str:
    """``Type: message (line N, in function)`` on one line, bounded, without control characters."""
    line = next((part for part in str(error).splitlines() if part.strip()), "")
    # Independent of the machine: paths of installed packages start at the package.
    line = line.replace(sysconfig.get_path("platlib") + os.sep, "")
    line = _ADDRESS.sub("", line)
    text = one_line(f"{type(error).__name__}: {line}" if line else type(error).__name__)
    place = _place(error)
    return f"{text[: 300 - len(place)]}{place}"


def _place(error: BaseException) -> str:
    """The line of the candidate's source that raised the exception or called the code that did."""
    if isinstance(error, SyntaxError):
        return f" (line {error.lineno})" if error.lineno else ""
    frames = [
        (number, frame.f_code.co_name)
        for frame, number in traceback.walk_tb(error.__traceback__)
        if frame.f_code.co_filename == SOURCE
    ]
    if not frames:
        return ""
    number, name = frames[-1]
    where = "" if name == "<module>" else one_line(f", in {name}")[:80]
    return f" (line {number}{where})"
