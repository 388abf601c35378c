"""Whole fine-tunes of a tiny LLM: what holds for any model, in seconds."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from archloop.config import FinetuneConfig
from archloop.corpus.pairs import make_pair, write_pairs
from archloop.errors import (
    ConfigError,
    DivergedError,
    MissingExtraError,
    NothingToLearnError,
    UsageError,
)
from archloop.llm.finetuning import FinetuneJob, FinetuneProgress, FinetuneResult, finetune, lora
from archloop.machine.downloads import sha256_of
from archloop.search.prompts import CIFAR10, PromptTemplate
from archloop.worker import run_worker
from conftest import network
from tiny_llm import random_llm

CONFIG = FinetuneConfig(
    lora_r=4,
    lora_alpha=8,
    lora_dropout=0.1,
    epochs=3,
    lr=2e-2,
    batch_size=2,
    grad_accumulation=1,
    warmup_steps=0,
    max_length=1024,
)
N_PAIRS = 16


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_llm(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("corpus") / "corpus.jsonl"
    prompt = PromptTemplate().render(CIFAR10, 500_000)
    codes = [network(init="; ".join(["self.n = 1"] * (i + 1))) for i in range(N_PAIRS)]
    write_pairs(file, [make_pair(prompt, code, {}) for code in codes])
    return file


@pytest.fixture
def job(model_dir: Path, corpus: Path, tmp_path: Path) -> Callable[..., FinetuneJob]:
    def make(name: str, **changes: Any) -> FinetuneJob:
        return FinetuneJob(
            model_dir=model_dir,
            corpus=corpus,
            output=tmp_path / name,
            config=CONFIG.model_copy(update=changes),
            dtype="float32",
            seed=3,
        )

    return make


def here(
    job: FinetuneJob, on_progress: Callable[[FinetuneProgress], None] | None = None
) -> FinetuneResult:
    """As :func:`finetune`, but in this process: to start one takes longer than to train so little.

    Processes of their own are for what is killed, and for what several do together.
    """

    def emit(event: str, data: dict[str, Any]) -> None:
        if event == "step" and on_progress:
            on_progress(FinetuneProgress(**data))

    result = lora.run(job.to_json(), emit)
    return FinetuneResult(**{**result, "adapter": Path(result["adapter"])})


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Matrices this small are slower on more threads; in processes of their own too."""
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        torch.set_num_threads(1)
        yield
    torch.set_num_threads(threads)


def weights(folder: Path) -> str:
    return sha256_of(folder / "adapter_model.safetensors")


def lineage(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "lineage.json").read_text())
    return found


def kill_at(job: FinetuneJob, step: int) -> None:
    """Start a fine-tune and kill its process once it has told of a step."""
    for event in run_worker("archloop.llm.finetuning.process", job.to_json()):
        if event["event"] == "step" and event["data"]["step"] >= step:
            break
    assert not job.output.exists()


@pytest.mark.parametrize(
    "options",
    [
        {"epochs": 4},
        {"epochs": 5, "dev_share": 0.3, "dev_steps": 4},
        pytest.param({"epochs": 4, "processes": 2, "batch_size": 1}, marks=pytest.mark.slow),
    ],
    ids=["one process", "dev split", "two processes"],
)
def test_a_killed_fine_tune_ends_with_the_same_adapter(
    job: Callable[..., FinetuneJob], options: dict[str, Any]
) -> None:
    """With dropout, in the third epoch: order, masks and optimiser are all found again."""
    by = finetune if "processes" in options else here
    whole = by(job("whole", **options))
    broken = job("broken", **options)
    kill_at(broken, 24)
    kept = broken.output.with_name("broken.checkpoints")
    assert list(kept.glob("checkpoint-20"))
    # As if it had been killed while it wrote the next one.
    shutil.copytree(kept / "checkpoint-20", kept / "checkpoint-40")
    (kept / "checkpoint-40" / "trainer_state.json").unlink()
    (kept / "checkpoint-40" / "optimizer.pt").write_bytes(b"PK")
    steps: list[int] = []
    by(broken, lambda p: steps.append(p.step))
    assert 20 <= steps[0] <= 21, "it goes on from the last whole checkpoint"
    assert whole.steps == steps[-1]
    assert weights(broken.output) == weights(whole.adapter)


def test_a_fine_tune_killed_before_it_writes_its_adapter_makes_no_further_step(
    job: Callable[..., FinetuneJob], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"max_steps": 20, "epochs": 4, "scheduler": "constant_with_warmup"}
    whole = here(job("whole", **options))
    broken = job("broken", **options)
    with monkeypatch.context() as patched, pytest.raises(InterruptedError):
        patched.setattr(lora, "write_adapter", interrupt)
        lora.run(broken.to_json(), lambda *_: None)
    assert here(broken).steps == whole.steps == 20
    assert weights(broken.output) == weights(whole.adapter)


def interrupt(*_: object) -> None:
    raise InterruptedError


def test_dropout_is_that_of_the_fine_tune_not_of_its_parent(
    job: Callable[..., FinetuneJob],
) -> None:
    parent = here(job("parent", max_steps=1)).adapter
    found = here(replace(job("found", max_steps=1, lora_dropout=0.0), parent=parent)).adapter
    kept = json.loads((found / "adapter_config.json").read_text())
    assert kept["lora_dropout"] == 0.0
    assert kept["r"] == CONFIG.lora_r


def test_a_dev_loss_at_an_epochs_end_is_in_the_checkpoint_of_that_step(
    job: Callable[..., FinetuneJob],
) -> None:
    options = {"epochs": 6, "dev_share": 0.3, "lora_dropout": 0.0}
    whole = here(job("whole", **options))
    assert whole.steps % 6 == 0 and 20 % (whole.steps // 6) == 0, "the checkpoint ends an epoch"
    broken = job("broken", **options)
    kill_at(broken, 21)
    found = here(broken)
    assert len(lineage(found.adapter)["dev_losses"]) == 6
    assert lineage(found.adapter)["dev_losses"] == lineage(whole.adapter)["dev_losses"]


def test_without_a_pair_that_fits_there_is_nothing_to_learn(
    job: Callable[..., FinetuneJob],
) -> None:
    short = job("short", max_length=128)
    with pytest.raises(NothingToLearnError, match=r"no pair within finetune\.max_length = 128"):
        finetune(short)
    assert not short.output.exists()


def test_another_fine_tune_of_the_same_name_begins_anew(
    job: Callable[..., FinetuneJob], caplog: pytest.LogCaptureFixture
) -> None:
    kill_at(job("adapter", epochs=4), 24)
    steps: list[int] = []
    with caplog.at_level("INFO"):
        found = finetune(job("adapter", lr=1e-2, max_steps=3), lambda p: steps.append(p.step))
    assert steps == [0, 1, 2, 3]
    assert "begins anew" in caplog.text
    assert weights(found.adapter) == weights(here(job("x", lr=1e-2, max_steps=3)).adapter)


def test_the_dev_loss_is_measured_and_the_best_adapter_kept(
    job: Callable[..., FinetuneJob],
) -> None:
    told: list[FinetuneProgress] = []
    wild = {"lr": 1.0, "lora_dropout": 0.0, "scheduler": "constant_with_warmup"}
    options = {"dev_share": 0.3, "dev_steps": 2, "patience": 2, "epochs": 20, **wild}
    result = here(job("stopped", **options), told.append)
    measured = [(p.step, p.dev_loss) for p in told if p.dev_loss is not None]
    assert result.n_pairs + result.n_dev == N_PAIRS
    assert result.n_dev > 0
    assert result.best_step is not None
    assert result.steps == result.best_step + 2 * 2
    assert result.dev_loss == round(min(loss for _, loss in measured), 4)
    known = lineage(result.adapter)
    assert known["best_step"] == result.best_step
    assert [tuple(row) for row in known["dev_losses"]] == measured
    # The adapter of the best step, not of the last: as if the fine-tune had ended there.
    there = here(job("there", **{**options, "max_steps": result.best_step, "patience": None}))
    assert weights(there.adapter) == weights(result.adapter)


@pytest.mark.slow
def test_two_processes_learn_as_one_with_twice_the_batch(job: Callable[..., FinetuneJob]) -> None:
    def losses(name: str, **changes: Any) -> list[float]:
        told: list[FinetuneProgress] = []
        by = finetune if "processes" in changes else here
        by(job(name, lora_dropout=0.0, max_steps=6, **changes), told.append)
        return [p.loss for p in told if p.loss is not None]

    one = losses("one", batch_size=4)
    two = losses("two", batch_size=2, processes=2)
    assert two == pytest.approx(one, abs=1e-4)
    assert len(set(one)) == 6


def test_merged_batches_take_the_same_steps(job: Callable[..., FinetuneJob]) -> None:
    def losses(name: str, **changes: Any) -> list[float]:
        told: list[FinetuneProgress] = []
        options = {"lora_dropout": 0.0, "epochs": 2.0, "batch_size": 2, "grad_accumulation": 3}
        done = here(job(name, **(options | changes)), told.append)
        assert ("3 batches" in str(lineage(done.adapter)["notes"])) is (name == "merged")
        return [p.loss for p in told if p.loss is not None]

    apart = losses("apart")
    assert losses("merged", merge_batches=True) == pytest.approx(apart, abs=1e-4)
    assert len(apart) == len(set(apart)) == 2 * -(-N_PAIRS // 6)


def test_the_loss_on_the_same_pairs_falls_at_every_step(job: Callable[..., FinetuneJob]) -> None:
    told: list[FinetuneProgress] = []
    options = {"batch_size": N_PAIRS, "lora_dropout": 0.0, "lr": 5e-3, "max_steps": 4}
    done = here(job("whole", epochs=4, **options), told.append)
    losses = [p.loss for p in told if p.loss is not None]
    assert len(losses) == 4
    assert losses == sorted(losses, reverse=True)
    assert losses[0] - losses[-1] > 0.01
    # And it is the adapter on disk that knows them: going on from it begins where this has ended.
    more: list[FinetuneProgress] = []
    here(replace(job("more", **options), parent=done.adapter), more.append)
    assert more[0].loss is not None
    assert more[0].loss < losses[-1]


def test_recomputing_and_packing_change_nothing(job: Callable[..., FinetuneJob]) -> None:
    options = {"lora_dropout": 0.0, "max_steps": 4}
    kept = here(job("kept", **options))
    other = here(job("other", gradient_checkpointing=True, packing=True, **options))
    assert other.loss == pytest.approx(kept.loss, abs=1e-4)
    notes = lineage(other.adapter)["notes"]
    assert "gradient checkpointing on as configured" in notes
    assert any(
        n.startswith("gradient checkpointing off: without it")
        for n in lineage(kept.adapter)["notes"]
    )


def test_what_is_adapted_is_in_the_lineage_and_can_be_less_than_all_layers(
    job: Callable[..., FinetuneJob],
) -> None:
    first = here(job("first", layers=1, max_steps=1, optimizer="paged_adamw_8bit"))
    known = lineage(first.adapter)
    assert known["adapted"] == {
        "modules": 7,
        "layers": 1,
        "of_layers": 2,
        "parameters": 4 * (64 + 48 + 48 + 64 + 96 + 96 + 96),
    }
    assert any("fused 32-bit AdamW" in note for note in known["notes"])


def test_another_rank_than_the_parents_is_refused(job: Callable[..., FinetuneJob]) -> None:
    parent = here(job("parent", max_steps=1)).adapter
    other = replace(job("other", lora_r=8), parent=parent)
    with pytest.raises(ConfigError, match=r"finetune\.lora_r"):
        here(other)
    assert not other.output.exists()


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("adapter_model.safetensors", "", "adapter_model.safetensors: no weights"),
        ("adapter_config.json", "no", "adapter_config.json: no JSON"),
        ("adapter_config.json", None, "parent: no adapter_config.json"),
    ],
)
def test_a_damaged_parent_is_named(
    job: Callable[..., FinetuneJob], name: str, content: str | None, said: str
) -> None:
    parent = here(job("parent", max_steps=1)).adapter
    (parent / name).unlink()
    if content is not None:
        (parent / name).write_text(content)
    other = replace(job("other"), parent=parent)
    with pytest.raises(UsageError, match=re.escape(said)):
        here(other)
    assert not other.output.exists()


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("model.safetensors", "hi", r"model\.safetensors: no weights"),
        (
            "config.json",
            '{"model_type": "llama", "hidden_size": "x"}',
            "llm: cannot be loaded: .*'x'",
        ),
        ("tokenizer.json", "{}", "llm: cannot be loaded: KeyError"),
    ],
)
def test_a_damaged_llm_is_named(
    job: Callable[..., FinetuneJob], name: str, content: str, said: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=said):
        here(with_damage(job("x"), name, content, tmp_path))


@pytest.mark.slow
def test_a_damaged_llm_is_named_by_two_processes_once(
    job: Callable[..., FinetuneJob], tmp_path: Path
) -> None:
    damaged = with_damage(job("x", processes=2), "model.safetensors", "hi", tmp_path)
    with pytest.raises(UsageError, match=r"model\.safetensors: no weights"):
        finetune(damaged)


def with_damage(job: FinetuneJob, name: str, content: str, tmp_path: Path) -> FinetuneJob:
    """The same with a copy of its LLM, one of whose files holds something else."""
    folder = tmp_path / "llm"
    shutil.copytree(job.model_dir, folder)
    (folder / name).write_text(content)
    return replace(job, model_dir=folder)


def test_a_disk_that_takes_no_more_is_named(
    job: Callable[..., FinetuneJob], tmp_path: Path
) -> None:
    """Files are limited in its place: to less than a checkpoint, then to less than an adapter."""
    full = job("full", max_steps=1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for size in (2000, 12_000):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        try:
            with pytest.raises(UsageError, match=r"full\.checkpoints: cannot be written: File too"):
                finetune(full)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert [path.name for path in tmp_path.iterdir()] == ["full.checkpoints"]
    assert finetune(full).adapter == full.output
    assert [path.name for path in tmp_path.iterdir()] == ["full"]


@pytest.mark.slow
def test_what_a_killed_fine_tune_of_two_processes_left_goes_with_the_next(
    job: Callable[..., FinetuneJob],
) -> None:
    def left() -> list[str]:
        """What is there of processes that are not."""
        folders = Path(tempfile.gettempdir()), Path("/dev/shm")
        found = [p.name for folder in folders for p in folder.glob("*archloop-finetune-*")]
        return [name for name in found if not Path("/proc", name.split("-")[2]).exists()]

    two = job("two", processes=2, batch_size=1)
    kill_at(two, 1)
    assert {name.startswith("sem.") for name in left()} == {True, False}
    finetune(replace(two, config=two.config.model_copy(update={"max_steps": 1})))
    assert left() == []


def test_four_bits_need_bitsandbytes(
    job: Callable[..., FinetuneJob], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hidden = "import sys\nsys.modules['bitsandbytes'] = None\n"
    (tmp_path / "sitecustomize.py").write_text(hidden)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    said = r"finetune\.quantization = 'nf4' needs: pip install 'archloop\[cuda\]'"
    with pytest.raises(MissingExtraError, match=said):
        finetune(job("nf4", quantization="nf4"))


def test_a_diverged_fine_tune_leaves_no_adapter(job: Callable[..., FinetuneJob]) -> None:
    """It ends at the first loss that is not finite, which transformers would log as 0."""
    wild, told = job("wild", lr=1e30, max_steps=4), list[FinetuneProgress]()
    with pytest.raises(DivergedError, match="diverged: the loss is not finite"):
        finetune(wild, told.append)
    assert [p.step for p in told] == [0, 1, 2]
    assert list(wild.output.parent.iterdir()) == []


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_an_unknown_target_is_one_clear_line(
    job: Callable[..., FinetuneJob], processes: int
) -> None:
    by = here if processes == 1 else finetune
    with pytest.raises(UsageError, match=r"target_modules: c_attn: no such layer.*q_proj"):
        by(job("x", target_modules=("c_attn",), processes=processes))


def test_four_bit_weights_learn_too(job: Callable[..., FinetuneJob]) -> None:
    pytest.importorskip("bitsandbytes")
    told: list[FinetuneProgress] = []
    # All pairs in each step: the same are compared.
    options = {"lora_dropout": 0.0, "epochs": 4, "batch_size": N_PAIRS, "packing": True}
    result = finetune(job("nf4", quantization="nf4", **options), told.append)
    assert told[0].loss is not None
    assert result.loss < told[0].loss
