"""What a report says of the structure of networks, as Markdown."""

from __future__ import annotations

from collections.abc import Mapping

from archloop.novelty.structure import cell_order
from archloop.report.formats import NOTHING, Row, table
from archloop.report.reported import ReportedRun
from archloop.report.structures import Cell, effective_number

STRUCTURE = (
    "Of the valid networks whose graph is known. Class: which of skips, joins, gates, grouped, "
    "depthwise, dilated and asymmetric convolutions and attention a network has; plain: none. "
    "Effective: the exponential of the entropy of the shares of the classes. Niches: classes in "
    "cells of multiply-accumulates (powers of two) with an accepted network so far. New motifs: "
    "chains of three operators in accepted networks that no seed network, and no earlier accepted "
    "one, has. Has what was asked: valid networks of exactly the class that the prompt asked for, "
    "those with at least these structures, and those within the budget that was asked for."
)
GRID = (
    "Accepted of valid networks of the whole run, by class and multiply-accumulates, with the best "
    "first-epoch accuracy of the accepted ones, %."
)
DESIGNS = (
    "The best accepted networks of each class in turn, from the layers that their sources list, "
    "with first-epoch accuracy, parameters and multiply-accumulates."
)
_CLASSES_SHOWN = 16
"""Most classes in a report's table; the CSV has all."""


def structure_table(run: ReportedRun) -> str:
    """Classes, niches, motifs and what was asked for, a row a cycle."""
    names = [*(str(c.stats.cycle) for c in run.summary.cycles), "all"]
    head = ["cycle", "valid", "classes", "effective", "accepted", "structured", "classes"]
    head += ["effective", "niches", "new motifs"]
    asked = any(s.asked for s in run.structures)
    rows = []
    for name, found in zip(names, run.structures, strict=True):
        accepted = sum(found.accepted.values())
        row = [
            name,
            sum(found.valid.values()),
            len(found.valid),
            _effective(found.valid),
            accepted,
            f"{found.structured}/{accepted}",
            len(found.accepted),
            _effective(found.accepted),
            found.niches,
            NOTHING if found.new_motifs is None else len(found.new_motifs),
        ]
        if asked and (a := found.asked) is not None:
            row += [f"{k}/{a.n}" for k in (a.exact, a.at_least, a.within_budget)]
        rows.append(row)
    if asked:
        head += ["exactly", "at least", "within budget"]
    return table(head, rows)


def _effective(counts: Mapping[str, int]) -> str:
    number = effective_number(counts)
    return NOTHING if number is None else f"{number:.1f}"


def class_table(run: ReportedRun) -> str:
    """The most frequent classes of the whole run."""
    whole = run.structures[-1]
    frequent = sorted(whole.valid, key=lambda name: (-whole.valid[name], name))
    n_valid, n_accepted = sum(whole.valid.values()), sum(whole.accepted.values())
    rows: list[Row] = [
        (name, f"{whole.valid[name]}/{n_valid}", f"{whole.accepted[name]}/{n_accepted}")
        for name in frequent[:_CLASSES_SHOWN]
    ]
    if rest := frequent[_CLASSES_SHOWN:]:
        valid, accepted = (sum(c[name] for name in rest) for c in (whole.valid, whole.accepted))
        rows.append((f"{len(rest)} more", f"{valid}/{n_valid}", f"{accepted}/{n_accepted}"))
    return table(("class", "valid", "accepted"), rows)


def grid_table(run: ReportedRun) -> str:
    """The niches of the most frequent classes."""
    whole = run.structures[-1]
    cells = sorted({cell for _, cell in whole.grid}, key=cell_order)
    rows = []
    for name in sorted(whole.valid, key=lambda name: (-whole.valid[name], name))[:_CLASSES_SHOWN]:
        found = [whole.grid.get((name, cell)) for cell in cells]
        rows.append([name, *(NOTHING if cell is None else _niche_text(cell) for cell in found)])
    return table(["class", *cells], rows)


def _niche_text(cell: Cell) -> str:
    best = "" if cell.best is None else f" ({100 * cell.best:.1f})"
    return f"{cell.accepted}/{cell.valid}{best}"
