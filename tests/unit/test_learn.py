"""Adapters of cycles: what is taken over, what a learner makes, and what it is given."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from archloop.config import load_config
from archloop.corpus.pairs import make_pair, read_pairs, write_pairs
from archloop.errors import UsageError
from archloop.llm.finetuning import FinetuneProgress, FinetuneResult
from archloop.llm.finetuning.learner import LearningJob
from archloop.llm.models import resolve_adapter
from archloop.loop.context import RunContext
from archloop.loop.learn import adapter_of
from archloop.progress import Silent
from archloop.search.prompts import CIFAR10, PromptTemplate
from archloop.store.run_dir import RunDir
from archloop.store.store import Store
from conftest import network

TASK = ("task.name=digits", "seeds.source=none")


def context(root: Path, *overrides: str) -> RunContext:
    paths = RunDir(root)
    config = load_config("embedded", [*TASK, *overrides])
    return RunContext(config, paths, Store(paths.database), Silent())


class Copying:
    """A learner that is no fine-tune: it takes the packaged adapter, and remembers its jobs."""

    def __init__(self) -> None:
        self.jobs: list[LearningJob] = []
        self.taught: list[list[str]] = []

    def learn(
        self, job: LearningJob, on_progress: Callable[[FinetuneProgress], None]
    ) -> FinetuneResult:
        self.jobs.append(job)
        self.taught.append([pair.id for pair in read_pairs(job.lessons)])
        shutil.copytree(resolve_adapter("smollm2-135m-lemur"), job.out)
        on_progress(FinetuneProgress(1, 1, 0.5, 10.0))
        return FinetuneResult(job.out, len(self.taught[-1]), 0, 1, 0.5, 0.0)


def test_checkpoints_left_beside_a_whole_adapter_are_removed(tmp_path: Path) -> None:
    run = context(tmp_path)
    adapter = run.paths.adapter(1)
    adapter.mkdir(parents=True)
    left = adapter.with_name(f"{adapter.name}.checkpoints")
    (left / "checkpoint-20").mkdir(parents=True)
    with run:
        assert adapter_of(run, 1) == adapter
    assert list(adapter.parent.iterdir()) == [adapter]


def test_a_missing_adapter_of_an_earlier_cycle_is_named(tmp_path: Path) -> None:
    run = context(tmp_path, "finetune.enabled=false")
    with run, pytest.raises(UsageError, match=r"cycle_01: no adapter_config\.json"):
        adapter_of(run, 2)
    assert list(run.paths.adapter(1).parent.iterdir()) == []


@pytest.mark.parametrize("init", ["base", "previous"])
def test_the_learner_gets_the_lessons_of_the_strategy_and_the_parent(
    tmp_path: Path, init: str
) -> None:
    weighting = "selection.weighting=none"
    reset = ["finetune.replay=0", "finetune.replay_seeds=none"] if init == "base" else []
    run = context(tmp_path, f"finetune.init={init}", weighting, *reset)
    prompt = PromptTemplate().render(CIFAR10, 500_000)
    pairs = [
        make_pair(prompt, network(init=f"self.c = {c}"), {"cycle": c} if c else {}) for c in (0, 1)
    ]
    with run:
        run.learner = learner = Copying()
        write_pairs(run.paths.corpus(1), pairs[:1])
        assert adapter_of(run, 1) == run.paths.adapter(1)
        assert not learner.jobs, "the warm start is taken over"
        write_pairs(run.paths.corpus(2), pairs)
        assert adapter_of(run, 2) == run.paths.adapter(2)
    (job,) = learner.jobs
    assert job.parent == (run.paths.adapter(1) if init == "previous" else None)
    assert set(learner.taught[0]) == {p.id for p in pairs}
    assert job.lineage["cycle"] == 2
    # The newest comes first where the fine-tune goes on from the last adapter.
    assert job.lessons.name == ("cycle_02.jsonl" if init == "base" else "cycle_02.training.jsonl")


@pytest.mark.parametrize("search", ["random", "feedback"])
def test_a_search_that_does_not_learn_has_the_warm_start_or_nothing(
    tmp_path: Path, search: str
) -> None:
    for warm in ("smollm2-135m-lemur", "none"):
        root = tmp_path / warm
        root.mkdir()
        run = context(root, f"search.type={search}", f"llm.warm_start={warm}")
        with run:
            found = [adapter_of(run, cycle) for cycle in (1, 2)]
        if search == "feedback" and warm != "none":
            assert found == [run.paths.adapter(1), run.paths.adapter(2)]
            lineage = json.loads((run.paths.adapter(2) / "lineage.json").read_text())
            assert lineage["taken_over_from"] == "cycle_01"
        else:
            assert found == [None, None]
