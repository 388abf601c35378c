"""The fine-tune itself, with TRL's SFTTrainer and PEFT; runs in a process of its own.

The adapter is written to a temporary folder and renamed when whole. Checkpoints lie beside it
(``NAME.checkpoints``), so the same job started again goes on from the last one, in mid-epoch too.
"""

from __future__ import annotations

import json
import logging
import math
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback, set_seed
from transformers.trainer_utils import get_last_checkpoint
from trl import SFTConfig, SFTTrainer
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from archloop import __version__
from archloop.assets import sha256_of
from archloop.config import FinetuneConfig
from archloop.errors import ConfigError, UsageError
from archloop.finetuning.dataset import IGNORED, encode_pair, read_messages
from archloop.finetuning.job import FinetuneJob
from archloop.worker import Emit, serve

logger = logging.getLogger(__name__)

_CHECKPOINT_STEPS = 20
_WEIGHTS = "adapter_model.safetensors"
MOST_RISE = 0.3
"""Nats a token that the loss may end above its start."""


def run(job_data: dict[str, Any], emit: Emit) -> dict[str, Any]:
    """Fine-tune as the job says; returns a :class:`FinetuneResult` as JSON values."""
    job = FinetuneJob.from_json(job_data)
    if job.output.exists():
        raise UsageError(f"{job.output}: exists already")
    started = time.monotonic()
    set_seed(job.seed)
    tokenizer = AutoTokenizer.from_pretrained(job.model_dir)
    pairs = [encode_pair(tokenizer, m) for m in read_messages(job.corpus)]
    kept = [p for p in pairs if len(p.input_ids) <= job.config.max_length]
    if not kept:
        raise UsageError(f"{job.corpus}: every pair is longer than {job.config.max_length} tokens")
    rows = Dataset.from_list([{"input_ids": p.input_ids, "labels": p.labels} for p in kept])
    checkpoints = job.output.with_name(job.output.name + ".checkpoints")
    reporter = _Reporter(emit)
    trainer = _Trainer(
        model=_load(job),
        args=_arguments(job, checkpoints),
        train_dataset=rows,
        processing_class=tokenizer,
        data_collator=DataCollatorForLanguageModeling(tokenizer.pad_token_id),
        callbacks=[reporter],
    )
    last = get_last_checkpoint(str(checkpoints)) if checkpoints.is_dir() else None
    trainer.train(resume_from_checkpoint=last)
    first, loss = _losses(trainer.state.log_history)
    if reason := divergence(first, loss):
        shutil.rmtree(checkpoints, ignore_errors=True)
        return {"diverged": reason}
    result = {
        "n_pairs": len(kept),
        "n_too_long": len(pairs) - len(kept),
        "steps": trainer.state.global_step,
        "loss": loss,
        "seconds": round(time.monotonic() - started, 1),
    }
    _write(trainer.model, job, result)
    shutil.rmtree(checkpoints, ignore_errors=True)
    return result | {"adapter": str(job.output)}


class _Trainer(SFTTrainer):  # type: ignore[misc]
    """SFTTrainer with a lean loss on the CPU; on CUDA its own fused one."""

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Mean cross-entropy over the labelled tokens.

        Without a GPU kernel TRL computes the logits of every position in 32-bit chunks. Here they
        are computed from the first answer token of the batch on, in the model's type. Padding
        stands on the right, where causal attention does not see it, so no mask is needed.
        """
        if return_outputs or torch.cuda.is_available():
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        labels = inputs["labels"]
        first = int((labels != IGNORED).any(dim=0).nonzero()[0])
        keep = labels.shape[1] - first + 1
        logits = model(input_ids=inputs["input_ids"], logits_to_keep=keep).logits[:, :-1]
        wanted = labels[:, first:].flatten()
        total = cross_entropy(logits.flatten(0, 1), wanted, ignore_index=IGNORED, reduction="sum")
        count = (wanted != IGNORED).sum() if num_items_in_batch is None else num_items_in_batch
        return total / count


def _load(job: FinetuneJob) -> Any:
    """The base LLM with a trainable adapter: the parent's, or a fresh one."""
    model = AutoModelForCausalLM.from_pretrained(job.model_dir, dtype=getattr(torch, job.dtype))
    model.config.use_cache = False
    config = job.config
    wanted = LoraConfig(
        r=config.lora_r,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules=list(config.target_modules),
        task_type="CAUSAL_LM",
    )
    if job.parent is None:
        return _in_autocast(get_peft_model(model, wanted))
    model = PeftModel.from_pretrained(model, job.parent, is_trainable=True)
    found = model.peft_config["default"]
    same_targets = set(found.target_modules) == set(config.target_modules)
    if (found.r, found.lora_alpha) != (wanted.r, wanted.lora_alpha) or not same_targets:
        raise ConfigError(
            f"finetune.lora_r, lora_alpha, target_modules: {job.parent.name} has r {found.r}, "
            f"alpha {found.lora_alpha}, {sorted(found.target_modules)}; "
            "going on from it needs the same"
        )
    return _in_autocast(model)


def _in_autocast(model: Any) -> Any:
    """Leave casting to autocast: the adapter is cast down, not its inputs up.

    PEFT's own casts would multiply the adapter in 32 bits, which a CPU does more slowly.
    """
    for module in model.modules():
        if hasattr(module, "cast_input_dtype_enabled"):
            module.cast_input_dtype_enabled = False
    return model


def _arguments(job: FinetuneJob, checkpoints: Path) -> SFTConfig:
    config, cuda = job.config, torch.cuda.is_available()
    return SFTConfig(
        output_dir=str(checkpoints),
        num_train_epochs=config.epochs,
        max_steps=config.max_steps or -1,
        per_device_train_batch_size=config.batch_size,
        gradient_accumulation_steps=config.grad_accumulation,
        gradient_checkpointing=cuda,
        learning_rate=config.lr,
        lr_scheduler_type=config.scheduler,
        warmup_steps=config.warmup_steps,
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        optim=_optimizer(config, cuda),
        bf16=job.dtype == "bfloat16",
        use_cpu=not cuda,
        seed=job.seed,
        data_seed=job.seed,
        train_sampling_strategy="group_by_length",
        save_steps=_CHECKPOINT_STEPS,
        save_total_limit=1,
        logging_steps=1,
        report_to=[],
        disable_tqdm=True,
        max_length=None,
        dataset_kwargs={"skip_prepare_dataset": True},
        remove_unused_columns=False,
        dataloader_pin_memory=cuda,
        include_num_input_tokens_seen="all",
    )


def _optimizer(config: FinetuneConfig, cuda: bool) -> str:
    if config.optimizer == "paged_adamw_8bit" and cuda:
        return "paged_adamw_8bit"
    if config.optimizer == "paged_adamw_8bit":
        logger.warning("no CUDA device: fused 32-bit AdamW in place of paged 8-bit AdamW")
    return "adamw_torch_fused"


class _Reporter(TrainerCallback):  # type: ignore[misc]
    """Emits one event after every optimiser step."""

    def __init__(self, emit: Emit) -> None:
        self._emit, self._since = emit, (time.monotonic(), 0)

    def on_log(self, _args: Any, state: Any, _control: Any, logs: Any = None, **_: Any) -> None:
        """Called by the trainer with the step's loss."""
        if not logs or "loss" not in logs:
            return
        before, tokens = self._since
        now = time.monotonic()
        rate = (state.num_input_tokens_seen - tokens) / max(now - before, 1e-9)
        self._since = (now, state.num_input_tokens_seen)
        data = {
            "step": state.global_step,
            "total_steps": state.max_steps,
            "loss": logs["loss"],
            "tokens_per_second": round(rate, 1),
        }
        self._emit("step", data)


def _losses(history: list[dict[str, Any]]) -> tuple[float, float]:
    """Mean loss over the first and over the last tenth of the steps."""
    losses: list[float] = [row["loss"] for row in history if "loss" in row]
    tenth = max(1, len(losses) // 10)
    return sum(losses[:tenth]) / tenth, round(sum(losses[-tenth:]) / tenth, 4)


def divergence(first: float, last: float) -> str | None:
    """Why a fine-tune is not to be used, if it is not.

    Batches differ by some hundredths of a nat, so that the loss of a sound fine-tune of few steps
    may end a little above its start.
    """
    if not math.isfinite(last):
        return "the loss is not finite"
    if last > first + MOST_RISE:
        return f"the loss rose from {first:.3f} to {last:.3f}"
    return None


def _write(model: Any, job: FinetuneJob, result: dict[str, Any]) -> None:
    """Save adapter and lineage to a temporary folder, then rename."""
    partial = job.output.with_name(job.output.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(partial)
    (partial / "README.md").unlink(missing_ok=True)
    config_file = partial / "adapter_config.json"
    adapter = json.loads(config_file.read_text()) | {"base_model_name_or_path": job.model_dir.name}
    config_file.write_text(json.dumps(adapter, indent=2, sort_keys=True) + "\n")
    if job.config.adapter_dtype == "bfloat16":
        tensors = {k: v.to(torch.bfloat16) for k, v in load_file(partial / _WEIGHTS).items()}
        save_file(tensors, partial / _WEIGHTS, metadata={"format": "pt"})
    lineage = {
        "archloop": __version__,
        "base_model": job.model_dir.name,
        "init": "base" if job.parent is None else "previous",
        "parent": job.parent.name if job.parent else None,
        "parent_sha256": sha256_of(job.parent / _WEIGHTS) if job.parent else None,
        "corpus_sha256": sha256_of(job.corpus),
        "finetune": job.config.model_dump(mode="json"),
        "seed": job.seed,
        **result,
        **(job.lineage or {}),
    }
    (partial / "lineage.json").write_text(json.dumps(lineage, indent=2) + "\n")
    partial.rename(job.output)


if __name__ == "__main__":
    serve(run)
