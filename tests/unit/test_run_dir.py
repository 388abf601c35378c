from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from archloop.config import load_config
from archloop.errors import RunLockedError, UsageError
from archloop.store.run_dir import FINISHED, Run, RunDir
from archloop.store.store import Store
from archloop.types import GraphSketch, Outcome, Verdict
from made_runs import add_texts


@pytest.fixture
def run_dir(tmp_path: Path) -> RunDir:
    paths = RunDir(tmp_path / "run")
    paths.root.mkdir()
    paths.config.write_text(load_config("smoke").model_dump_json(), "utf-8")
    Store(paths.database).close()
    return paths


def test_paths_are_those_of_the_public_layout(tmp_path: Path) -> None:
    paths = RunDir(tmp_path)
    assert paths.corpus(1) == tmp_path / "corpus" / "cycle_01.jsonl"
    assert paths.adapter(22) == tmp_path / "adapters" / "cycle_22"
    assert paths.candidates(3) == tmp_path / "candidates" / "cycle_03"


def test_open_gives_the_configuration_and_the_public_rows(run_dir: RunDir) -> None:
    with Store(run_dir.database) as store:
        add_texts(store, 1, ["text"] * 2)
        for index, outcome in enumerate((Outcome.VALID, Outcome.TIMEOUT)):
            verdict = Verdict(outcome)
            if outcome.is_valid:
                verdict = Verdict(outcome, first_epoch_accuracy=0.5, graph=GraphSketch("1f", b""))
            store.add_verdict(
                1,
                index,
                verdict=verdict,
                code="x",
                code_sha256="a",
                isolation=None,
                protocol=None,
                training=None,
            )
    with Run.open(run_dir.root) as run:
        assert run.config == load_config("smoke")
        frame = run.candidates()
        shown = [candidate.to_json() for candidate in run.store.candidates()]
    assert list(frame["id"]) == ["c01-0000", "c01-0001"]
    assert list(frame["outcome"]) == ["valid", "timeout"]
    assert frame["first_epoch_accuracy"].mean() == 0.5
    assert set(frame.columns) == {*shown[0], "code"}
    assert list(frame["graph_hash"].dropna()) == ["1f"]


def test_the_best_candidate_comes_first_with_its_code(run_dir: RunDir) -> None:
    accuracies = [None, 0.25, 0.0, 0.75, 0.25]
    with Store(run_dir.database) as store:
        add_texts(store, 1, ["text"] * len(accuracies))
        for index, accuracy in enumerate(accuracies):
            outcome = Outcome.TIMEOUT if accuracy is None else Outcome.VALID
            store.add_verdict(
                1,
                index,
                verdict=Verdict(outcome, first_epoch_accuracy=accuracy),
                code=f"x = {index}",
                code_sha256=None,
                isolation=None,
                protocol=None,
                training=None,
            )
    with Run.open(run_dir.root) as run:
        frame = run.candidates()
    assert list(frame["code"]) == ["x = 3", "x = 1", "x = 4", "x = 2", "x = 0"]
    assert frame.iloc[0]["first_epoch_accuracy"] == 0.75
    assert list(frame.index) == [0, 1, 2, 3, 4]


def test_an_empty_run_has_the_same_columns(run_dir: RunDir) -> None:
    with Run.open(run_dir.root) as run:
        frame = run.candidates()
        assert run.cycles() == []
    assert len(frame) == 0
    assert {"first_epoch_accuracy", "graph_hash"} <= set(frame.columns)


@pytest.mark.parametrize("missing", ["config.json", "run.db"])
def test_a_directory_that_is_no_run_is_refused_by_name(run_dir: RunDir, missing: str) -> None:
    (run_dir.root / missing).unlink()
    with pytest.raises(UsageError, match=str(run_dir.root)):
        Run.open(run_dir.root)


@pytest.mark.parametrize("text", ["{", json.dumps({"loop": {"cycle": 3}})])
def test_a_configuration_that_cannot_be_read_is_refused(run_dir: RunDir, text: str) -> None:
    run_dir.config.write_text(text)
    with pytest.raises(UsageError, match=r"config\.json"):
        Run.open(run_dir.root)


def test_state_follows_the_lock_and_the_store(run_dir: RunDir) -> None:
    with Run.open(run_dir.root) as run:
        assert run.state() == "interrupted"
        holder = subprocess.Popen(
            [
                sys.executable,
                "-c",
                "import sys; from pathlib import Path; from archloop.store.run_dir import RunDir\n"
                "with RunDir(Path(sys.argv[1])).lock(): print('held', flush=True); input()",
                str(run_dir.root),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "held\n"
            assert run.state() == "running"
            with pytest.raises(RunLockedError, match="another process"), run_dir.lock():
                pass
        finally:
            holder.kill()
            holder.communicate()
        assert run.state() == "interrupted", "a killed process holds nothing"
        holding = run_dir.lock()
        with holding, Store(run_dir.database) as store:
            store.set_meta(FINISHED, "2026-01-01T00:00:00+00:00")
        assert not run_dir.is_locked(), "held until the end of the with statement only"
        assert run.state() == "finished"


def test_looking_at_a_run_makes_no_file(run_dir: RunDir) -> None:
    before = sorted(path.name for path in run_dir.root.iterdir())
    with Run.open(run_dir.root) as run:
        run.state()
        run.candidates()
    assert sorted(path.name for path in run_dir.root.iterdir()) == before
