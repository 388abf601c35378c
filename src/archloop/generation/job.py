"""Generation in a process of its own: the LLM's memory goes with it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from archloop.config import GenerationConfig
from archloop.generation import StoredText, build_generator
from archloop.types import Completion, Message
from archloop.worker import Emit, run_worker, serve


@dataclass(frozen=True)
class GenerationJob:
    """Batches of completions for one prompt."""

    config: GenerationConfig
    model_dir: Path
    adapter_dir: Path | None
    dtype: str
    messages: list[Message]
    batches: list[list[tuple[int, int]]]
    """(index, seed) of the completions sampled together."""
    cycle: int = 0
    stored: dict[int, StoredText] | None = field(default=None, repr=False)
    """Completions of an earlier run, for the ``replay`` engine."""

    def to_json(self) -> dict[str, Any]:
        """The job as JSON values."""
        return {
            "config": self.config.model_dump(mode="json"),
            "model_dir": str(self.model_dir),
            "adapter_dir": str(self.adapter_dir) if self.adapter_dir else None,
            "dtype": self.dtype,
            "messages": self.messages,
            "batches": self.batches,
            "stored": self.stored,
        }


def generate(job: GenerationJob) -> Iterator[Completion]:
    """Sample in a fresh process and yield completions as they are finished.

    Raises:
        ArchloopError: The process failed; the message is its last error line.
    """
    for event in run_worker("archloop.generation.job", job.to_json()):
        if event["event"] == "completion":
            yield Completion(cycle=job.cycle, **event["data"])


def _work(job: dict[str, Any], emit: Emit) -> dict[str, Any]:
    stored = job["stored"]
    generator = build_generator(
        GenerationConfig.model_validate(job["config"]),
        model_dir=Path(job["model_dir"]),
        adapter_dir=Path(job["adapter_dir"]) if job["adapter_dir"] else None,
        dtype=job["dtype"],
        stored={int(i): tuple(text) for i, text in stored.items()} if stored is not None else None,
    )
    try:
        for batch in job["batches"]:
            requests = [(int(index), int(seed)) for index, seed in batch]
            for text in generator.generate(job["messages"], requests):
                emit(
                    "completion",
                    {
                        "index": text.index,
                        "seed": text.seed,
                        "text": text.text,
                        "n_tokens": text.n_tokens,
                        "finish_reason": text.finish_reason,
                    },
                )
    finally:
        generator.close()
    return {}


if __name__ == "__main__":
    serve(_work)
