"""Arguments of transformers' Trainer for a job on this machine, and messages about them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from archloop.config import FinetuneConfig
from archloop.llm.finetuning.fit import Fit
from archloop.llm.finetuning.job import FinetuneJob

CHECKPOINT_STEPS = 20


def arguments(job: FinetuneJob, checkpoints: Path, fit: Fit, *, dev: bool) -> Any:
    """The trainer's arguments.

    Args:
        job: The fine-tune.
        checkpoints: Folder for them.
        fit: Gradient checkpointing and merged batches.
        dev: Whether there are dev pairs.
    """
    config, cuda = job.config, torch.cuda.is_available()
    measured = "no" if not dev else "steps" if config.dev_steps else "epoch"
    found = TrainingArguments(
        output_dir=str(checkpoints),
        num_train_epochs=config.epochs,
        max_steps=config.max_steps or -1,
        per_device_train_batch_size=config.batch_size * fit.merged,
        per_device_eval_batch_size=config.batch_size,
        gradient_accumulation_steps=config.grad_accumulation // fit.merged,
        gradient_checkpointing=fit.recompute,
        learning_rate=config.lr,
        lr_scheduler_type=config.scheduler,
        warmup_steps=config.warmup_steps,
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        optim=optimizer(config, cuda=cuda),
        bf16=job.dtype == "bfloat16",
        use_cpu=not cuda,
        ddp_backend="gloo" if "WORLD_SIZE" in os.environ and not cuda else None,
        ddp_find_unused_parameters=False,
        seed=job.seed,
        data_seed=job.seed,
        eval_strategy=measured,
        eval_steps=config.dev_steps,
        save_steps=CHECKPOINT_STEPS,
        save_total_limit=1,
        logging_steps=1,
        logging_nan_inf_filter=False,  # else a NaN is logged as 0, the best possible loss
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=cuda,
    )
    # Each process uses one GPU. With several visible GPUs the trainer would wrap the LLM in
    # DataParallel, whose replicas do not have our loss.
    found._n_gpu = min(found.n_gpu, 1)
    return found


def optimizer(config: FinetuneConfig, *, cuda: bool) -> str:
    """The trainer's name of the configured optimiser; without CUDA the closest available one."""
    if config.optimizer == "paged_adamw_8bit" and cuda:
        return "paged_adamw_8bit"
    return "adamw_torch_fused"


def optimizer_note(config: FinetuneConfig, *, cuda: bool) -> str | None:
    """The message to show if another optimiser than the configured one is used."""
    if config.optimizer == "paged_adamw_8bit" and not cuda:
        return "no CUDA device: fused 32-bit AdamW in place of paged 8-bit AdamW"
    return None
