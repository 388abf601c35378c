"""Finding the checkpoint that an interrupted fine-tune resumes from."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from transformers.trainer_utils import get_last_checkpoint

from archloop.config import config_digest
from archloop.llm.adapter_files import ADAPTER_WEIGHTS
from archloop.llm.finetuning.job import FinetuneJob
from archloop.machine.downloads import sha256_of
from archloop.worker import Emit

_DIGEST = "job.sha256"


def last_checkpoint(folder: Path, job: FinetuneJob, emit: Emit) -> Path | None:
    """The newest complete checkpoint of a job; incomplete ones and those of other jobs are removed.

    A folder without a job digest counts as the job's own.
    """
    file, digest = folder / _DIGEST, _digest(job)
    before = file.read_text() if file.is_file() else None
    if before not in (None, digest):
        text = "its checkpoints are of other settings, corpus, seed, LLM or parent; it begins anew"
        emit("note", {"text": text})
        # The digest is removed last: after a kill, the rest is still recognised as another job's.
        for old in folder.glob("*/"):
            shutil.rmtree(old)
    if before != digest:
        folder.mkdir(parents=True, exist_ok=True)
        file.write_text(digest)
    while found := get_last_checkpoint(str(folder)):
        if _is_whole(Path(found)):
            return Path(found)
        emit("note", {"text": f"{Path(found).name} was not written to its end; it is removed"})
        shutil.rmtree(found)
    return None


def _digest(job: FinetuneJob) -> str:
    return config_digest(
        {
            "model": str(job.model_dir.resolve()),
            "corpus": sha256_of(job.corpus),
            "config": job.config.model_dump(mode="json"),
            "dtype": job.dtype,
            "seed": job.seed,
            "parent": job.parent and sha256_of(job.parent / ADAPTER_WEIGHTS),
        }
    )


def _is_whole(checkpoint: Path) -> bool:
    """Whether a checkpoint is complete: it has the file that the trainer writes last."""
    try:
        json.loads((checkpoint / "trainer_state.json").read_text("utf-8"))
    except (OSError, ValueError):
        return False
    return True
