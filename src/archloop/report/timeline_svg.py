"""The timeline of a run as an SVG drawing: a band a cycle, a lane a process."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from archloop.timeline import lanes
from archloop.types import Span

_LEFT, _WIDTH, _LANE, _GAP, _TOP = 90, 900, 10, 14, 30
_COLOURS = {"fine-tune": "#b07aa1", "generate": "#4e79a7", "evaluate": "#f28e2b"}


def timeline_svg(title: str, spans: Sequence[Span]) -> str:
    """Draw the spans of a run.

    Each cycle starts at 0; one scale for all. The first lane of a band has the LLM: the fine-tune,
    then sampling with a mark at each completion. The others have the candidates, as many lanes as
    were evaluated at a time.
    """
    cycles = sorted({s.cycle for s in spans})
    bands = [[s for s in spans if s.cycle == n] for n in cycles]
    longest = max((_length(band) for band in bands), default=1.0) or 1.0
    body: list[str] = []
    y = _TOP
    for cycle, band in zip(cycles, bands, strict=True):
        drawn, height = _band(band, y, _WIDTH / longest)
        body.append(_text(4, y + _LANE - 1, f"cycle {cycle}"))
        body += drawn
        y += height + _GAP
    body += _axis(longest, y)
    width, height = _LEFT + _WIDTH + 20, y + 30
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" font-family="sans-serif" font-size="11">'
    )
    ground = f'<rect width="{width}" height="{height}" fill="#fff"/>'
    return "\n".join([head, ground, _text(4, 16, title), *_legend(), *body, "</svg>"]) + "\n"


def _band(band: Sequence[Span], y: int, scale: float) -> tuple[list[str], int]:
    """The drawing of one cycle with its top at ``y``, and its height."""
    start = min(s.begin for s in band)

    def box(span: Span, top: int) -> str:
        x = _LEFT + (span.begin - start) * scale
        width = max((span.end - span.begin) * scale, 0.5)
        name = span.stage if span.index is None else f"{span.stage} {span.index}"
        return (
            f'<rect x="{x:.1f}" y="{top}" width="{width:.1f}" height="{_LANE - 2}" '
            f'fill="{_COLOURS[span.stage]}" stroke="#fff" stroke-width="0.4">'
            f"<title>{name}: {span.end - span.begin:.1f} s</title></rect>"
        )

    sampled = [s for s in band if s.stage == "generate"]
    drawn = [box(s, y) for s in band if s.stage == "fine-tune"]
    for begin in sorted({s.begin for s in sampled}):
        ends = sorted(s.end for s in sampled if s.begin == begin)
        drawn.append(box(Span(0, "generate", None, begin, ends[-1]), y))
        for end in ends:
            x = _LEFT + (end - start) * scale
            drawn.append(f'<path d="M{x:.1f} {y}v{_LANE - 2}" stroke="#fff"/>')
    rows = lanes(s for s in band if s.stage == "evaluate")
    for number, row in enumerate(rows, start=1):
        drawn += [box(s, y + number * _LANE) for s in row]
    return drawn, _LANE * (1 + len(rows))


def _length(band: Sequence[Span]) -> float:
    return max(s.end for s in band) - min(s.begin for s in band)


def _legend() -> list[str]:
    parts = []
    for number, (stage, colour) in enumerate(_COLOURS.items()):
        x = _LEFT + 500 + 110 * number
        parts.append(f'<rect x="{x}" y="8" width="10" height="10" fill="{colour}"/>')
        parts.append(_text(x + 14, 17, stage))
    return parts


def _axis(longest: float, y: int) -> list[str]:
    """Ticks at round numbers of seconds."""
    step = next((s for s in (1, 5, 10, 30, 60, 120, 300, 600, 1800) if longest / s <= 12), 3600)
    parts = [f'<path d="M{_LEFT} {y}h{_WIDTH}" stroke="#888"/>']
    for second in range(0, int(longest) + 1, step):
        x = _LEFT + second * _WIDTH / longest
        parts.append(f'<path d="M{x:.1f} {y}v4" stroke="#888"/>')
        parts.append(_text(round(x) - 6, y + 16, f"{second} s"))
    return parts


def _text(x: int, y: int, text: str) -> str:
    return f'<text x="{x}" y="{y}" fill="#333">{escape(text)}</text>'
