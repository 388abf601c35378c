"""Whole runs on real images in the real sandbox, with completions repeated from an earlier run.

The LLM is left out here (its engines have their own tests), so that a run takes seconds and can be
killed many times.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from archloop.code.chat import render_code
from archloop.config import RunConfig, resolve
from archloop.corpus.pairs import make_pair, read_pairs, write_pairs
from archloop.errors import (
    ArchloopError,
    ConfigError,
    DivergedError,
    NothingToLearnError,
    RunLockedError,
    UsageError,
)
from archloop.llm.finetuning import FinetuneResult
from archloop.llm.finetuning.learner import LearningJob
from archloop.llm.models import resolve_adapter
from archloop.loop.context import open_context
from archloop.loop.corpora import corpus_of
from archloop.loop.rejudge import rejudge
from archloop.loop.run import run, run_cycles
from archloop.progress import Progress, Silent
from archloop.search.prompts import CIFAR10, PromptTemplate
from archloop.store.run_dir import SESSIONS, Run, RunDir
from archloop.store.store import Store
from conftest import network
from made_runs import add_texts
from tiny_llm import random_llm

CYCLES, COMPLETIONS = 2, 8


def answers(cycle: int) -> list[str]:
    """Eight completions: good, twin, near twin, weak, broken in three ways, another good one."""
    # Distinct statements keep the good networks of the two cycles apart.
    own = "; ".join(f"self.c{cycle}x{i} = {i + cycle}" for i in range(40))
    good = network(init=own)
    weak = network(init=own.replace("x", "y"), learn="self.optimizer.param_groups[0]['lr'] = 0.0")
    other = network(init=own.replace("x", "z")).replace("kernel_size=3, padding=1", "kernel_size=1")
    return [
        render_code(good),
        render_code(good),
        render_code(good.replace("(4, 4)", "(4,  4)").replace("bias", "b")),
        render_code(weak),
        "I would rather not.",
        render_code(network(forward="x = x[:, :0]")),
        render_code("import os\nos.nice(1)\n" + good),
        render_code(other),
    ]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory whose completions are repeated, an adapter folder and a seed corpus."""
    root = tmp_path_factory.mktemp("source")
    with Store(RunDir(root).database) as store:
        for cycle in range(1, CYCLES + 1):
            add_texts(store, cycle, answers(cycle))
    (root / "adapter").mkdir()
    (root / "adapter" / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    save_file({"lora": np.zeros(1)}, root / "adapter" / "adapter_model.safetensors")
    prompt = PromptTemplate().render(CIFAR10, 500_000)
    write_pairs(root / "seeds.jsonl", [make_pair(prompt, network(init="self.seed = 1"), {})])
    return root


def config(source: Path, **changes: object) -> RunConfig:
    tree: dict[str, object] = {
        "llm": {"warm_start": str(source / "adapter")},
        "seeds": {"source": "none"},
        "generation": {"engine": "replay", "replay_from": str(source), "batch_size": 3},
        "task": {"name": "digits", "image_size": 16, "max_params": 100_000},
        "protocol": {"augmentation": "none", "lr": 0.05},
        "selection": {"min_accuracy": 0.2},
        "finetune": {"enabled": False},
        "loop": {"cycles": CYCLES, "completions": COMPLETIONS},
    }
    return resolve(tree | changes)


def rows(root: Path) -> list[dict[str, object]]:
    """Everything that has to be the same, however often a run was interrupted."""
    with Run.open(root) as opened:
        found = [c.to_json() for c in opened.store.candidates()]
    return [{k: v for k, v in row.items() if k != "train_seconds"} for row in found]


@pytest.fixture(scope="module")
def unbroken(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("unbroken") / "run"
    run(config(source), root).close()
    return root


def test_a_cycle_ends_with_every_outcome_explained(unbroken: Path) -> None:
    first = rows(unbroken)[:COMPLETIONS]
    assert [row["outcome"] for row in first] == [
        "accepted",
        "near_duplicate",
        "near_duplicate",
        "below_threshold",
        "no_code",
        "forward_error",
        "forbidden_code",
        "accepted",
    ]
    assert [row["rejection_count"] for row in first if row["rejection_count"] is not None] == [
        0,
        0,
        1,
        2,
        2,
    ]
    assert first[1]["nn_jaccard_gen"] == 1.0
    assert first[0]["nn_jaccard_gen"] == 0.0
    assert all(row["error"] for row in first if not row["first_epoch_accuracy"])


def test_the_statistics_keep_counts_and_the_corpus_grows(unbroken: Path) -> None:
    with Run.open(unbroken) as opened:
        assert opened.state() == "finished"
        first, second = opened.cycles()
        frame = opened.candidates()
    assert (first.n_gen, first.n_valid, first.n_accepted, first.n_near_duplicate) == (8, 5, 2, 2)
    assert (first.corpus_size, second.corpus_size) == (0, 2)
    assert len(frame) == CYCLES * COMPLETIONS
    assert {"id", "outcome", "first_epoch_accuracy", "protocol", "isolation"} <= set(frame.columns)
    pairs = read_pairs(RunDir(unbroken).corpus(CYCLES + 1))
    assert [p.meta["candidate"] for p in pairs[:2]] == ["c01-0000", "c01-0007"]
    assert (RunDir(unbroken).candidates(1) / "c01-0000.py").is_file()


def test_the_time_of_every_completion_and_evaluation_is_kept(unbroken: Path) -> None:
    with Run.open(unbroken) as opened:
        spans, candidates = opened.store.spans(), opened.store.candidates()
    executed = {(c.cycle, c.index) for c in candidates if c.isolation and c.code}
    sampled = {(s.cycle, s.index) for s in spans if s.stage == "generate"}
    evaluated = [(s.cycle, s.index) for s in spans if s.stage == "evaluate"]
    assert sampled == {(c.cycle, c.index) for c in candidates}
    assert set(evaluated) <= executed
    assert {(c.cycle, c.index) for c in candidates if c.outcome.is_valid} <= set(evaluated)
    assert len(evaluated) == len(set(evaluated))
    assert all(s.begin <= s.end for s in spans)


def test_a_network_accepted_before_is_a_near_duplicate_later(source: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    again.mkdir()
    with Store(RunDir(again).database) as store:
        for cycle in (1, 2):
            add_texts(store, cycle, answers(1)[:1] * 2)
    changed = {
        "generation": {"engine": "replay", "replay_from": str(again), "batch_size": 2},
        "loop": {"cycles": 2, "completions": 2},
    }
    run(config(source, **changed), tmp_path / "run").close()
    found = rows(tmp_path / "run")
    assert [r["outcome"] for r in found] == ["accepted"] + ["near_duplicate"] * 3
    assert found[2]["nn_jaccard_train"] == 1.0
    assert found[2]["nearest"] == "c01-0000"


def test_every_view_of_novelty_is_kept_and_a_run_can_be_judged_again(unbroken: Path) -> None:
    first = rows(unbroken)[0]
    assert isinstance(first["graph_hash"], str)
    assert (first["nn_graph_train"], first["near_dup_graph_gen"]) == (0.0, False)
    lexical = list(rejudge(unbroken, resolve({})))
    kept = config(unbroken)
    same = list(rejudge(unbroken, kept))
    assert [a.outcome for a, _ in same] == [b.outcome for _, b in same]
    assert [a.rejection_count for a, _ in same] == [b.rejection_count for _, b in same]
    # The two good networks of a cycle differ by a kernel; the weak one computes what the good does.
    by_graph = resolve({**kept.model_dump(mode="json"), "novelty": {"kind": "graph"}})
    after = {b.id: b.outcome.value for _, b in rejudge(unbroken, by_graph)}
    assert after["c01-0000"] == after["c01-0007"] == "accepted"
    assert after["c01-0003"] == after["c02-0000"] == "near_duplicate"
    assert len(lexical) == len(same) == len(after) == 10


def test_seeds_are_traced_at_the_size_that_candidates_are_trained_at(
    source: Path, tmp_path: Path
) -> None:
    changed = {
        "seeds": {"source": "jsonl", "path": str(source / "seeds.jsonl")},
        "protocol": {"augmentation": "none", "lr": 0.05, "resize": 24},
        "novelty": {"kind": "graph"},
        "loop": {"cycles": 1, "completions": 1},
    }
    run(config(source, **changed), tmp_path / "run").close()
    (found,) = rows(tmp_path / "run")
    # The seed computes the same; its text is another.
    assert (found["outcome"], found["near_dup_graph_train"]) == ("near_duplicate", True)
    assert found["near_dup_text_train"] is False
    again = list(rejudge(tmp_path / "run", config(source, **changed)))
    assert [a.near_dup_graph_train for _, a in again] == [True]


class Failing:
    """A learner whose every fine-tune fails; it remembers the cycles of what it was taught."""

    def __init__(self, error: type[ArchloopError]) -> None:
        self.error, self.seen = error, list[set[int]]()

    def learn(self, job: LearningJob, _on_progress: object) -> FinetuneResult:
        self.seen.append({p.meta["cycle"] for p in read_pairs(job.lessons)})
        raise self.error("no")


@pytest.mark.parametrize("error", [DivergedError, NothingToLearnError])
def test_after_a_failed_fine_tune_the_last_adapter_stays_and_its_pairs_are_new_again(
    source: Path, tmp_path: Path, error: type[ArchloopError]
) -> None:
    root, learner = tmp_path / "run", Failing(error)
    folder = tmp_path / "adapter"
    shutil.copytree(resolve_adapter("smollm2-135m-lemur"), folder)
    changed: dict[str, dict[str, object]] = {
        "llm": {"warm_start": str(folder)},
        "finetune": {"enabled": True, "init": "previous", "lora_r": 16, "lora_alpha": 16},
        "loop": {"cycles": 2, "completions": 1, "final_finetune": True},
    }
    with pytest.raises(ConfigError, match=r"finetune\.lora_r.*has r 16, alpha 32"):
        run(config(source, **changed), root)
    assert not RunDir(root).config.exists(), "refused before the run has begun"
    changed["finetune"]["lora_alpha"] = 32
    with open_context(config(source, **changed), root, Silent()) as context:
        context.learner = learner
        run_cycles(context)
        assert [sorted(s.decided) for s in context.store.cycles()] == [[], ["adapter_rejected"]]
    lineage = json.loads((RunDir(root).adapter(2) / "lineage.json").read_text())
    assert (lineage["taken_over_from"], lineage["rejected"]) == ("cycle_01", "no")
    assert learner.seen == [{1}, {1, 2}]


KILLED_AT: dict[str, Callable[[Run], bool]] = {
    "first verdict": lambda run: bool(run.store.candidates(1)),
    "fine-tune of cycle 2": lambda run: has_checkpoint(run, 2),
    "first completion of cycle 2": lambda run: bool(run.store.completions(2)),
    "last fine-tune": lambda run: has_checkpoint(run, 3),
}
"""What a run has come to when it is killed, in this order."""


def has_checkpoint(run: Run, cycle: int) -> bool:
    folder = run.paths.adapter(cycle)
    return any(folder.with_name(f"{folder.name}.checkpoints").glob("*/trainer_state.json"))


def fine_tuned(source: Path, llm: Path) -> RunConfig:
    """With fine-tunes of a tiny LLM before the second cycle and after it."""
    tree: dict[str, object] = {
        "llm": {"model": str(llm), "warm_start": str(source / "adapter"), "dtype": "float32"},
        "finetune": {
            "lora_r": 4,
            "lora_alpha": 8,
            "lora_dropout": 0.1,
            "lr": 1e-3,
            "warmup_steps": 0,
            "batch_size": 2,
            "grad_accumulation": 1,
            "epochs": 1000,
            "max_steps": 60,
            "max_length": 2048,
        },
        "loop": {"cycles": CYCLES, "completions": COMPLETIONS, "final_finetune": True},
    }
    return config(source, **tree)


def kill_at(tree: RunConfig, root: Path, reached: Callable[[Run], bool]) -> None:
    """Start a run, or go on with it, and kill it when it has come so far."""
    code = (
        "import json, sys, archloop; from archloop.config import resolve; "
        "archloop.run(resolve(json.loads(sys.argv[1])), sys.argv[2])"
    )
    text = json.dumps(tree.model_dump(mode="json"))
    process = subprocess.Popen([sys.executable, "-c", code, text, str(root)])
    try:
        while True:
            assert process.poll() is None, "the run ended before it was killed"
            # Before the run has begun there is nothing to open.
            with suppress(UsageError), Run.open(root) as opened:
                if reached(opened):
                    return
            time.sleep(0.01)
    finally:
        process.kill()
        process.wait()


@pytest.mark.slow
def test_a_killed_run_ends_like_an_unbroken_one(source: Path, tmp_path: Path) -> None:
    tree = fine_tuned(source, random_llm(tmp_path / "llm"))
    whole, root = tmp_path / "whole", tmp_path / "run"
    run(tree, whole).close()
    kept: set[tuple[object, object]] = set()
    for reached in KILLED_AT.values():
        kill_at(tree, root, reached)
        finished = {(r["id"], r["first_epoch_accuracy"]) for r in rows(root)}
        assert kept <= finished, "a finished candidate was lost or evaluated again"
        kept = finished
    assert not RunDir(root).adapter(3).exists(), "killed before the last adapter was there"
    run(tree, root).close()
    assert rows(root) == rows(whole)
    for cycle in (1, 2, 3):
        paths = [(RunDir(r).corpus(cycle), RunDir(r).adapter(cycle)) for r in (root, whole)]
        (corpus, adapter), (same_corpus, same_adapter) = paths
        assert corpus.read_bytes() == same_corpus.read_bytes()
        weights = "adapter_model.safetensors"
        assert (adapter / weights).read_bytes() == (same_adapter / weights).read_bytes()


class Told:
    """Keeps all that a run tells of."""

    def __init__(self) -> None:
        self.all: list[object] = []

    def update(self, progress: Progress) -> None:
        self.all.append(progress)

    def message(self, text: str) -> None:
        self.all.append(text)


def test_a_finished_run_is_not_run_again(source: Path, unbroken: Path) -> None:
    def state() -> dict[str, tuple[int, int]]:
        files = (p for p in unbroken.rglob("*") if p.is_file() and not p.name.startswith("run."))
        return {str(p): (p.stat().st_mtime_ns, p.stat().st_ino) for p in files}

    before, files, told = rows(unbroken), state(), Told()
    with Run.open(unbroken) as opened:
        sessions = opened.store.get_meta(SESSIONS)
    run(config(source), unbroken, told).close()
    assert told.all == []
    assert rows(unbroken) == before
    assert state() == files
    with Run.open(unbroken) as opened:
        assert opened.store.get_meta(SESSIONS) == sessions


def test_a_changed_configuration_is_refused_by_key(source: Path, unbroken: Path) -> None:
    changed = config(source, selection={"min_accuracy": 0.9})
    with pytest.raises(ConfigError, match=r"selection\.min_accuracy: 0\.2 -> 0\.9"):
        run(changed, unbroken)


def test_what_cannot_be_run_can_be_corrected_before_anything_is_made(
    source: Path, tmp_path: Path
) -> None:
    root = tmp_path / "run"
    replay = {"engine": "replay", "replay_from": str(tmp_path / "nowhere"), "batch_size": 3}
    remote = {"base_url": "http://127.0.0.1:9/v1", "api_key_env": "ARCHLOOP_TEST_UNSET"}
    wrong: dict[str, dict[str, object]] = {
        "or a folder": {"task": {"name": "2024"}},
        r"prompt\.user": {"prompt": {"user": "a network, please"}},
        "warm_start": {"llm": {"warm_start": "nowhere"}},
        "replay_from: no run in .*nowhere": {"generation": replay},
        "ARCHLOOP_TEST_UNSET": {
            "generation": {"engine": "openai"},
            "openai": remote,
            "llm": {"model": "m"},
        },
        r"pip install 'archloop\[vllm\]'": {"generation": {"engine": "vllm"}},
        r"seeds\.source": {"llm": {"model": "m"}, "generation": {"engine": "transformers"}},
        r"llm\.model": {
            "llm": {"model": str(source), "warm_start": str(source / "adapter")},
            "generation": {"engine": "transformers"},
        },
        "none": {"seeds": {"source": "directory", "path": str(tmp_path / "none")}},
    }
    if find_spec("vllm"):
        del wrong[r"pip install 'archloop\[vllm\]'"]
    for said, keys in wrong.items():
        with pytest.raises(UsageError, match=said):
            run(config(source, **keys), root)
        assert not list(root.glob("*/*"))
    right = config(source, loop={"cycles": 1, "completions": 2})
    run(right, root).close()
    assert len(rows(root)) == 2
    with pytest.raises(ConfigError, match=r"loop\.completions: 2 -> 3"):
        run(config(source, loop={"cycles": 1, "completions": 3}), root)


@pytest.mark.parametrize("missing", ["config.json", "run.db"])
def test_a_run_that_lost_a_part_is_not_begun_anew(
    source: Path, unbroken: Path, tmp_path: Path, missing: str
) -> None:
    root = shutil.copytree(unbroken, tmp_path / "run")
    (root / missing).unlink()
    with pytest.raises(UsageError, match=f"{missing}: missing"):
        run(config(source), root)
    assert not (root / "config.json").exists() or missing == "run.db"


def test_a_run_goes_on_without_the_folder_of_its_warm_start(unbroken: Path, tmp_path: Path) -> None:
    root = shutil.copytree(unbroken, tmp_path / "run")
    settings = json.loads((root / "config.json").read_text())
    settings["llm"]["warm_start"] = "gone"
    settings["loop"]["cycles"] = CYCLES + 1
    (root / "config.json").write_text(json.dumps(settings))
    with open_context(None, root, Silent()) as context:
        context.begin()
    shutil.rmtree(RunDir(root).adapter(1))
    with open_context(None, root, Silent()) as context:
        context.begin()  # later cycles have adapters of their own


def test_a_corpus_that_others_changed_is_refused(unbroken: Path, tmp_path: Path) -> None:
    root = shutil.copytree(unbroken, tmp_path / "run")
    first, second = (RunDir(root).corpus(cycle) for cycle in (1, 2))
    right = second.read_bytes()
    with open_context(None, root, Silent()) as context:
        second.unlink()
        corpus_of(context, 2)
        assert second.read_bytes() == right
        pairs = read_pairs(second)
        write_pairs(second, pairs[:-1])
        with pytest.raises(UsageError, match=r"cycle_02\.jsonl: not the corpus"):
            corpus_of(context, 2)
        second.unlink()
        write_pairs(first, pairs[:1])
        with pytest.raises(UsageError, match=r"cycle_01\.jsonl: not the corpus"):
            corpus_of(context, 2)


def test_a_finished_run_can_be_extended_and_is_like_one_planned_longer(
    source: Path, unbroken: Path, tmp_path: Path
) -> None:
    short = {"cycles": 1, "completions": COMPLETIONS}
    root, told = tmp_path / "run", Told()
    run(config(source, loop=short), root).close()
    run(config(source), root, told).close()
    assert rows(root) == rows(unbroken)
    assert f"resuming: 1 of {CYCLES} cycles are done" in told.all
    assert any("training and" in line and "out of 1797 in 10 classes" in line for line in told.all)
    with Run.open(root) as longer:
        assert (longer.state(), len(longer.cycles())) == ("finished", CYCLES)
    with pytest.raises(ConfigError, match=r"loop\.cycles: 2 -> 1"):
        run(config(source, loop=short), root)


def test_a_second_process_is_refused(source: Path, unbroken: Path) -> None:
    with RunDir(unbroken).lock():
        code = "from archloop.loop.run import run; import sys; run(None, sys.argv[1])"
        other = subprocess.run(
            [sys.executable, "-c", code, str(unbroken)], capture_output=True, text=True, check=False
        )
    assert other.returncode != 0
    assert RunLockedError.__name__ in other.stderr


def test_a_cycle_can_end_at_a_number_of_valid_candidates(source: Path, tmp_path: Path) -> None:
    loop = {"cycles": 1, "completions": COMPLETIONS, "valid_target": 2, "final_finetune": True}
    run(config(source, loop=loop), tmp_path / "run").close()
    assert len(rows(tmp_path / "run")) == 3
    # finetune.enabled = false: there is no last fine-tune either.
    assert not RunDir(tmp_path / "run").adapter(2).exists()


def test_without_novelty_near_duplicates_are_counted_and_not_rejected(
    source: Path, tmp_path: Path
) -> None:
    changed = {"novelty": {"enabled": False}, "loop": {"cycles": 1, "completions": 3}}
    with run(config(source, **changed), tmp_path / "run") as done:
        (cycle,) = done.cycles()
    found = rows(tmp_path / "run")
    assert [r["outcome"] for r in found] == ["accepted"] * 3
    assert found[1]["near_dup_text_gen"] is True
    # So that a report shows what the filter would have kept out, and the temperature moves as ever.
    assert (cycle.n_near_duplicate, cycle.n_accepted) == (2, 3)


@pytest.mark.parametrize("kind", ["jsonl", "directory"])
def test_seeds_count_in_novelty_whatever_they_are_called(
    source: Path, tmp_path: Path, kind: str
) -> None:
    seeds = {"jsonl": source / "seeds.jsonl", "directory": tmp_path / "former"}
    seeds["directory"].mkdir()
    (seeds["directory"] / "c01-0000.py").write_text(network(init="self.seed = 1"))
    copy = tmp_path / "copy"
    copy.mkdir()
    with Store(RunDir(copy).database) as store:
        add_texts(store, 1, [render_code(network(init="self.seed = 1"))])
    changed = {
        "seeds": {"source": kind, "path": str(seeds[kind])},
        "generation": {"engine": "replay", "replay_from": str(copy), "batch_size": 1},
        "loop": {"cycles": 1, "completions": 1},
    }
    run(config(source, **changed), tmp_path / "run").close()
    (row,) = rows(tmp_path / "run")
    assert row["outcome"] == "near_duplicate"
    assert row["nn_jaccard_train"] is not None
    assert str(row["nearest"]).startswith("seed:")
