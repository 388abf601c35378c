"""The published runs judged again: decisions, thresholds and scores are those that are stored."""

from __future__ import annotations

import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from archloop.corpus.pairs import write_pairs
from archloop.corpus.seed_corpus import seed_pairs
from archloop.loop.rejudge import rejudge
from archloop.machine.downloads import sha256_of
from archloop.progress import Silent
from archloop.search.selection import threshold_of
from archloop.search.temperature import temperature_of
from archloop.store.run_dir import Run, RunDir
from archloop.types import Candidate

RUNS = Path(__file__).parents[2] / "docs" / "runs"
NAMES = sorted(path.parent.name for path in RUNS.glob("*/run.db"))


def _scores(row: Candidate) -> dict[str, Any]:
    """Everything of a row; the first runs named a seed network without ``seed:``."""
    fields = asdict(row)
    names = {key: (fields[key] or "").removeprefix("seed:") for key in ("nearest", "nearest_graph")}
    return fields | names


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_published_run_judged_again_is_what_is_stored(tmp_path: Path, name: str) -> None:
    root = tmp_path / name
    root.mkdir()
    for file in ("config.json", "run.db"):
        shutil.copy(RUNS / name / file, root / file)
    with Run.open(root) as run:
        config, stats = run.config, run.cycles()
        decided = {d.id: d for d in run.store.decisions()}
        # Its first corpus is the packaged one, and not kept a second time.
        write_pairs(RunDir(root).corpus(1), seed_pairs(config, Silent(), lambda _: []))
    assert sha256_of(RunDir(root).corpus(1)) == stats[0].corpus_sha256
    committed = {s.cycle for s in stats}
    found = [(a, b) for a, b in rejudge(root, config) if a.cycle in committed]
    assert len(found) == sum(s.n_valid for s in stats) == len(decided)
    for before, after in found:
        assert _scores(after) == _scores(before)
        assert decided[after.id].outcome is after.outcome
    assert len({after.outcome for _, after in found}) > 1, "something was accepted, something not"


@pytest.mark.parametrize("name", NAMES)
def test_thresholds_and_temperatures_of_a_published_run_follow_from_its_cycles(name: str) -> None:
    with Run.open(RUNS / name) as run:
        config, stats = run.config, run.cycles()
    assert stats
    for n, cycle in enumerate(stats):
        accuracies = [s.accuracies for s in stats[: n + 1]]
        lowest = config.generation.temperature
        assert cycle.threshold == threshold_of(config.selection, accuracies)
        assert cycle.temperature == temperature_of(lowest, config.search, stats[:n])
