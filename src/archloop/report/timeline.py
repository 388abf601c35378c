"""How the stages of a cycle overlap in time, from the spans a run keeps."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from archloop.types import Span


@dataclass(frozen=True)
class Timeline:
    """The time of one cycle, in seconds; ``None`` where nothing of the kind was kept."""

    cycle: int
    finetune: float | None
    generate: float | None
    """While completions were written, the loading of the LLM included."""
    evaluate: float | None
    """While at least one candidate was evaluated."""
    longest: float | None
    """The longest evaluation of one candidate."""
    wall: float | None
    """From the start of generation to the last verdict; ``None`` where a pause lies between."""

    @property
    def overlap(self) -> float | None:
        """Wall time over the longer of generation and evaluation; 1 is perfect overlap."""
        if self.wall is None or self.generate is None or self.evaluate is None:
            return None
        return self.wall / max(self.generate, self.evaluate)


def timelines(spans: Sequence[Span], interrupted: Collection[int] = ()) -> list[Timeline]:
    """One for each cycle that has a span, in order.

    Args:
        spans: Of any cycles.
        interrupted: The cycles that were: their wall time would be that of the pause too.
    """
    return [
        _of(cycle, [s for s in spans if s.cycle == cycle], paused=cycle in interrupted)
        for cycle in sorted({s.cycle for s in spans})
    ]


def _of(cycle: int, spans: Sequence[Span], *, paused: bool) -> Timeline:
    finetune = [s for s in spans if s.stage == "fine-tune"]
    generate = [s for s in spans if s.stage == "generate"]
    evaluate = [s for s in spans if s.stage == "evaluate"]
    both = generate + evaluate
    return Timeline(
        cycle=cycle,
        finetune=_covered(finetune),
        generate=_covered(generate),
        evaluate=_covered(evaluate),
        longest=max((s.end - s.begin for s in evaluate), default=None),
        wall=_extent(both) if both and not paused else None,
    )


def lanes(spans: Iterable[Span]) -> list[list[Span]]:
    """Spans in as few lanes as hold them without overlap, each in the first that is free."""
    found: list[list[Span]] = []
    for span in sorted(spans, key=lambda s: (s.begin, s.end)):
        for lane in found:
            if lane[-1].end <= span.begin:
                lane.append(span)
                break
        else:
            found.append([span])
    return found


def _extent(spans: Sequence[Span]) -> float:
    return max(s.end for s in spans) - min(s.begin for s in spans)


def _covered(spans: Sequence[Span]) -> float | None:
    """Length of the union of the spans; ``None`` without any."""
    if not spans:
        return None
    total, until = 0.0, float("-inf")
    for span in sorted(spans, key=lambda s: s.begin):
        total += max(0.0, span.end - max(span.begin, until))
        until = max(until, span.end)
    return total
