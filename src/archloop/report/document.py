"""The report of one or more runs: ``report.md`` for people, CSV files for programs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from archloop.files import filling
from archloop.report.csv_tables import csv_files
from archloop.report.diagrams import designs_svg
from archloop.report.figures import classes_svg, cycles_svg, timeline_svg
from archloop.report.markdown import markdown
from archloop.report.reported import read_runs

_OF_ONE_RUN = re.compile(r"(cycles|timeline|classes|designs)-\d+\.svg")
"""Files that a report has for each of its runs."""


def write_report(runs: Sequence[Path], out: Path) -> list[Path]:
    """Write the report of the given runs into a folder, in the place of an older report there.

    ``report.md`` has the paper's table 2 for each run; ``cycles.csv``, ``totals.csv`` and
    ``outcomes.csv`` hold the same figures as fractions, with every k and n; ``candidates.csv`` has
    one row a candidate; ``diversity.csv``, ``structures.csv``, ``classes.csv``, ``niches.csv`` and
    ``motifs.csv`` say how different networks are and what they are built of. Only committed cycles
    count in all but ``candidates.csv``. ``cycles-N.svg`` draws the curves of the Nth run,
    ``classes-N.svg`` the shares of its structure classes, ``designs-N.svg`` accepted networks as
    block diagrams, ``timeline-N.svg`` when its work was done. Nothing is changed before all of it
    is on the disk; then drawings of runs that an older report had are removed.

    Args:
        runs: Run directories, running ones too.
        out: Folder of the report; made if absent.

    Returns:
        The files written.

    Raises:
        UsageError: One of the directories is no run, or named twice.
    """
    reported = read_runs(runs)
    files = {"report.md": markdown(reported), **csv_files(reported)}
    for number, run in enumerate(reported, start=1):
        if cycles := run.summary.cycles:
            files[f"cycles-{number}.svg"] = cycles_svg(run.label, cycles)
        if run.structures:
            files[f"classes-{number}.svg"] = classes_svg(run.label, run.structures[:-1])
            files[f"designs-{number}.svg"] = designs_svg(run.label, run.candidates)
        if run.spans:
            files[f"timeline-{number}.svg"] = timeline_svg(run.label, run.spans)
    with filling(out, replace=True) as folder:
        for name, text in files.items():
            (folder / name).write_text(text, "utf-8")
    for path in out.iterdir():
        if _OF_ONE_RUN.fullmatch(path.name) and path.name not in files:
            path.unlink()
    return [out / name for name in files]
