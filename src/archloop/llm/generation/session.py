"""The process that samples: it lives as long as the run, so that the LLM is loaded once."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from archloop.config import RunConfig
from archloop.llm.generation import Generator, build_generator
from archloop.llm.generation.generator import nobody
from archloop.llm.spending import Budget, Spent
from archloop.search.prompts import PromptSubject
from archloop.types import Completion, Origin, Request
from archloop.worker import Emit, Worker, serve_commands

_MODULE = "archloop.llm.generation.session"
_PULSE_SECONDS = 0.5


@dataclass(frozen=True)
class Sampled:
    """A completion, and what has been spent since the run began; either may be absent."""

    completion: Completion | None
    spent: Spent | None
    """``None``: the engine costs nothing."""


class GeneratorSession:
    """The main process's handle on one process that samples.

    The process starts with the first request and stays, with what it has loaded, until it is
    released, fails, or is no longer waited for.
    """

    def __init__(
        self,
        config: RunConfig,
        model_dir: Path | None = None,
        *,
        subject: PromptSubject | None = None,
    ) -> None:
        """Prepare; nothing is started yet.

        Args:
            config: The run's; names the engine.
            model_dir: The base LLM's folder; ``None``: for engines that load none.
            subject: The task, for engines that are not told by a prompt.
        """
        self._setup = {
            "config": config.model_dump(mode="json"),
            "model_dir": None if model_dir is None else str(model_dir),
            "subject": None if subject is None else asdict(subject),
        }
        self._worker: Worker | None = None
        self._adapter: str | None = None
        self._busy = False
        """Whether an answer is under way; then the process is not asked to end, but ended."""

    def generate(
        self,
        batches: Sequence[Sequence[Request]],
        adapter: Path | None,
        spent: Spent = Spent(),  # noqa: B008 - frozen
        tell: Callable[[int], None] = nobody,
    ) -> Iterator[Sampled]:
        """Sample and yield completions as they are finished.

        Closing the iterator early ends the process, so that nothing goes on sampling. An engine
        that costs money yields what is spent once more at the end, also before it fails.

        Args:
            batches: The requests that are sampled together.
            adapter: What the LLM is changed by; ``None``: nothing.
            spent: What the run has used of a server before.
            tell: Called with the number of tokens sampled since the last call: with 0 when the LLM
                is loaded, then about twice a second, where the engine sees them so early.

        Raises:
            ArchloopError: The process failed; the message is its last error line.
        """
        named = None if adapter is None else str(adapter.absolute())
        self._busy = True
        try:
            if self._worker is None:
                self._worker = Worker(_MODULE)
                self._do({"do": "build", **self._setup})
                self._do({"do": "use", "adapter": named})
            elif named != self._adapter:
                self._do({"do": "use", "adapter": named})
            self._adapter = named
            rows = [[asdict(request) for request in batch] for batch in batches]
            command = {"do": "generate", "batches": rows, "spent": spent.to_json()}
            for event in self._worker.ask(command):
                if event["event"] == "sampled":
                    yield _sampled(event["data"])
                elif event["event"] == "writing":
                    tell(event["data"]["n_tokens"])
        except BaseException:
            self._end()
            raise
        finally:
            self._busy = False

    def _do(self, command: dict[str, Any]) -> None:
        assert self._worker is not None
        for _event in self._worker.ask(command):
            pass

    def resident_bytes(self) -> int | None:
        """Main memory that the process and what it started hold; ``None``: there is none."""
        return None if self._worker is None else self._worker.resident_bytes()

    def release(self) -> None:
        """End the process, so that its memory is the system's again; the next use starts one."""
        self._end()

    def close(self) -> None:
        """End the process."""
        self._end()

    def _end(self) -> None:
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.kill() if self._busy else worker.end()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end()


def _sampled(data: dict[str, Any]) -> Sampled:
    completion, spent = data["completion"], data["spent"]
    return Sampled(
        Completion(**completion) if completion else None,
        Spent.from_json(spent) if spent else None,
    )


def _request(row: dict[str, Any]) -> Request:
    origin = row["origin"] | {"parents": tuple(row["origin"]["parents"])}
    return Request(**(row | {"messages": tuple(row["messages"]), "origin": Origin(**origin)}))


class _Pulse:
    """Adds up the tokens of unfinished completions and tells of them about twice a second.

    An engine calls it once a step, which takes milliseconds; a call takes less than one of them in
    a thousand.
    """

    def __init__(self) -> None:
        self._emit: Emit | None = None
        self._n, self._last = 0, 0.0

    def begin(self, emit: Emit) -> None:
        self._emit, self._n, self._last = emit, 0, time.monotonic()
        emit("writing", {"n_tokens": 0})

    def add(self, n_tokens: int) -> None:
        self._n += n_tokens
        if time.monotonic() - self._last >= _PULSE_SECONDS:
            self.flush()

    def flush(self) -> None:
        if self._n and self._emit is not None:
            self._emit("writing", {"n_tokens": self._n})
            self._n, self._last = 0, time.monotonic()


class _Process:
    """The other side: the generator and the commands it answers."""

    def __init__(self) -> None:
        self._generator: Generator | None = None
        self._budget: Budget | None = None
        self._pulse = _Pulse()

    def work(self, command: dict[str, Any], emit: Emit) -> dict[str, Any]:
        if command["do"] == "build":
            self._build(command)
        elif command["do"] == "use":
            adapter = command["adapter"]
            self._built().use(None if adapter is None else Path(adapter))
        else:
            self._generate(command, emit)
        return {}

    def _built(self) -> Generator:
        assert self._generator is not None, "built first"
        return self._generator

    def _build(self, command: dict[str, Any]) -> None:
        config = RunConfig.model_validate(command["config"])
        if config.engine_traits.billed:
            self._budget = Budget(config.openai, Spent())
        subject, model_dir = command["subject"], command["model_dir"]
        self._generator = build_generator(
            config,
            model_dir=None if model_dir is None else Path(model_dir),
            subject=subject
            and PromptSubject(subject["dataset"], tuple(subject["shape"]), subject["classes"]),
            budget=self._budget,
            tell=self._pulse.add,
        )

    def _generate(self, command: dict[str, Any], emit: Emit) -> None:
        if self._budget is not None:
            self._budget.spent = Spent.from_json(command["spent"])

        def sampled(completion: Completion | None) -> None:
            spent = self._budget.spent.to_json() if self._budget else None
            row = asdict(completion) if completion else None
            emit("sampled", {"completion": row, "spent": spent})

        self._pulse.begin(emit)
        try:
            for batch in command["batches"]:
                for completion in self._built().generate([_request(row) for row in batch]):
                    self._pulse.flush()
                    sampled(completion)
        finally:
            if self._budget is not None:
                sampled(None)

    def close(self) -> None:
        if self._generator is not None:
            self._generator.close()


if __name__ == "__main__":
    process = _Process()
    serve_commands(process.work, process.close)
