"""What an executor is."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Protocol, Self

from archloop.types import Verdict


@dataclass(frozen=True)
class Finished:
    """A candidate that left the executor: with a verdict, or with a fault of the harness."""

    result: Verdict | BaseException
    begin: float = field(default_factory=time.time)
    """When its evaluation began, in Unix time (seconds)."""
    end: float = field(default_factory=time.time)

    def verdict(self) -> Verdict:
        """The verdict; a fault of the harness is raised here."""
        if isinstance(self.result, BaseException):
            raise self.result
        return self.result


class Executor(Protocol):
    """Evaluates candidates, several at a time, in any order."""

    def submit(
        self, code: str, *, seed: int, max_params: int | None, on_done: Callable[[Finished], None]
    ) -> None:
        """Queue a candidate; ``on_done`` is called from another thread when it is finished."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Drop what has not begun; wait for what has, or end it if an error is on its way."""
        ...
