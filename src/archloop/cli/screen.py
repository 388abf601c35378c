"""What a person sees while a run works: one live line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import (
    Progress as Bar,
)

from archloop.progress import Progress

_PLAIN_SECONDS = 15.0
"""Between two plain lines of the same stage."""
ANY_WIDTH = 1000
"""Columns of what is no terminal; rich would take those of another stream that is one, or 80."""


def describe(progress: Progress) -> str:
    """The facts of a snapshot in words."""
    parts = []
    if progress.n_valid is not None:
        parts.append(f"{progress.n_valid} valid")
    if progress.n_accepted is not None:
        parts.append(f"{progress.n_accepted} accepted so far")
    if progress.tokens_per_second:
        parts.append(f"{progress.tokens_per_second:.0f} tokens/s")
    if progress.detail:
        parts.append(progress.detail)
    return ", ".join(parts)


def _title(progress: Progress) -> str:
    if progress.cycle is None:
        return progress.stage
    return f"cycle {progress.cycle}/{progress.cycles} {progress.stage}"


class LiveScreen:
    """A live line with bar, counts, rate and remaining time, for terminals."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar = Bar(
            SpinnerColumn("dots" if console.encoding.startswith("utf") else "line"),
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[facts]}", markup=False),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            console=console,
            redirect_stdout=False,  # rich would write it to stderr
        )
        self._task = self._bar.add_task("starting", total=None, facts="")
        self._shown = ""

    def update(self, progress: Progress) -> None:
        """Show a snapshot; a new stage starts its own clock."""
        title = _title(progress)
        if title != self._shown:
            self._shown = title
            self._bar.reset(self._task, total=progress.total, description=title, facts="")
        self._bar.update(
            self._task, completed=progress.done, total=progress.total, facts=describe(progress)
        )

    def message(self, text: str) -> None:
        """A line above the live one, which stays."""
        self._console.print(text, highlight=False)

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Without the live line, while stdout is written to, which may be the same terminal."""
        self._hide()
        yield
        self._bar.update(self._task, visible=True)
        self._bar.start()

    def _hide(self) -> None:
        self._bar.update(self._task, visible=False)
        self._bar.stop()

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._hide()


class PlainScreen:
    """A line when a stage begins and every few seconds, for logs and pipes."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._shown, self._when, self._began = "", 0.0, 0.0

    def update(self, progress: Progress) -> None:
        """Print a snapshot if its stage is new or the last line is old."""
        title, now = _title(progress), time.monotonic()
        if title != self._shown:
            self._began = now
        elif now - self._when < _PLAIN_SECONDS:
            return
        self._shown, self._when = title, now
        total = "" if progress.total is None else f"/{progress.total}"
        counts = f"{progress.done}{total} {progress.unit}".strip() if progress.unit else ""
        eta = ""
        if progress.total and progress.done:
            rest = (now - self._began) * (progress.total - progress.done) / progress.done
            eta = f"ETA {rest:.0f} s"
        facts = ", ".join(part for part in (counts, describe(progress), eta) if part)
        line = f"{title}: {facts}" if facts else title
        self._console.print(line, highlight=False, soft_wrap=True)

    def message(self, text: str) -> None:
        """Print a line."""
        self._console.print(text, highlight=False, soft_wrap=True)

    def aside(self) -> AbstractContextManager[None]:
        """While stdout is written to: lines are in nobody's way."""
        return nullcontext()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        pass


def open_console() -> Console:
    """For what is printed to stdout: the terminal's width counts where it is a terminal."""
    console = Console(markup=False)
    if not console.is_terminal:
        console.width = ANY_WIDTH
    return console


def open_screen() -> LiveScreen | PlainScreen:
    """The screen that fits stderr: a line cannot live on a dumb terminal."""
    console = Console(stderr=True, markup=False)
    return LiveScreen(console) if console.is_interactive else PlainScreen(console)
