"""The trainer's settings: the paper's numbers, what a machine changes about them; the split."""

from __future__ import annotations

import os
import subprocess
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import TrainerControl, TrainerState

from archloop.config import FinetuneConfig, load_config
from archloop.errors import ConfigError, UsageError
from archloop.llm.finetuning import launch
from archloop.llm.finetuning.arguments import arguments, optimizer, optimizer_note
from archloop.llm.finetuning.dataset import EncodedPair
from archloop.llm.finetuning.fit import Fit, fit
from archloop.llm.finetuning.job import FinetuneJob, FinetuneProgress
from archloop.llm.finetuning.split import split_dev
from archloop.llm.finetuning.trainer import BestOnDev, LengthGrouped, PairTrainer, dev_losses
from conftest import network

GIB = 2**30


class ModelConfig:
    """The numbers of a model as ``AutoConfig`` gives them."""

    def __init__(self, **numbers: int) -> None:
        self._numbers = numbers

    def to_dict(self) -> dict[str, Any]:
        return dict(self._numbers)


DEEPSEEK = ModelConfig(
    hidden_size=4096,
    intermediate_size=11008,
    num_hidden_layers=30,
    num_attention_heads=32,
    vocab_size=102_400,
)


def job(config: FinetuneConfig, dtype: str = "bfloat16") -> FinetuneJob:
    return FinetuneJob(Path("llm"), Path("corpus.jsonl"), Path("adapter"), config, dtype, seed=7)


PLAIN = Fit(recompute=False, merged=1, notes=())


def fit_in(gib: int, config: FinetuneConfig, longest: int = 4096, *, one_gpu: bool = False) -> Fit:
    return fit(job(config), DEEPSEEK, longest, gib * GIB, one_gpu=one_gpu)


def test_the_trainer_gets_the_papers_numbers(tmp_path: Path) -> None:
    paper = job(load_config("paper").finetune)
    found = arguments(paper, tmp_path, replace(PLAIN, recompute=True), dev=False)
    assert found.num_train_epochs == 5
    assert found.learning_rate == 1e-5
    assert (found.per_device_train_batch_size, found.gradient_accumulation_steps) == (1, 4)
    assert found.lr_scheduler_type == "cosine"
    assert found.warmup_steps == 20
    assert found.weight_decay == 0.01
    assert found.max_grad_norm == 1.0
    assert found.bf16
    assert found.gradient_checkpointing
    assert found.eval_strategy == "no"


@pytest.mark.parametrize(("max_steps", "wanted"), [(None, 5), (4, 4), (5, 5), (9, 5)])
def test_max_steps_adds_no_epochs(tmp_path: Path, max_steps: int | None, wanted: int) -> None:
    """Ten pairs in batches of two, two batches a step: three steps an epoch."""
    config = FinetuneConfig(epochs=1.5, max_steps=max_steps, batch_size=2, grad_accumulation=2)
    trainer = PairTrainer(
        model=torch.nn.Linear(1, 1),
        args=arguments(job(config, "float32"), tmp_path, PLAIN, dev=False),
        train_dataset=[EncodedPair([0], [0])] * 10,
    )
    loader = trainer.get_train_dataloader()
    epochs, *_, steps = trainer.set_initial_training_values(trainer.args, loader)
    assert (epochs, steps) == (2, wanted)


def test_paged_8_bit_adamw_is_for_cuda_and_its_stand_in_is_told() -> None:
    config = load_config("paper").finetune
    assert optimizer(config, cuda=True) == "paged_adamw_8bit"
    assert optimizer(config, cuda=False) == "adamw_torch_fused"
    assert optimizer_note(config, cuda=True) is None
    assert "fused 32-bit AdamW in place of paged 8-bit" in str(optimizer_note(config, cuda=False))
    assert optimizer_note(FinetuneConfig(), cuda=False) is None


@pytest.mark.parametrize(("free", "wanted"), [(78, False), (24, True)])
def test_activations_are_recomputed_where_memory_needs_it(free: int, wanted: bool) -> None:
    found = fit_in(free, load_config("paper").finetune)
    assert found.recompute is wanted
    assert f"{free}.0 GiB are free" in found.notes[0]


def test_what_counts_is_the_longest_pair_there_is() -> None:
    config = load_config("paper").finetune
    assert fit_in(24, config, 4096).recompute
    assert not fit_in(24, config, 700).recompute


@pytest.mark.parametrize("wanted", [True, False])
def test_a_configured_choice_holds(wanted: bool) -> None:
    found = fit_in(1, FinetuneConfig(gradient_checkpointing=wanted))
    assert found.recompute is wanted
    assert found.notes == (f"gradient checkpointing {'on' if wanted else 'off'} as configured",)


def test_an_llm_of_unknown_size_recomputes_on_a_gpu_only() -> None:
    unknown = ModelConfig(n_embd=768)
    found = fit(job(FinetuneConfig()), unknown, 700, GIB, one_gpu=True)
    assert found.recompute is torch.cuda.is_available()
    assert found.merged == 1
    assert "unknown" in found.notes[0]


@pytest.mark.parametrize(("free", "merged"), [(24, 1), (48, 2), (78, 4)])
def test_batches_of_a_step_go_together_where_they_surely_fit(
    free: int, merged: int, tmp_path: Path
) -> None:
    config = load_config("paper").finetune
    found = fit_in(free, config, 900, one_gpu=True)
    assert (found.recompute, found.merged) == (False, merged)
    made = arguments(job(config), tmp_path, found, dev=False)
    assert made.per_device_train_batch_size == merged
    assert made.per_device_train_batch_size * made.gradient_accumulation_steps == 4
    assert len(found.notes) == (2 if merged > 1 else 1)
    assert fit_in(free, config, 900).merged == 1


def test_merging_can_be_asked_for_and_refused() -> None:
    asked = load_config("paper", ["finetune.merge_batches=true"]).finetune
    assert not fit_in(32, asked.model_copy(update={"merge_batches": False}), 2000).recompute
    assert fit_in(32, asked, 2000).recompute, "what counts is all of them together"
    assert fit_in(4, FinetuneConfig(merge_batches=True, grad_accumulation=6)).merged == 6
    assert fit_in(400, FinetuneConfig(merge_batches=False), 900, one_gpu=True).merged == 1


@pytest.mark.parametrize(
    ("gpus", "configured", "wanted"),
    [(0, None, 1), (0, 2, 2), (1, None, 1), (4, None, 4), (4, 2, 2)],
)
def test_one_process_for_each_gpu(
    monkeypatch: pytest.MonkeyPatch, gpus: int, configured: int | None, wanted: int
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert launch.process_count(configured) == wanted


def test_each_process_keeps_to_one_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Its own is taken before anything is loaded: bitsandbytes puts weights on the current one."""
    taken = list[object]()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    alone = arguments(job(FinetuneConfig(), "float32"), tmp_path, PLAIN, dev=False)
    assert (alone.n_gpu, alone.train_batch_size) == (1, 1)
    taken.clear()
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("LOCAL_RANK", "1")
    ends_early = replace(job(FinetuneConfig()), output=tmp_path)
    assert launch._rank(ends_early.to_json(), str(tmp_path / "events"))["usage"]
    assert taken == [1]


def test_what_a_killed_fine_tune_left_is_removed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Its folder and its semaphores, and not those of one that is still there."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    gone = subprocess.Popen(["true"])
    gone.wait()
    left = {pid: tmp_path / f"archloop-finetune-{pid}-x" for pid in (gone.pid, os.getpid())}
    semaphores = {pid: Path(f"/dev/shm/sem.archloop-finetune-{pid}--x") for pid in left}
    for pid, folder in left.items():
        (folder / "logs").mkdir(parents=True)
        semaphores[pid].touch()
    launch.sweep()
    there = [path.exists() for path in (*left.values(), *semaphores.values())]
    semaphores[os.getpid()].unlink()
    assert there == [False, True, False, True]


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UsageError, match=r"finetune\.processes: 4, but there are 2 GPUs"):
        launch.process_count(4)


@pytest.mark.parametrize("key", ["patience=3", "dev_steps=5"])
def test_a_dev_key_without_dev_pairs_is_refused(key: str) -> None:
    with pytest.raises(ConfigError, match=r"only with finetune\.dev_share above 0"):
        load_config("embedded", [f"finetune.{key}"])
    assert load_config("embedded", [f"finetune.{key}", "finetune.dev_share=0.1"])


def rows(count: int) -> list[list[dict[str, str]]]:
    codes = [network(init="; ".join(["self.n = 1"] * (i + 1))) for i in range(count)]
    return [[{"role": "assistant", "content": f"```python\n{code}\n```"}] for code in codes]


def test_the_split_follows_from_the_content() -> None:
    some = rows(200)
    train, dev = split_dev(some, 0.2)
    assert len(train) + len(dev) == 200
    assert 20 < len(dev) < 60
    again = split_dev(list(reversed(some))[:150], 0.2)[1]
    assert all(row in dev for row in again)
    assert split_dev(some, 0.0) == (some, [])


def test_networks_that_differ_in_names_and_numbers_stay_together() -> None:
    def answer(width: int, name: str) -> list[dict[str, str]]:
        code = f"import torch\nclass Net:\n    def f(self):\n        self.{name} = {width}\n"
        return [{"role": "assistant", "content": f"```python\n{code}\n```"}]

    twins = [answer(width, name) for width in range(30) for name in ("conv", "layer")]
    assert split_dev(twins, 0.5) in ((twins, []), ([], twins))


def test_an_answer_without_code_has_a_side_too() -> None:
    odd = [
        [{"role": "assistant", "content": text}] for text in ("", "no code", "```python\n'\n```")
    ]
    train, dev = split_dev(odd, 0.5)
    assert len(train) + len(dev) == 3


def test_the_order_follows_from_seed_and_epoch() -> None:
    lengths = [(7 * i) % 40 + 1 for i in range(40)]

    def spread(order: list[int]) -> int:
        batches = [[lengths[i] for i in order[s : s + 4]] for s in range(0, 40, 4)]
        return sum(max(batch) - min(batch) for batch in batches)

    def order(seed: int, epoch: int) -> list[int]:
        sampler = LengthGrouped(lengths, 4, seed)
        sampler.set_epoch(epoch)
        torch.rand(3)
        return list(sampler)

    assert order(1, 2) == order(1, 2)
    assert sorted(order(1, 2)) == list(range(40))
    assert len({tuple(order(s, e)) for s in (1, 2) for e in (0, 1)}) == 4
    assert spread(order(1, 0)) < 0.8 * spread(
        torch.randperm(40, generator=torch.Generator().manual_seed(0)).tolist()
    )


def test_a_dev_loss_that_is_no_number_is_never_the_best() -> None:
    history = [{"step": 1, "eval_loss": float("nan")}, {"step": 1, "loss": 2.0}]
    assert dev_losses([*history, {"step": 2, "eval_loss": 3.0}]) == [(1, float("inf")), (2, 3.0)]


def test_progress_tells_what_was_measured() -> None:
    shown = FinetuneProgress(1, 2, 0.5, 10.0).snapshot()
    assert (shown.stage, shown.done, shown.total, shown.unit) == ("fine-tune", 1, 2, "steps")
    assert (shown.detail, shown.tokens_per_second) == ("loss 0.500", 10.0)
    assert FinetuneProgress(1, 2, None, 10.0, 0.25).snapshot().detail == "dev loss 0.250"
    assert FinetuneProgress(0, 2).snapshot().detail == ""


def test_a_fine_tune_that_stops_early_keeps_no_checkpoint_of_that_step(tmp_path: Path) -> None:
    """It would not hold the decision, and a resumed fine-tune would go on."""
    history = [{"step": step, "eval_loss": loss} for step, loss in ((10, 1.0), (20, 2.0))]
    control = TrainerControl(should_save=True)
    state = TrainerState(global_step=20, log_history=history)
    BestOnDev(tmp_path, patience=1).on_evaluate(SimpleNamespace(should_save=False), state, control)
    assert control.should_training_stop
    assert not control.should_save
