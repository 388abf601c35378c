"""The smoke preset: the whole loop with the real LLM, through the command line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from archloop.store.run_dir import Run, RunDir

pytestmark = [pytest.mark.llm, pytest.mark.slow]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("smoke") / "run"
    command = [sys.executable, "-m", "archloop", "run", "smoke", "--run-dir", str(root)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Best network" in done.stdout
    assert str(root) in done.stdout.replace("\n", "")
    return root


def test_the_llm_writes_networks_that_work(root: Path) -> None:
    with Run.open(root) as run:
        (cycle,) = run.cycles()
        assert run.state() == "finished"
        assert run.task() == "digits"
    assert cycle.n_gen == 4
    assert cycle.n_valid >= 1
    assert sum(cycle.outcomes.values()) == 4


def test_the_closing_adapter_goes_on_from_the_first(root: Path) -> None:
    with Run.open(root) as run:
        accepted = run.cycles()[0].n_accepted
    first, last = RunDir(root).adapter(1), RunDir(root).adapter(2)
    lineage = json.loads((last / "lineage.json").read_text())
    if accepted:
        assert (lineage["init"], lineage["parent"]) == ("previous", first.name)
        assert lineage["n_pairs"] == accepted
    else:
        assert lineage["taken_over_from"] == first.name


def test_plain_datasets_reads_the_corpus(root: Path) -> None:
    from datasets import load_dataset

    with Run.open(root) as run:
        accepted = run.cycles()[0].n_accepted
    if not accepted:
        pytest.skip("nothing was accepted in this run")
    rows = load_dataset("json", data_files=str(RunDir(root).corpus(2)), split="train")
    assert len(rows) == accepted
    assert [m["role"] for m in rows[0]["messages"]] == ["system", "user", "assistant"]


def test_status_and_report_read_the_run(root: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "archloop"]
    status = subprocess.run(
        [*command, "status", str(root), "--json"], capture_output=True, text=True, check=True
    )
    told = json.loads(status.stdout)
    assert told["state"] == "finished"
    assert len(told["cycles"]) == 1
    out = tmp_path / "report"
    subprocess.run([*command, "report", str(root), "--out", str(out)], check=True)
    assert "Wilson" in (out / "report.md").read_text() or "95 %" in (out / "report.md").read_text()
    assert (out / "cycles.csv").is_file()
