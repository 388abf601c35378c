"""Generation in a process of its own: the LLM's memory goes with it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from archloop.config import GenerationConfig, RunConfig
from archloop.config.engines import OpenAIConfig, VLLMConfig
from archloop.llm.generation import GeneratedText, StoredText, build_generator
from archloop.llm.spending import Budget, Remote, Spent
from archloop.machine.hardware import resolved_dtype
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
    vllm: VLLMConfig = VLLMConfig()
    server: OpenAIConfig = OpenAIConfig()
    model: str = ""
    """The name that the server knows the LLM by, for the ``openai`` engine."""
    spent: Spent = Spent()
    """What the run has used of the server before."""

    @classmethod
    def of(cls, config: RunConfig, temperature: float | None = None, **rest: Any) -> GenerationJob:
        """A job with everything that the configuration of a run says about generation.

        Args:
            config: The run's.
            temperature: In the place of the configured one.
            rest: The other fields.
        """
        decoding = config.generation
        if temperature is not None:
            decoding = decoding.model_copy(update={"temperature": temperature})
        return cls(
            config=decoding,
            dtype=resolved_dtype(config.llm.dtype),
            vllm=config.vllm,
            server=config.openai,
            model=config.llm.model,
            **rest,
        )

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
            "vllm": self.vllm.model_dump(mode="json"),
            "server": self.server.model_dump(mode="json"),
            "model": self.model,
            "spent": self.spent.to_json(),
        }


@dataclass(frozen=True)
class Sampled:
    """A completion, and what has been spent since the run began; either may be absent."""

    completion: Completion | None
    spent: Spent | None
    """``None``: the engine costs nothing."""


def generate(job: GenerationJob) -> Iterator[Sampled]:
    """Sample in a fresh process and yield completions as they are finished.

    The ``openai`` engine yields what is spent once more at the end, also before it fails.

    Raises:
        ArchloopError: The process failed; the message is its last error line.
    """
    for event in run_worker("archloop.llm.generation.job", job.to_json()):
        if event["event"] == "sampled":
            text, spent = event["data"]["text"], event["data"]["spent"]
            yield Sampled(
                _completion(job.cycle, text) if text else None,
                Spent.from_json(spent) if spent else None,
            )


def _completion(cycle: int, text: dict[str, Any]) -> Completion:
    return Completion(cycle, text["index"], text["text"], text["n_tokens"], text["finish_reason"])


def _work(job: dict[str, Any], emit: Emit) -> dict[str, Any]:
    config, stored = GenerationConfig.model_validate(job["config"]), job["stored"]
    remote = _remote(job) if config.engine == "openai" else None

    def sampled(text: GeneratedText | None) -> None:
        spent = remote.budget.spent.to_json() if remote else None
        emit("sampled", {"text": asdict(text) if text else None, "spent": spent})

    generator = build_generator(
        config,
        model_dir=Path(job["model_dir"]),
        adapter_dir=Path(job["adapter_dir"]) if job["adapter_dir"] else None,
        dtype=job["dtype"],
        stored={int(i): tuple(text) for i, text in stored.items()} if stored is not None else None,
        remote=remote,
        vllm=VLLMConfig.model_validate(job["vllm"]),
    )
    try:
        for batch in job["batches"]:
            requests = [(int(index), int(seed)) for index, seed in batch]
            for text in generator.generate(job["messages"], requests):
                sampled(text)
    finally:
        if remote:
            sampled(None)
        generator.close()
    return {}


def _remote(job: dict[str, Any]) -> Remote:
    server = OpenAIConfig.model_validate(job["server"])
    return Remote(server, job["model"], Budget(server, Spent.from_json(job["spent"])))


if __name__ == "__main__":
    serve(_work)
