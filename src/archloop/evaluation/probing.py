"""Networks built without training them, in the order in which they come."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from archloop.corpus.seeds.build import PROBE_SUBJECT, Probe
from archloop.evaluation import jobs
from archloop.evaluation.executor import Executor, in_order
from archloop.progress import Observer, Progress
from archloop.types import Verdict

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
