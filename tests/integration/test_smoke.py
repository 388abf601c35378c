"""The smoke preset: the whole loop with the real LLM, through the command line."""

from __future__ import annotations

import csv
import hashlib
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from safetensors.torch import load_file

from archloop.code.chat import extract_code
from archloop.stats import wilson_interval
from archloop.store.run_dir import Run, RunDir

pytestmark = [pytest.mark.llm, pytest.mark.slow]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("smoke") / "run"
    # Without a threshold the first valid network is accepted, so that there is a corpus to see.
    changed = ["--set", "selection.min_accuracy=0"]
    command = [sys.executable, "-m", "archloop", "run", "smoke", "--run-dir", str(root), *changed]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with Run.open(root) as run:
        valid = [c for c in run.store.candidates() if c.first_epoch_accuracy is not None]
    best = max(valid, key=lambda c: c.first_epoch_accuracy or 0.0)
    assert best.code is not None
    shown = "".join(done.stdout.split())
    assert "Bestnetwork" in shown
    assert "".join(best.code.split()) in shown
    assert str(root) in shown
    return root


def accepted(root: Path) -> list[str]:
    """The networks that the run accepted, in the order of their ids."""
    with Run.open(root) as run:
        return [c.code or "" for c in run.store.accepted()]


def test_the_llm_writes_networks_that_work(root: Path) -> None:
    with Run.open(root) as run:
        (cycle,) = run.cycles()
        candidates, completions = run.store.candidates(), run.store.completions(1)
        assert run.state() == "finished"
        assert run.task() == "digits"
    assert cycle.n_gen == len(completions) == len(candidates) == 4
    assert (
        cycle.n_valid
        == sum(c.outcome.is_valid or c.first_epoch_accuracy is not None for c in candidates)
        >= 1
    )
    assert cycle.outcomes == Counter(c.outcome.value for c in candidates)
    assert cycle.n_accepted == len(accepted(root)) >= 1
    assert cycle.n_tokens == sum(c.n_tokens for c in completions)


def test_the_closing_adapter_goes_on_from_the_first(root: Path) -> None:
    first, last = RunDir(root).adapter(1), RunDir(root).adapter(2)
    lineage = json.loads((last / "lineage.json").read_text())
    assert (lineage["init"], lineage["parent"]) == ("previous", first.name)
    assert lineage["n_pairs"] == len(accepted(root))
    before, after = (load_file(d / "adapter_model.safetensors") for d in (first, last))
    assert before.keys() == after.keys()
    assert any((before[name] != after[name]).any() for name in before)


def test_plain_datasets_reads_the_corpus(root: Path) -> None:
    from datasets import load_dataset

    rows = load_dataset("json", data_files=str(RunDir(root).corpus(2)), split="train")
    networks = accepted(root)
    assert len(rows) == len(networks)
    for row, code in zip(rows, networks, strict=True):
        assert [m["role"] for m in row["messages"]] == ["system", "user", "assistant"]
        written = extract_code(row["messages"][2]["content"])
        assert written is not None
        assert "class Net" in written
        assert row["meta"]["code_sha256"] == hashlib.sha256(code.encode()).hexdigest()


def test_status_and_report_read_the_run(root: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "archloop"]
    status = subprocess.run(
        [*command, "status", str(root), "--json"], capture_output=True, text=True, check=True
    )
    told = json.loads(status.stdout)
    with Run.open(root) as run:
        (cycle,) = run.cycles()
    low, high = wilson_interval(cycle.n_valid, 4)
    assert told["state"] == "finished"
    (row,) = told["cycles"]
    assert row["valid"] == {
        "k": cycle.n_valid,
        "n": 4,
        "rate": cycle.n_valid / 4,
        "interval": [low, high],
    }
    out = tmp_path / "report"
    subprocess.run([*command, "report", str(root), "--out", str(out)], check=True)
    cell = f"{25 * cycle.n_valid:.1f} [{100 * low:.1f}, {100 * high:.1f}] ({cycle.n_valid}/4)"
    assert f"| 1 | 0.8 | {cell} |" in (out / "report.md").read_text()
    with (out / "cycles.csv").open() as lines:
        (line,) = csv.DictReader(lines)
    assert (line["valid_k"], line["valid_n"]) == (str(cycle.n_valid), "4")
    assert (float(line["valid_low"]), float(line["valid_high"])) == (low, high)
