"""Where an interrupted fine-tune goes on, and when it begins anew."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from archloop.config import FinetuneConfig
from archloop.llm.finetuning.checkpoints import last_checkpoint
from archloop.llm.finetuning.job import FinetuneJob


@pytest.fixture
def job(tmp_path: Path) -> FinetuneJob:
    """A job with a whole checkpoint after 20 steps, which has begun to write the next one."""
    (tmp_path / "corpus.jsonl").write_text("{}\n")
    made = FinetuneJob(
        Path("llm"), tmp_path / "corpus.jsonl", tmp_path / "new", FinetuneConfig(), "float32", 3
    )
    for name in ("checkpoint-20", "checkpoint-40", "best"):
        (tmp_path / "new.checkpoints" / name).mkdir(parents=True)
        (tmp_path / "new.checkpoints" / name / "optimizer.pt").write_text("x")
    (tmp_path / "new.checkpoints/checkpoint-20/trainer_state.json").write_text("{}")
    return made


def found(job: FinetuneJob) -> tuple[str | None, list[str], list[str]]:
    """Name of the checkpoint, the folders that are left, and what was said."""
    folder, said = job.output.with_name("new.checkpoints"), list[str]()
    last = last_checkpoint(folder, job, lambda _, data: said.append(data["text"]))
    return last and last.name, sorted(p.name for p in folder.iterdir() if p.is_dir()), said


@pytest.mark.parametrize("state", [None, "", '{"global_st'])
def test_the_newest_whole_checkpoint_is_taken_and_broken_ones_go(
    job: FinetuneJob, state: str | None
) -> None:
    """No digest yet: as in folders of earlier versions."""
    if state is not None:
        file = job.output.with_name("new.checkpoints") / "checkpoint-40" / "trainer_state.json"
        file.write_text(state)
    name, left, said = found(job)
    assert (name, left) == ("checkpoint-20", ["best", "checkpoint-20"])
    assert said == ["checkpoint-40 was not written to its end; it is removed"]
    assert found(job) == (name, left, [])


def test_without_a_checkpoint_it_begins(job: FinetuneJob) -> None:
    assert found(replace(job, output=job.output.with_name("other") / "new"))[0] is None


@pytest.mark.parametrize(
    "changes",
    [
        {"config": FinetuneConfig(lr=1e-3)},
        {"seed": 4},
        {"dtype": "bfloat16"},
        {"model_dir": Path("other")},
        {"corpus": "other corpus"},
        {"parent": "a parent"},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_another_job_begins_anew(job: FinetuneJob, changes: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "other corpus").write_text("{ }\n")
    (tmp_path / "a parent").mkdir()
    (tmp_path / "a parent/adapter_model.safetensors").write_text("weights")
    found(job)
    paths = {k: tmp_path / v for k, v in changes.items() if k in ("corpus", "parent")}
    other = replace(job, **{**changes, **paths})
    name, left, said = found(other)
    assert (name, left) == (None, [])
    assert len(said) == 1
    assert "begins anew" in said[0]
    assert found(other) == (None, [], [])
