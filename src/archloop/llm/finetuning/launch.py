"""Data-parallel fine-tuning: several processes, each with its share of every batch.

The processes are torchrun's (its elastic launcher, called from here), and accelerate, inside the
trainer, finds them: NCCL between GPUs, gloo between processes on a CPU. Only the first process
reports and writes files. If one process fails, all of them end.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import threading
import uuid
from contextlib import suppress
from multiprocessing.process import current_process
from pathlib import Path
from typing import Any

import psutil
import torch
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from archloop.errors import ArchloopError, UsageError
from archloop.machine.hardware import usable_cores
from archloop.worker import Emit, as_told

_END = "end"
_NAME = "archloop-finetune"
"""Prefix of the temporary files and semaphores of a fine-tune; the process id follows."""


def process_count(configured: int | None) -> int:
    """The number of processes that train together: as configured, else one for each GPU.

    Raises:
        UsageError: There are fewer GPUs than that.
    """
    gpus = torch.cuda.device_count()
    if configured is not None and gpus and configured > gpus:
        raise UsageError(f"finetune.processes: {configured}, but there are {gpus} GPUs")
    return configured or max(1, gpus)


def run_together(job_data: dict[str, Any], emit: Emit, processes: int) -> dict[str, Any]:
    """Fine-tune with several processes; see :func:`archloop.llm.finetuning.lora.run`."""
    if not torch.cuda.is_available():
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, usable_cores() // processes)))
    sweep()
    mine = f"{_NAME}-{os.getpid()}-"
    # There is no public way to choose the names of multiprocessing's semaphores.
    current_process()._config["semprefix"] = f"/{mine}"  # type: ignore[attr-defined]
    with tempfile.TemporaryDirectory(prefix=mine) as folder:
        pipe = Path(folder) / "events"
        os.mkfifo(pipe)
        # Opened for reading and writing, so that neither side blocks on the other.
        with os.fdopen(os.open(pipe, os.O_RDWR), "r+b", buffering=0) as events:
            listener = threading.Thread(target=_listen, args=(pipe, emit), daemon=True)
            listener.start()
            try:
                answers = elastic_launch(_config(processes, folder), _rank)(job_data, str(pipe))
            except ChildFailedError as error:
                raise ArchloopError(
                    f"a process of the fine-tune failed: {_reason(error)}"
                ) from None
            finally:
                events.write(f"{_END}\n".encode())
                listener.join()
    answer: dict[str, Any] = answers[0]
    if "error" in answer:
        raise (UsageError if answer["usage"] else ArchloopError)(answer["error"])
    return answer


def sweep() -> None:
    """Remove files and semaphores of killed fine-tunes, recognised by their process ids."""
    folders = Path(tempfile.gettempdir()).glob(f"{_NAME}-*")
    for left in (*folders, *Path("/dev/shm").glob(f"sem.{_NAME}-*")):
        owner = left.name.partition(f"{_NAME}-")[2].partition("-")[0]
        if not owner.isdecimal() or psutil.pid_exists(int(owner)):
            continue
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            with suppress(OSError):  # it belongs to another user, or is gone
                left.unlink()


def _config(processes: int, folder: str) -> LaunchConfig:
    return LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=str(uuid.uuid4()),
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        monitor_interval=0.2,
        start_method="spawn",
        logs_specs=DefaultLogsSpecs(log_dir=folder),
    )


def _rank(job_data: dict[str, Any], pipe: str) -> dict[str, Any]:
    """The work of each process. Every process finds and reports faults of the input."""
    if torch.cuda.is_available():
        # Must come before the LLM is loaded: bitsandbytes puts weights on the current GPU.
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    from archloop.llm.finetuning.lora import run

    with Path(pipe).open("w", encoding="utf-8") as events:

        def emit(event: str, data: dict[str, Any]) -> None:
            if os.environ["RANK"] == "0":
                events.write(json.dumps([event, data]) + "\n")
                events.flush()

        try:
            return run(job_data, emit)
        except (ArchloopError, OSError) as error:
            told = as_told(error)
            return {"error": str(told), "usage": isinstance(told, UsageError)}


def _listen(pipe: Path, emit: Emit) -> None:
    with pipe.open(encoding="utf-8") as events:
        for line in events:
            if line.strip() == _END:
                return
            event, data = json.loads(line)
            emit(event, data)


def _reason(error: ChildFailedError) -> str:
    _, failure = error.get_first_failure()
    message = failure.message
    text = message.get("message", "") if isinstance(message, dict) else str(message)
    return text.strip().splitlines()[-1] if text.strip() else f"exit code {failure.exitcode}"
