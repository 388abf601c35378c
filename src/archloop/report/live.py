"""A snapshot of a run in words: for the live screen, a log, and ``archloop status``."""

from __future__ import annotations

from archloop.pace import left_of
from archloop.progress import Progress, RunProgress
from archloop.report.formats import clock, count, percent, rough
from archloop.text import one_line

_FEW_TOKENS = 10.0
"""A rate below has a decimal."""


def stage_title(progress: Progress) -> str:
    """The stage, with its cycle in a run."""
    run = progress.run
    if run is None or not run.cycle:
        return progress.stage
    if run.cycle > run.cycles:
        return f"final {progress.stage}"
    return f"cycle {run.cycle}/{run.cycles} {progress.stage}"


def stage_counts(progress: Progress) -> str:
    """``3/60 steps``; empty where nothing is counted."""
    if not progress.unit or (progress.total is None and not progress.done):
        return ""
    total = "" if progress.total is None else f"/{count(progress.total)}"
    return f"{count(progress.done)}{total} {progress.unit}"


def stage_facts(progress: Progress, age: float = 0.0) -> list[str]:
    """What else is known of a stage, the time left first; without control characters.

    Args:
        progress: The snapshot.
        age: Seconds since it was made.
    """
    parts = []
    if progress.eta is not None and progress.done != progress.total:
        left = rough(left_of(progress.eta, age), is_whole=progress.eta_is_whole)
        parts.append(f"{left} left")
    if progress.detail:
        parts.append(one_line(progress.detail))
    if progress.n_valid is not None and progress.done:
        parts.append(f"{count(progress.n_valid)} valid")
    if progress.tokens_per_second:
        rate = progress.tokens_per_second
        parts.append(f"{rate:.{1 if rate < _FEW_TOKENS else 0}f} tokens/s")
    if progress.n_tokens is not None:
        parts.append(f"{count(progress.n_tokens)} tokens")
    return parts


def run_facts(progress: Progress, age: float = 0.0) -> list[str]:
    """What is known of a run, the time left first.

    Args:
        progress: The snapshot.
        age: Seconds since it was made.
    """
    run, parts = progress.run, []
    if run is None:
        return []
    if run.eta is not None:
        if progress.eta is None and not run.eta_is_whole:
            age = 0.0  # what is under way is no part of what is known to be left
        parts.append(f"{rough(left_of(run.eta, age), is_whole=run.eta_is_whole)} left")
    if run.best is not None:
        parts.append(f"best {percent(run.best, 1)} %")
    parts.append(f"{count(run.n_accepted)} accepted")
    if run.corpus_size is not None:
        parts.append(f"corpus {count(run.corpus_size)}")
    return parts


def run_clock(run: RunProgress, age: float = 0.0) -> str:
    """Time since the process began, as ``h:mm:ss``."""
    return clock(run.elapsed + age)
