"""The fine-tune itself, with transformers' Trainer and PEFT; runs in a separate process.

The adapter is written to a temporary folder and renamed when complete. Checkpoints lie beside it
(``NAME.checkpoints``), so the same job, started again, resumes from the last one, also within an
epoch, and ends with the same adapter. A different job with the same name starts from the beginning.
"""

from __future__ import annotations

import math
import os
import shutil
import time
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import AutoConfig, set_seed

from archloop.errors import UsageError
from archloop.files import naming
from archloop.llm.finetuning.arguments import arguments, optimizer_note
from archloop.llm.finetuning.checkpoints import last_checkpoint
from archloop.llm.finetuning.dataset import EncodedPair, encode_pair, read_messages
from archloop.llm.finetuning.fit import fit, free_bytes
from archloop.llm.finetuning.job import FinetuneJob
from archloop.llm.finetuning.loading import adapted, load
from archloop.llm.finetuning.packing import Collator
from archloop.llm.finetuning.split import split_dev
from archloop.llm.finetuning.trainer import (
    BestOnDev,
    PairTrainer,
    Reporter,
    best_folder,
    dev_losses,
)
from archloop.llm.finetuning.writing import write_adapter
from archloop.llm.models import (
    check_vocabulary,
    context_length,
    load_tokenizer,
    loading,
    read_settings,
)
from archloop.worker import Emit

MOST_RISE = 0.3
"""The loss may end this many nats per token above its start."""


class Pairs(NamedTuple):
    """The training and dev pairs of a fine-tune."""

    train: list[EncodedPair]
    dev: list[EncodedPair]
    n_too_long: int
    limit: str
    """What they are too long for."""


def run(job_data: dict[str, Any], emit: Emit) -> dict[str, Any]:
    """Fine-tune as the job says; returns a :class:`FinetuneResult` as JSON values."""
    job = FinetuneJob.from_json(job_data)
    if job.output.exists():
        raise UsageError(f"{job.output}: exists already")
    started = time.monotonic()
    set_seed(job.seed)
    tokenizer = load_tokenizer(job.model_dir, job.parent)
    pairs = _pairs(job, tokenizer)
    if not pairs.train:
        part = "for training " if job.config.dev_share else ""
        return {"nothing_to_learn": f"{job.corpus}: no pair {part}within {pairs.limit}"}
    checkpoints = job.output.with_name(job.output.name + ".checkpoints")
    trainer, notes = _trainer(job, pairs, checkpoints, emit)
    with trainer.args.main_process_first():
        last = last_checkpoint(checkpoints, job, emit)
    with naming(checkpoints):
        trainer.train(resume_from_checkpoint=last and str(last))
    first, loss = _losses(trainer.state.log_history)
    if reason := divergence(first, loss):
        shutil.rmtree(checkpoints, ignore_errors=True)
        return {"diverged": reason}
    measured = dev_losses(trainer.state.log_history)
    best = min(measured, key=lambda row: row[1]) if measured else None
    result = {
        "n_pairs": len(pairs.train),
        "n_dev": len(pairs.dev),
        "n_too_long": pairs.n_too_long,
        "steps": trainer.state.global_step,
        "loss": loss,
        "dev_loss": best and round(best[1], 4),
        "best_step": best and best[0],
        "seconds": round(time.monotonic() - started, 1),
    }
    if trainer.is_world_process_zero():
        found = result | {"dev_losses": measured, "adapted": asdict(adapted(trainer.model))}
        kept = best_folder(checkpoints, best[0]) if best else None
        with naming(job.output.parent):
            found["notes"] = notes
            write_adapter(trainer.model, tokenizer.chat_template, job, found, kept)
        shutil.rmtree(checkpoints, ignore_errors=True)
    return result | {"adapter": str(job.output)}


def _pairs(job: FinetuneJob, tokenizer: Any) -> Pairs:
    longest, limit = job.config.max_length, f"finetune.max_length = {job.config.max_length}"
    context = context_length(read_settings(job.model_dir / "config.json"))
    if context is not None and context < longest:
        longest = context
        limit = f"the LLM's context of {context} tokens; set seeds.max_tokens for shorter seeds"
    train, dev = split_dev(read_messages(job.corpus), job.config.dev_share)
    encoded = [[encode_pair(tokenizer, m) for m in rows] for rows in (train, dev)]
    every = [pair for rows in encoded for pair in rows]
    check_vocabulary(job.model_dir, chain.from_iterable(pair.input_ids for pair in every))
    kept = [[p for p in rows if len(p.input_ids) <= longest] for rows in encoded]
    return Pairs(kept[0], kept[1], len(every) - len(kept[0]) - len(kept[1]), limit)


def _drops(model: Any) -> bool:
    """Whether dropout, of LoRA or of the LLM itself, makes the states of equal prompts differ."""
    return any(isinstance(m, torch.nn.Dropout) and m.p > 0 for m in model.modules())


def _trainer(
    job: FinetuneJob, pairs: Pairs, checkpoints: Path, emit: Emit
) -> tuple[PairTrainer, list[str]]:
    """A trainer for the loaded LLM, with facts about the fine-tune, which are also emitted."""
    config = job.config
    longest = max(len(p.input_ids) for p in pairs.train)
    with loading(job.model_dir):
        model_config = AutoConfig.from_pretrained(job.model_dir)
    cuda = torch.cuda.is_available()
    one_gpu = cuda and "WORLD_SIZE" not in os.environ
    fitted = fit(job, model_config, longest, free_bytes(), one_gpu=one_gpu)
    model = load(job)
    if fitted.recompute:
        model.enable_input_require_grads()
    notes = [str(adapted(model)), *fitted.notes, optimizer_note(config, cuda=cuda)]
    if pairs.n_too_long:
        notes.append(f"{pairs.n_too_long} pairs are left out, longer than {pairs.limit}")
    if config.dev_share and not pairs.dev:
        notes.append("no pair fell into the dev split; there is no dev loss")
    reporter = Reporter(emit)
    trainer = PairTrainer(
        model=model,
        args=arguments(job, checkpoints, fitted, dev=bool(pairs.dev)),
        train_dataset=pairs.train,
        eval_dataset=pairs.dev or None,
        data_collator=Collator(config.packing, share_prompt=not _drops(model)),
        callbacks=[reporter],
    )
    if pairs.dev:
        trainer.add_callback(BestOnDev(checkpoints, config.patience))
    reporter.trainer = trainer
    said = [note for note in notes if note]
    if trainer.args.world_size > 1:
        said.append(f"{trainer.args.world_size} processes train together")
    for note in said:
        emit("note", {"text": note})
    return trainer, said


def _losses(history: list[dict[str, Any]]) -> tuple[float, float]:
    """Mean loss over the first and over the last tenth of the steps."""
    losses: list[float] = [row["loss"] for row in history if "loss" in row]
    tenth = max(1, len(losses) // 10)
    return sum(losses[:tenth]) / tenth, round(sum(losses[-tenth:]) / tenth, 4)


def divergence(first: float, last: float) -> str | None:
    """The reason to reject a fine-tune; ``None``: it is sound.

    Losses of batches differ by some hundredths of a nat, so the loss of a sound but short fine-tune
    may end slightly above its start.
    """
    if not math.isfinite(last):
        return "the loss is not finite"
    if last > first + MOST_RISE:
        return f"the loss rose from {first:.3f} to {last:.3f}"
    return None
