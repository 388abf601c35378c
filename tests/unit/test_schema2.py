"""The published runs are stores of schema 2: what is read from them is what they were printed as."""

from __future__ import annotations

import hashlib
import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from archloop.errors import UsageError
from archloop.search.selection import threshold_of
from archloop.search.temperature import temperature_of
from archloop.store.run_dir import Run
from archloop.store.store import Store
from archloop.types import Outcome

RUNS = Path(__file__).parents[2] / "docs" / "runs"

GOLDEN = {
    "embedded-22": "43212252efe3769d862c01039e4e64fb84aefdc4701b005a1a7e02d1301f5f5e",
    "embedded-capped": "73530d6353eb4be678e9f98374241321d5af62c0890b0fecf2f903fe9d4ce619",
    "embedded-fp32": "22a1621a67492ec03d8fc8ac5703e4d9f09229b6f396f3074991a7a9063e96e4",
    "embedded-linear": "559cea5ddb10fb77e6eda413bdabe0e578e730b447a2f9e4fb5d80f80ead228f",
    "embedded-quick": "5120e0aea6efbf7b91b6a6d5d93239a5b727f183607dee4d2208f5e36531ab0d",
}
"""SHA-256 of the public rows of each run's candidates, as archloop printed them with schema 2."""


@pytest.mark.parametrize("name", GOLDEN)
def test_a_published_run_reads_as_it_was_printed(name: str) -> None:
    with Run.open(RUNS / name) as run:
        candidates, cycles, config = run.store.candidates(), run.cycles(), run.config
        decisions = run.store.decisions()
        requests = {(r.cycle, r.index): r for s in cycles for r in run.store.requests(s.cycle)}
        counts = run.store.outcome_counts()
        n_accepted = run.store.n_accepted()
    rows = [candidate.to_json() for candidate in candidates]
    for row in rows:
        assert row.pop("measures") == {}
    digest = hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()
    assert digest == GOLDEN[name]
    accuracies = [stats.accuracies for stats in cycles]
    for n, stats in enumerate(cycles):
        assert stats.threshold == threshold_of(config.selection, accuracies[: n + 1])
        lowest = config.generation.temperature
        assert stats.temperature == temperature_of(lowest, config.search, cycles[:n])  # type: ignore[arg-type]
        assert {r.temperature for r in requests.values() if r.cycle == stats.cycle} == {
            stats.temperature
        }
    assert requests.keys() >= {(c.cycle, c.index) for c in candidates}
    assert counts.total() == len(candidates)
    assert n_accepted == sum(stats.n_accepted for stats in cycles) > 0
    decided = [c.id for c in candidates if c.outcome.is_valid]
    assert [d.id for d in decisions] == decided
    for decision in decisions:
        assert bool(decision.rejected_by) == (decision.outcome is not Outcome.ACCEPTED)
        if decision.outcome is Outcome.NEAR_DUPLICATE:
            assert decision.rejected_by == decision.scores.rejected_by == ("lexical",)


def test_without_its_configuration_nothing_is_made_up(tmp_path: Path) -> None:
    copy = shutil.copy(RUNS / "embedded-quick" / "run.db", tmp_path)
    with Store(copy, read_only=True) as store:
        assert {(s.threshold, s.temperature) for s in store.cycles()} == {(None, None)}
        assert store.requests(1) == []
        assert len(store.completions(1)) == store.n_completions(1) == 24
        assert all(d.rejected_by == () for d in store.decisions())


def test_it_is_not_continued(tmp_path: Path) -> None:
    copy = Path(shutil.copy(RUNS / "embedded-quick" / "run.db", tmp_path))
    before = copy.read_bytes()
    with pytest.raises(UsageError, match=r"archloop 0\.1\.0 \(schema 2\).*not continued") as fault:
        Store(copy)
    assert "\n" not in str(fault.value)
    assert copy.read_bytes() == before


def test_threads_read_one_store() -> None:
    with Store(RUNS / "embedded-quick" / "run.db", read_only=True) as store:
        whole = store.candidates()
        with ThreadPoolExecutor(4) as pool:
            assert all(found == whole for found in pool.map(lambda _: store.candidates(), range(8)))
