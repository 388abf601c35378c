from __future__ import annotations

from pathlib import Path

from archloop.search.measures import MEASURES
from archloop.store.store import Store
from archloop.types import PROFILE, Completion, GraphSketch, Outcome, Request, Verdict


def test_every_measure_that_the_store_holds_is_described(tmp_path: Path) -> None:
    everything = Verdict(
        Outcome.VALID,
        n_params=1,
        first_epoch_accuracy=0.5,
        train_seconds=2.0,
        harness_accuracy=0.4,
        work=1.5,
        graph=GraphSketch("0" * 64, b"", profile=dict.fromkeys((*PROFILE, "macs"), 3.0)),
    )
    with Store(tmp_path / "run.db") as store:
        store.add_requests([Request(1, 0, 0, "t", (), 0.0)])
        store.add_completions([Completion(1, 0, "text", 1, "stop")])
        store.add_verdict(
            1,
            0,
            verdict=everything,
            code="x",
            code_sha256=None,
            isolation=None,
            protocol=None,
            training=None,
        )
        (row,) = store.candidates()
    fields = row.to_json()
    held = {name for name in MEASURES if fields.get(name) is not None} | set(row.measures)
    assert held == set(MEASURES)
    assert {m.direction for m in MEASURES.values()} == {"max", "min", None}
