"""Generation and evaluation of one cycle, streaming: one is trained while the next are written.

Completions are sampled in batches of fixed composition and stored as they come, verdicts as they
come. An interrupted batch is sampled again as a whole with the same seeds, and only what is missing
is added; of a server only what is missing is asked.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from archloop.code.chat import code_sha256, extract_code
from archloop.code.policy import check
from archloop.config import RunConfig
from archloop.errors import CapReachedError
from archloop.evaluation.executors import Executor, Finished, build_executor
from archloop.llm.generation import CONTINUOUS, SEPARATE, StoredText
from archloop.llm.generation.job import GenerationJob, Sampled, generate
from archloop.llm.spending import Spent
from archloop.loop.context import RunContext
from archloop.progress import Progress
from archloop.sandbox import Sandbox
from archloop.search.temperature import temperature_of
from archloop.store.run_dir import SPENT, RunDir
from archloop.store.store import Store
from archloop.types import Completion, Outcome, Span, Verdict

_FULL = 4
"""Times ``batch_size`` that an engine gets at once: few sequences run alone at the end, and an
interruption costs no more than these."""


@dataclass(frozen=True)
class Evaluated:
    """What the pipeline did."""

    wall_seconds: float | None
    """``None`` when part of the cycle was done before an interruption."""


def generate_and_evaluate(run: RunContext, cycle: int, adapter: Path | None) -> Evaluated:
    """Bring a cycle to its end: every completion sampled, every one with a verdict."""
    started = time.monotonic()
    fresh = not run.store.completions(cycle)
    with (
        Sandbox(run.config.sandbox, task=run.task, protocol=run.config.protocol) as sandbox,
        build_executor(sandbox, run.config.sandbox) as executor,
    ):
        _Pipeline(run, cycle, adapter, executor, sandbox.isolation).work()
    return Evaluated(round(time.monotonic() - started, 1) if fresh else None)


def batches_of(config: RunConfig) -> list[range]:
    """A cycle's completions in batches: what is sampled again as a whole after an interruption.

    Of ``generation.batch_size`` completions, where the number of valid ones ends the cycle or an
    engine advances its sequences in step; larger ones keep other engines full to the end.
    """
    engine, size = config.generation.engine, config.generation.batch_size
    n = config.loop.completions
    if config.loop.valid_target is None:
        size = n if engine in SEPARATE else size * _FULL if engine in CONTINUOUS else size
    return [range(i, min(i + size, n)) for i in range(0, n, size)]


class _Pipeline:
    """One cycle's queue between the generator's process, the executor and the store.

    Only this thread writes to the store. Events are completions from the generator's thread and
    verdicts from the executor's.
    """

    def __init__(
        self,
        run: RunContext,
        cycle: int,
        adapter: Path | None,
        executor: Executor,
        isolation: str,
    ) -> None:
        self._run, self._cycle, self._adapter = run, cycle, adapter
        self._executor, self._isolation = executor, isolation
        self._separate = run.config.generation.engine in SEPARATE
        self._events: queue.Queue[Callable[[], None]] = queue.Queue()
        self._answers: queue.SimpleQueue[tuple[Sampled, float]] = queue.SimpleQueue()
        """Each with the time it came; there is one event for each."""
        self._open = 0
        """Candidates submitted and without a verdict."""
        self._stored = {c.index for c in run.store.completions(cycle)}
        self._outcomes = Counter(c.outcome for c in run.store.candidates(cycle))
        self._tokens, self._since = 0, time.monotonic()

    def work(self) -> None:
        for completion in self._run.store.pending(self._cycle):
            self._judge(completion)
        if self._run.config.generation.engine == "vllm":
            # It weighs the GPU's memory while it loads, and fails when others give some back.
            self._drain(lambda: self._open == 0)
        for batches in self._rounds():
            self._generate(batches)
            self._drain(lambda: self._open == 0)
        self._drain(lambda: self._open == 0)

    def _rounds(self) -> Iterator[list[range]]:
        """Batches to sample together in one process: all, or one by one until enough are valid."""
        loop, batches = self._run.config.loop, batches_of(self._run.config)
        owed = [b for b in batches if not self._stored.issuperset(b)]
        if loop.valid_target is None:
            if owed:
                yield owed
            return
        for batch in batches:
            self._drain(lambda: self._open == 0)
            valid = sum(n for outcome, n in self._outcomes.items() if outcome.is_valid)
            # A batch that was begun before an interruption is ended, as without one.
            if valid >= loop.valid_target and self._stored.isdisjoint(batch):
                return
            if batch in owed:
                yield [batch]

    def _generate(self, batches: list[range]) -> None:
        """Sample in a process of its own, handling every completion and verdict as it comes."""
        stored = self._stored_texts()
        job = GenerationJob.of(
            self._run.config,
            temperature=self._temperature(),
            model_dir=Path() if stored is not None or self._separate else self._run.model_dir,
            adapter_dir=self._adapter,
            messages=self._run.prompt,
            batches=[self._requests(batch) for batch in batches],
            cycle=self._cycle,
            stored=stored,
            spent=Spent.from_json(self._run.store.get_meta(SPENT)),
        )
        done, unwanted = threading.Event(), threading.Event()
        failure: list[BaseException] = []

        begin = time.time()

        def produce() -> None:
            try:
                for sampled in generate(job):
                    if unwanted.is_set():
                        break  # which ends the process
                    self._answers.put((sampled, time.time()))
                    self._events.put(lambda: self._sampled(begin))
            except BaseException as error:  # noqa: BLE001 - carried to the main thread
                failure.append(error)
            finally:
                self._events.put(done.set)

        self._report("asking the server" if self._separate else "loading the LLM")
        thread = threading.Thread(target=produce, daemon=True)
        thread.start()
        try:
            self._drain(done.is_set)
        except BaseException:
            while not self._answers.empty():  # they may have been paid for
                self._keep(begin)
            raise
        finally:  # or an interrupted run, in a notebook say, would go on sampling for nobody
            unwanted.set()
        thread.join()
        if failure:
            if isinstance(failure[0], CapReachedError):  # judge what has been paid for
                self._drain(lambda: self._open == 0)
            raise failure[0]

    def _temperature(self) -> float:
        committed = [stats for stats in self._run.store.cycles() if stats.cycle < self._cycle]
        return temperature_of(self._run.config, committed)

    def _requests(self, batch: range) -> list[tuple[int, int]]:
        """(index, seed) of a batch; where completions are separate, of what it lacks."""
        done = self._stored if self._separate else set()
        seed = self._run.seed
        return [(i, seed("generate", self._cycle, i)) for i in batch if i not in done]

    def _stored_texts(self) -> dict[int, StoredText] | None:
        """This cycle's completions of the run that ``replay`` repeats."""
        source = self._run.config.generation.replay_from
        if self._run.config.generation.engine != "replay" or source is None:
            return None
        with Store(RunDir(Path(source)).database, read_only=True) as store:
            found = store.completions(self._cycle)
        return {c.index: (c.text, c.n_tokens, c.finish_reason) for c in found}

    def _drain(self, finished: Callable[[], bool]) -> None:
        while not finished():
            self._events.get()()

    def _sampled(self, begin: float) -> None:
        completion = self._keep(begin)
        if completion is not None:
            self._judge(completion)
        self._report()

    def _keep(self, begin: float) -> Completion | None:
        """Store the next answer and, in the same transaction, what has been spent.

        Returns:
            Its completion, if that is a new one.
        """
        sampled, end = self._answers.get()
        meta = {} if sampled.spent is None else {SPENT: sampled.spent.to_json()}
        completion = sampled.completion
        if completion is None:
            for key, value in meta.items():
                self._run.store.set_meta(key, value)
            return None
        self._tokens += completion.n_tokens
        if completion.index in self._stored:
            return None
        self._run.store.add_completions([completion], meta)
        self._run.store.add_span(Span(self._cycle, "generate", completion.index, begin, end))
        self._stored.add(completion.index)
        return completion

    def _judge(self, completion: Completion) -> None:
        """Check statically; what passes goes to the sandbox."""
        code = extract_code(completion.text)
        verdict = Verdict(Outcome.NO_CODE, "no Python code block") if code is None else check(code)
        if verdict is not None or code is None:
            assert verdict is not None
            self._finish(completion.index, code, verdict)
            return
        self._open += 1
        self._executor.submit(
            code,
            seed=self._run.seed("evaluate", self._cycle, completion.index),
            max_params=self._run.config.task.max_params,
            on_done=lambda done, i=completion.index, text=code: self._events.put(  # type: ignore[misc]
                lambda: self._evaluated(i, text, done)
            ),
        )

    def _evaluated(self, index: int, code: str, done: Finished) -> None:
        self._open -= 1
        self._run.store.add_span(Span(self._cycle, "evaluate", index, done.begin, done.end))
        self._finish(index, code, done.verdict())

    def _finish(self, index: int, code: str | None, verdict: Verdict) -> None:
        self._run.store.add_verdict(
            self._cycle,
            index,
            verdict=verdict,
            code=code,
            code_sha256=code_sha256(code) if code is not None else None,
            isolation=self._isolation,
            protocol=self._run.protocol,
            training=self._run.config.protocol.training,
        )
        self._outcomes[verdict.outcome] += 1
        self._report()

    def _report(self, detail: str = "") -> None:
        loop = self._run.config.loop
        elapsed = time.monotonic() - self._since
        accepted = sum(s.n_accepted for s in self._run.store.cycles()) if not detail else None
        self._run.observer.update(
            Progress(
                "candidates",
                cycle=self._cycle,
                cycles=loop.cycles,
                done=sum(self._outcomes.values()),
                total=loop.completions,
                unit="candidates",
                n_valid=sum(n for o, n in self._outcomes.items() if o.is_valid),
                n_accepted=accepted,
                tokens_per_second=self._tokens / elapsed if self._tokens else None,
                detail=detail or f"{len(self._stored)} written",
            )
        )
