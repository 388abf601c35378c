"""The process of a fine-tune: it trains, or launches several processes that train together."""

from __future__ import annotations

from typing import Any

from archloop.llm.finetuning import lora
from archloop.llm.finetuning.job import FinetuneJob
from archloop.llm.finetuning.launch import process_count, run_together
from archloop.worker import Emit, serve


def start(job_data: dict[str, Any], emit: Emit) -> dict[str, Any]:
    """Fine-tune in this process, or in several that it starts."""
    processes = process_count(FinetuneJob.from_json(job_data).config.processes)
    if processes == 1:
        return lora.run(job_data, emit)
    return run_together(job_data, emit, processes)


if __name__ == "__main__":
    serve(start)
