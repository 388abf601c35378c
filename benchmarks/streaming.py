"""A cycle's generation and evaluation, streaming, with a core of its own for each.

The embedded preset's LLM, adapter and protocol on CIFAR-10. The generator's process is held to one
core, the candidates to another; wall time is compared with the two stages one after the other.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from archloop.config import load_config
from archloop.llm.models import resolve_adapter
from archloop.loop import pipeline
from archloop.loop.context import open_context
from archloop.progress import Silent
from archloop.report.timeline import timelines
from benchmarks.table import Row

COMPLETIONS = 24
MOST = 1.1
"""What wall time may be of the longer stage, one candidate more."""


def all_rows() -> Iterator[Row]:
    """One cycle: wall time beside the stages one after the other, and beside the goal."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        yield Row("streaming", "needs two cores")
        return
    os.sched_setaffinity(0, {cores[0]})
    try:
        with tempfile.TemporaryDirectory() as folder:
            yield from _cycle(Path(folder), cores[1])
    finally:
        os.sched_setaffinity(0, cores)


class _OnCore:
    """Samples as a session does, in a process that is held to one core."""

    def __init__(self, session: Any, core: int) -> None:
        self._session, self._core = session, core

    def generate(self, *args: Any) -> Iterator[Any]:
        # A process started by this thread inherits its core.
        os.sched_setaffinity(0, {self._core})
        yield from self._session.generate(*args)

    def close(self) -> None:
        self._session.close()


def _cycle(folder: Path, core: int) -> Iterator[Row]:
    config = load_config("embedded", [f"loop.completions={COMPLETIONS}"])
    with open_context(config, folder, Silent()) as run:
        run.generator = _OnCore(run.generator, core)  # type: ignore[assignment]
        adapter = resolve_adapter("smollm2-135m-lemur")
        pipeline.generate_and_evaluate(run, 1, adapter, run.requests(1))
        (found,) = timelines(run.store.spans())
    assert None not in (found.generate, found.evaluate, found.longest, found.wall)
    most = MOST * max(found.generate, found.evaluate) + found.longest
    stages = f"generate {found.generate:.0f} s, evaluate {found.evaluate:.0f} s"
    yield Row(
        f"a cycle of {COMPLETIONS} candidates, {stages}",
        f"{found.wall:.0f} s",
        f"{found.generate + found.evaluate:.0f} s one after the other",
        (found.generate + found.evaluate) / found.wall,
    )
    yield Row(
        f"the same, longest candidate {found.longest:.0f} s",
        f"{found.wall:.0f} s",
        f"{most:.0f} s at most ({MOST} x the longer stage + one candidate)",
        most / found.wall,
        1.0,
    )
