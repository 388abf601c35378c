"""The report of one or more runs: ``report.md`` for people, CSV files for programs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from archloop.report.csv_tables import csv_files
from archloop.report.figures import cycles_svg, timeline_svg
from archloop.report.markdown import markdown
from archloop.report.reported import read_runs


def write_report(runs: Sequence[Path], out: Path) -> list[Path]:
    """Write the report of the given runs into a folder, over an older report there.

    ``report.md`` has the paper's table 2 for each run; ``cycles.csv``, ``totals.csv`` and
    ``outcomes.csv`` hold the same figures as fractions, with every k and n; ``candidates.csv`` has
    one row a candidate. Only committed cycles count in the first four. ``cycles-N.svg`` draws
    the curves of the Nth run, ``timeline-N.svg`` when its work was done.

    Args:
        runs: Run directories, running ones too.
        out: Folder of the report; made if absent.

    Returns:
        The files written.

    Raises:
        UsageError: One of the directories is no run.
    """
    reported = read_runs(runs)
    out.mkdir(parents=True, exist_ok=True)
    files = {"report.md": markdown(reported), **csv_files(reported)}
    for number, run in enumerate(reported, start=1):
        if cycles := run.summary.cycles:
            files[f"cycles-{number}.svg"] = cycles_svg(run.label, cycles, run.thresholds)
        if run.spans:
            files[f"timeline-{number}.svg"] = timeline_svg(run.label, run.spans)
    return [_replace(out / name, text) for name, text in files.items()]


def _replace(path: Path, text: str) -> Path:
    temporary = path.with_name(f".{path.name}.part")
    temporary.write_text(text, "utf-8")
    temporary.replace(path)
    return path
