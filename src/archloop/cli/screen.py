"""What a person sees while a command works: two live lines on a terminal, plain lines elsewhere.

On a terminal one line is for the run and one for the stage under way; the finished cycles of the
run stand above them as a table. Commands without a run have the stage's line only.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import TracebackType
from typing import Literal, Self

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from archloop.pace import StageClock
from archloop.progress import Progress, RunProgress
from archloop.report.formats import clock, percent
from archloop.report.live import run_clock, run_facts, stage_counts, stage_facts, stage_title
from archloop.text import printable
from archloop.types import CycleStats

ANY_WIDTH = 1000
"""Columns of what is no terminal; rich would take those of another stream that is one, or 80."""
_PLAIN_SECONDS = 15.0
"""Between two plain lines of the same stage, at the least."""
_PLAIN_SHARE, _PLAIN_MOST = 0.2, 600.0
"""Part of a stage's time between two of its lines, and the longest distance."""
_REFRESH = 4.0
"""Times a second that the live lines are drawn."""
_BAR_SHARE, _SHORTEST_BAR = 12, 6
"""A bar has a twelfth of the columns, so that those of both lines are alike and stand still."""
_TITLE = 11
"""Columns of the longest title that is common, so that the bars stand still."""
Rows = Callable[[Sequence[CycleStats], int], Table]
"""Makes a table of the last so many of the finished cycles."""


class LiveScreen:
    """The lines of a terminal, which are drawn again and again."""

    def __init__(self, console: Console, rows: Rows | None = None) -> None:
        """Prepare; the lines appear when the screen is entered.

        Args:
            console: Of the terminal.
            rows: Makes the table of finished cycles; ``None``: there are no cycles.
        """
        self._console, self._rows = console, rows
        self._clock, self._came = StageClock(), time.monotonic()
        self._progress = Progress("starting", elapsed=0.0)
        self._spinner = Spinner("dots" if console.encoding.startswith("utf") else "line")
        self._shows: Literal["all", "table", "nothing"] = "all"
        self._live = Live(
            self,
            console=console,
            refresh_per_second=_REFRESH,
            transient=True,
            redirect_stdout=False,  # rich would write it to stderr
            vertical_overflow="crop",
        )

    def update(self, progress: Progress) -> None:
        """Show a snapshot, at the next time that the lines are drawn."""
        self._came = time.monotonic()
        self._progress = self._clock.timed(progress, self._came)

    def message(self, text: str) -> None:
        """A line above the live ones, which stays."""
        self._console.print(printable(text), highlight=False)

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Without the live lines, while stdout is written to, which may be the same terminal."""
        self._shows = "nothing"
        self._live.stop()
        yield
        self._shows = "all"
        self._live.start()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The table of finished cycles and the live lines, as they are now."""
        if self._shows == "nothing":
            return
        progress = self._progress
        age = time.monotonic() - self._came
        run = progress.run
        if run is not None and run.finished:
            yield from self._finished(run.finished, options)
        if self._shows == "table":
            return
        if run is not None and run.cycle:
            yield self._run_line(progress, run, age, options.max_width)
        yield self._stage_line(progress, age, options.max_width)

    def _finished(
        self, cycles: Sequence[CycleStats], options: ConsoleOptions
    ) -> Iterator[RenderableType]:
        """As many of the last cycles as there is room for; short lines on a narrow terminal."""
        if self._rows is None:
            return
        # The heading has two lines, the last row is for all cycles, then come the live lines.
        fits = max(1, options.size.height - 6)
        table = self._rows(cycles, fits)
        wide = self._console.measure(table, options=options.update(width=ANY_WIDTH)).maximum
        if wide <= options.max_width:
            yield table
            return
        for stats in cycles[-fits:]:
            yield Text(_sentence(stats), no_wrap=True, overflow="crop")

    def _run_line(self, progress: Progress, run: RunProgress, age: float, width: int) -> Text:
        name = "end of run" if run.cycle > run.cycles else f"cycle {run.cycle}/{run.cycles}"
        share = len(run.finished) / (run.cycles + 1)
        if run.eta is not None and run.eta_is_whole:
            share = run.elapsed / (run.elapsed + run.eta or 1.0)
        facts = [run_clock(run, age), *run_facts(progress, age)]
        return self._line(Text("  "), name, share, facts, width)

    def _stage_line(self, progress: Progress, age: float, width: int) -> Text:
        facts = stage_facts(progress, age)
        if counts := stage_counts(progress):
            # ``candidates 7/12`` needs no other word.
            facts.insert(0, counts.removesuffix(f" {progress.stage}"))
        if progress.run is None:
            facts.insert(bool(counts), clock((progress.elapsed or 0.0) + age))
        frame = self._spinner.render(self._console.get_time())
        spinner = Text.assemble(frame if isinstance(frame, Text) else str(frame), " ")
        return self._line(spinner, progress.stage, _share(progress), facts, width)

    def _line(
        self, before: Text, name: str, share: float | None, facts: Sequence[str], width: int
    ) -> Text:
        """One line that fits; the last facts give way."""
        title = name.ljust(_TITLE)
        bar = max(_SHORTEST_BAR, width // _BAR_SHARE)
        line = Text.assemble(before, (title, "bold"), " ", self._bar(share, bar), no_wrap=True)
        room = width - cell_len(line.plain)
        for number, fact in enumerate(facts):
            separator = ", " if number else "  "
            room -= cell_len(separator + fact)
            if room < 0:
                break
            line.append(separator + fact)
        line.truncate(width, overflow="crop")
        return line

    def _bar(self, share: float | None, width: int) -> Text:
        bar = ProgressBar(total=None if share is None else 1.0, completed=share or 0.0, width=width)
        options = self._console.options.update(width=width)
        text = Text()
        for segment in self._console.render(bar, options):
            if not segment.control:
                text.append(segment.text.rstrip("\n"), segment.style)
        return text

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # After an interruption the table of finished cycles stays; otherwise the command shows it.
        self._shows = "nothing" if error is None else "table"
        self._live.transient = error is None
        self._live.stop()


def _sentence(stats: CycleStats) -> str:
    """A finished cycle in words."""
    best = f", best {percent(max(stats.accuracies), 1)} %" if stats.accuracies else ""
    return (
        f"cycle {stats.cycle}: {stats.n_gen} candidates, {stats.n_valid} valid, "
        f"{stats.n_accepted} accepted{best}"
    )


def _share(progress: Progress) -> float | None:
    """How full a stage's bar is."""
    if progress.share is not None:
        return progress.share
    return progress.done / progress.total if progress.total else None


class PlainScreen:
    """A line when a stage begins and from time to time, for logs and pipes."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._clock = StageClock()
        self._shown, self._when, self._began = "", 0.0, 0.0
        self._finished: int | None = None

    def update(self, progress: Progress) -> None:
        """Print a snapshot if its stage is new or the last line is old."""
        now = time.monotonic()
        progress = self._clock.timed(progress, now)
        if progress.run is not None:
            self._show_finished(progress.run)
        title = stage_title(progress)
        if title != self._shown:
            self._began = now
        elif now - self._when < min(
            _PLAIN_MOST, max(_PLAIN_SECONDS, _PLAIN_SHARE * (now - self._began))
        ):
            return
        self._shown, self._when = title, now
        counts = stage_counts(progress)
        facts = [counts] if counts else []
        facts += stage_facts(progress)
        line = ": ".join(part for part in (title, ", ".join(facts)) if part)
        if progress.run is not None and progress.run.cycle:
            run = progress.run
            line += "; run: " + ", ".join([run_clock(run), *run_facts(progress)])
        self.message(line)

    def _show_finished(self, run: RunProgress) -> None:
        """A line for each cycle that was committed since the last snapshot."""
        if self._finished is not None:
            for stats in run.finished[self._finished :]:
                self.message(_sentence(stats))
        self._finished = len(run.finished)

    def message(self, text: str) -> None:
        """Print a line."""
        self._console.print(printable(text), highlight=False, soft_wrap=True)

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


def open_screen(rows: Rows | None = None) -> LiveScreen | PlainScreen:
    """The screen that fits stderr: a line cannot live on a dumb terminal.

    Args:
        rows: Makes the table of finished cycles, for commands that have cycles.
    """
    console = Console(stderr=True, markup=False)
    return LiveScreen(console, rows) if console.is_interactive else PlainScreen(console)
