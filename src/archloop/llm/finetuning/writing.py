"""Writing an adapter and its lineage, completely or not at all."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from archloop import __version__
from archloop.llm.adapter_files import ADAPTER_WEIGHTS
from archloop.llm.finetuning.job import FinetuneJob
from archloop.llm.models import CHAT_TEMPLATE
from archloop.machine.downloads import sha256_of


def write_adapter(
    model: Any, template: str, job: FinetuneJob, found: dict[str, Any], best: Path | None
) -> None:
    """Save adapter, chat template and lineage to a temporary folder, then rename.

    Args:
        model: The PEFT model.
        template: The chat template that its pairs were rendered by.
        job: What was asked for.
        found: Facts about the fine-tune, for its lineage.
        best: Folder with an earlier adapter to keep in place of the model's; ``None``: the model's.
    """
    partial = job.output.with_name(job.output.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        _write(partial, model, job, found, best)
        (partial / CHAT_TEMPLATE).write_text(template, encoding="utf-8")
        partial.rename(job.output)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write(
    partial: Path, model: Any, job: FinetuneJob, found: dict[str, Any], best: Path | None
) -> None:
    model.save_pretrained(partial)
    if best is not None:
        shutil.copyfile(best / ADAPTER_WEIGHTS, partial / ADAPTER_WEIGHTS)
    (partial / "README.md").unlink(missing_ok=True)
    config_file = partial / "adapter_config.json"
    adapter = json.loads(config_file.read_text()) | {"base_model_name_or_path": job.model_dir.name}
    config_file.write_text(json.dumps(adapter, indent=2, sort_keys=True) + "\n")
    wanted = getattr(torch, job.config.adapter_dtype)
    tensors = {k: v.to(wanted) for k, v in load_file(partial / ADAPTER_WEIGHTS).items()}
    save_file(tensors, partial / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    (partial / "lineage.json").write_text(json.dumps(_lineage(job, found), indent=2) + "\n")


def _lineage(job: FinetuneJob, found: dict[str, Any]) -> dict[str, Any]:
    return {
        "archloop": __version__,
        "base_model": job.model_dir.name,
        "init": "base" if job.parent is None else "previous",
        "parent": job.parent.name if job.parent else None,
        "parent_sha256": sha256_of(job.parent / ADAPTER_WEIGHTS) if job.parent else None,
        "corpus_sha256": sha256_of(job.corpus),
        "finetune": job.config.model_dump(mode="json"),
        "seed": job.seed,
        **found,
        **(job.lineage or {}),
    }
