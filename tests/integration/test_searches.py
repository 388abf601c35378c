"""Searches that do not learn, end to end: the random grammar, and a frozen LLM with feedback."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from archloop.config import RunConfig, load_config
from archloop.errors import UsageError
from archloop.loop.run import run
from archloop.store.run_dir import Run, RunDir

SMALL = (
    "task.name=digits",
    "protocol.train_images=300",
    "protocol.validation_images=100",
    "selection.min_accuracy=0.0",
    "seeds.source=none",
)


def configured(*overrides: str) -> RunConfig:
    return load_config("smoke", [*SMALL, *overrides])


def rows(root: Path) -> list[dict[str, object]]:
    """Everything that has to be the same, however often a run was interrupted; times are not."""
    with Run.open(root) as opened:
        found = [c.to_json() for c in opened.store.candidates()]
    for row in found:
        row["measures"].pop("work", None)
    return [{k: v for k, v in row.items() if k != "train_seconds"} for row in found]


def kill_after_the_first_verdict(config: RunConfig, root: Path) -> None:
    code = (
        "import json, sys, archloop; from archloop.config import resolve; "
        "archloop.run(resolve(json.loads(sys.argv[1])), sys.argv[2])"
    )
    text = json.dumps(config.model_dump(mode="json"))
    process = subprocess.Popen([sys.executable, "-c", code, text, str(root)])
    try:
        while True:
            assert process.poll() is None, "the run ended before it was killed"
            with suppress(UsageError), Run.open(root) as opened:
                if opened.store.candidates(1):
                    return
            time.sleep(0.01)
    finally:
        process.kill()
        process.wait()


def test_a_random_search_needs_no_llm_and_ends_the_same_when_it_was_killed(tmp_path: Path) -> None:
    config = configured("search.type=random", "loop.cycles=2", "loop.completions=4")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run(config, whole).close()
    kill_after_the_first_verdict(config, killed)
    run(config, killed).close()
    assert rows(killed) == rows(whole)
    found = rows(whole)
    assert len(found) == 8
    assert {row["outcome"] for row in found} <= {"accepted", "near_duplicate"}
    assert all(isinstance(row["measures"], dict) and row["measures"]["macs"] for row in found)
    with Run.open(whole) as opened:
        asked = opened.store.requests(2)
        stats = opened.cycles()
    assert {(r.origin.operator, r.messages) for r in asked} == {("grammar", ())}
    assert [(s.adapter, s.temperature, s.threshold) for s in stats] == [("none", None, 0.0)] * 2
    assert stats[1].corpus_size == stats[0].n_accepted
    assert not RunDir(whole).adapter(1).exists()
    # What it accepted is a corpus that an LLM can be taught with.
    first = json.loads(RunDir(whole).corpus(2).read_text().splitlines()[0])
    assert [m["role"] for m in first["messages"]] == ["system", "user", "assistant"]
    assert first["meta"]["model"] == "grammar"


def test_a_local_search_edits_what_it_accepted(tmp_path: Path) -> None:
    config = configured(
        "search.type=random",
        "search.grammar=designs",
        "search.edits=1.0",
        "loop.cycles=2",
        "loop.completions=4",
    )
    run(config, tmp_path / "run").close()
    with Run.open(tmp_path / "run") as opened:
        first, second = opened.store.requests(1), opened.store.requests(2)
        accepted = {c.id for c in opened.store.candidates(1) if c.outcome.value == "accepted"}
        judged = opened.store.candidates(2)
    assert {r.origin.operator for r in first} == {"grammar"}
    assert accepted
    assert all(r.origin.operator.startswith("edit:") for r in second)
    assert {parent for r in second for parent in r.origin.parents} <= accepted
    assert any(c.outcome.is_valid for c in judged)


@pytest.mark.llm
@pytest.mark.slow
def test_a_frozen_llm_sees_what_became_of_its_networks_and_a_run_in_two_parts_is_the_same(
    tmp_path: Path,
) -> None:
    keys = ("search.type=feedback", "loop.completions=2", "generation.max_new_tokens=700")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run(configured(*keys, "loop.cycles=2"), whole).close()
    run(configured(*keys, "loop.cycles=1"), parts).close()
    run(configured(*keys, "loop.cycles=2"), parts).close()
    assert rows(parts) == rows(whole)
    with Run.open(whole) as opened:
        first, second = opened.store.requests(1), opened.store.requests(2)
        shown = [c for c in opened.store.candidates(1) if c.code is not None]
        assert [s.adapter for s in opened.cycles()] == ["cycle_01", "cycle_02"]
    assert {r.origin.parents for r in first} == {()}
    assert shown
    assert {r.origin.parents for r in second} == {tuple(c.id for c in shown)}
    prompt = second[0].messages[-1]["content"]
    assert all(c.code in prompt for c in shown if c.code is not None)
    assert prompt.count("Result: ") == len(shown)
    # The adapter is the same folder of weights: nothing was learnt.
    weights = [RunDir(whole).adapter(c) / "adapter_model.safetensors" for c in (1, 2)]
    assert weights[0].read_bytes() == weights[1].read_bytes()
