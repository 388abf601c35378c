"""What a run tells of itself: each snapshot gets the state of the run, and is kept in a file.

The file is for ``archloop status``, in whichever process. It is rewritten about once a second, and
a failure to write it ends nothing: the run does not read it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from statistics import fmean

from archloop.files import write_text
from archloop.pace import Before, Left, RunPace, StageClock
from archloop.progress import Observer, Progress, RunProgress
from archloop.store.store import Store
from archloop.types import CycleStats, Span

CANDIDATES, FINETUNE, SELECT = "candidates", "fine-tune", "select"
_EVERY = 1.0
"""Seconds between two versions of the file."""


class Watch:
    """An observer between the stages of a run and the one that the run was given."""

    def __init__(
        self, observer: Observer, store: Store, file: Path, *, cycles: int, learns: bool, last: bool
    ) -> None:
        """Start the clock.

        Args:
            observer: Told everything, with the state of the run added.
            store: The run's.
            file: For the newest snapshot.
            cycles: As planned.
            learns: Whether cycles begin with a fine-tune.
            last: Whether the run ends with one.
        """
        self._observer, self._store, self._file = observer, store, file
        self._clock, self._began = StageClock(), time.monotonic()
        self._kept = float("-inf")
        stages = [FINETUNE, CANDIDATES, SELECT] if learns else [CANDIDATES, SELECT]
        measured = _measured(store.spans(), store.cycles())
        self._pace = RunPace(cycles, stages, [FINETUNE] if last else [], measured)
        self._run = RunProgress(0, cycles, 0.0)
        self._seen: list[str] = []
        self._stage_began = self._began

    def begin_cycle(self, cycle: int) -> None:
        """A cycle begins, or the end of the run."""
        self._stage_ended(time.monotonic())
        self._seen = []
        finished = tuple(self._store.cycles())
        self._run = RunProgress(
            cycle,
            self._run.cycles,
            0.0,
            best=max((a for s in finished for a in s.accuracies), default=None),
            n_accepted=sum(s.n_accepted for s in finished),
            finished=finished,
        )

    def corpus(self, size: int) -> None:
        """The cycle has a corpus of so many pairs."""
        self._run = replace(self._run, corpus_size=size)

    def before(self) -> Before:
        """What the last committed cycle measured of candidates."""
        finished = self._run.finished
        if not finished:
            return Before()
        last = finished[-1]
        spans = [s for s in self._store.spans() if s.cycle == last.cycle]
        seconds = [s.end - s.begin for s in spans if s.stage == "evaluate"]
        return Before(
            last.n_tokens / last.n_gen if last.n_tokens and last.n_gen else None,
            fmean(seconds) if seconds else None,
        )

    def update(self, progress: Progress) -> None:
        """Add the state of the run, show and keep it."""
        now = time.monotonic()
        is_new = not self._seen or self._seen[-1] != progress.stage
        if is_new:
            self._stage_ended(now)
            self._seen.append(progress.stage)
        timed = self._clock.timed(progress, now)
        shown = replace(timed, run=self._state(timed, now))
        self._observer.update(shown)
        if is_new or now - self._kept >= _EVERY:
            self._kept = now
            self._keep(shown)

    def message(self, text: str) -> None:
        """Pass a line on."""
        self._observer.message(text)

    def close(self) -> None:
        """The run has ended as planned."""
        with suppress(OSError):
            self._file.unlink(missing_ok=True)

    def _state(self, progress: Progress, now: float) -> RunProgress:
        run = self._run
        best = max((b for b in (run.best, progress.best) if b is not None), default=None)
        of_stage = None if progress.eta is None else Left(progress.eta, progress.eta_is_whole)
        left = self._pace.left(run.cycle, self._seen, progress.elapsed or 0.0, of_stage)
        self._run = replace(
            run,
            elapsed=now - self._began,
            best=best,
            eta=None if left is None else left.seconds,
            eta_is_whole=left is not None and left.is_whole,
        )
        return self._run

    def _stage_ended(self, now: float) -> None:
        if self._seen:
            self._pace.took(self._seen[-1], now - self._stage_began)
        self._stage_began = now

    def _keep(self, progress: Progress) -> None:
        assert progress.run is not None
        run = {k: v for k, v in asdict(progress.run).items() if k != "finished"}
        kept = {"at": time.time(), **asdict(progress), "run": run}
        with suppress(OSError):
            write_text(self._file, json.dumps(kept))


def _measured(spans: Sequence[Span], cycles: Sequence[CycleStats]) -> dict[str, list[float]]:
    """Seconds of the stages of earlier cycles, where nothing interrupted them."""
    return {
        FINETUNE: [s.end - s.begin for s in spans if s.stage == "fine-tune"],
        CANDIDATES: [s.wall_seconds for s in cycles if s.wall_seconds is not None],
    }
