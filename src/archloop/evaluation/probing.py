"""Networks built or traced without training them, in the order in which they come."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from archloop.corpus.seeds.build import PROBE_SUBJECT, Probe
from archloop.corpus.seeds.children import Trace
from archloop.evaluation import jobs
from archloop.evaluation.executor import Executor, in_order
from archloop.progress import Observer, Progress
from archloop.types import GraphSketch, Verdict

_EVERY = 20
"""Networks between two reports."""


def seed_prober(executor: Executor, observer: Observer) -> Probe:
    """What building a seed corpus asks to build its networks, on the meta device.

    Args:
        executor: Builds them; no sandbox is started before the first network comes.
        observer: Told how many are built.
    """
    shape, classes = PROBE_SUBJECT.shape, PROBE_SUBJECT.classes

    def probe(codes: Iterable[str]) -> list[Verdict]:
        taken: list[jobs.Probe] = []

        def asked() -> Iterator[jobs.Probe]:
            for code in codes:
                taken.append(jobs.Probe(code, shape, classes, meta=True))
                yield taken[-1]

        verdicts: list[Verdict] = []
        for verdict in in_order(executor, asked()):
            verdicts.append(verdict)
            if len(verdicts) % _EVERY == 0:
                done, total = len(verdicts), len(taken)
                observer.update(Progress("seeds", done=done, total=total, unit="networks built"))
        return verdicts

    return probe


def seed_tracer(executor: Executor, observer: Observer) -> Trace:
    """What building a seed corpus asks to trace its networks.

    Args:
        executor: Traces them.
        observer: Told how many are traced.
    """
    shape, classes = PROBE_SUBJECT.shape, PROBE_SUBJECT.classes
    total = 0

    def trace(codes: Sequence[str]) -> list[tuple[Verdict, GraphSketch | None]]:
        nonlocal total
        found = []
        for traced in in_order(executor, (jobs.Trace(code, shape, classes) for code in codes)):
            found.append((traced.verdict, traced.graph))
            total += 1
            if total % _EVERY == 0:
                observer.update(Progress("seeds", done=total, unit="networks traced"))
        return found

    return trace
