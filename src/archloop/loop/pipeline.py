"""Generation and evaluation of one cycle, streaming: one is trained while the next are written.

Completions are sampled in batches of fixed composition and stored as they come, verdicts as they
come. An interrupted batch is sampled again as a whole with the same seeds, and only what is missing
is added; of a server only what is missing is asked.
"""

from __future__ import annotations

import math
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

from archloop.code.chat import code_sha256, extract
from archloop.code.policy import check
from archloop.config import RunConfig
from archloop.config.derived import derive_seed
from archloop.config.engines import EngineTraits
from archloop.errors import CapReachedError
from archloop.evaluation.executor import Evaluate, Executor
from archloop.evaluation.executor import Evaluated as Judged
from archloop.evaluation.local import worker_count
from archloop.llm.generation.session import Sampled
from archloop.llm.spending import Spent
from archloop.loop.context import RunContext
from archloop.pace import Before, CandidatesPace
from archloop.progress import Observer, Progress
from archloop.store.run_dir import SPENT
from archloop.store.store import Store
from archloop.types import Completion, Outcome, Request, Span, Verdict

_FULL = 4
"""Times ``batch_size`` that an engine gets at once: few sequences run alone at the end, and an
interruption costs no more than these."""


_HEARTBEAT = 1.0
"""Seconds between two reports while nothing happens."""


class Sampler(Protocol):
    """Writes completions (:class:`archloop.llm.generation.session.GeneratorSession`)."""

    def generate(
        self,
        batches: Sequence[Sequence[Request]],
        adapter: Path | None,
        spent: Spent,
        tell: Callable[[int], None],
    ) -> Iterator[Sampled]:
        """Sample; closing the iterator ends the process that does."""
        ...


@dataclass(frozen=True)
class Evaluated:
    """What the pipeline did."""

    wall_seconds: float | None
    """``None`` when part of the cycle was done before an interruption."""


@dataclass(frozen=True)
class CyclePlan:
    """What is to be done in one cycle, and what its rows say besides."""

    cycle: int
    seed: int
    """Of the run."""
    requests: tuple[Request, ...]
    """In index order."""
    batches: tuple[range, ...]
    """Indices that are sampled together."""
    valid_target: int | None
    max_params: int
    traits: EngineTraits
    isolation: str
    protocol: str
    training: str
    at_once: int = 1
    """Completions that are written at the same time."""
    workers: int = 1
    """Candidates that are evaluated at the same time."""
    most_tokens: int = 1024
    """Of a completion."""
    before: Before = Before()
    """What earlier cycles measured."""


def generate_and_evaluate(
    run: RunContext, cycle: int, adapter: Path | None, requests: Sequence[Request]
) -> Evaluated:
    """Bring a cycle to its end: every completion sampled, every one with a verdict."""
    started = time.monotonic()
    fresh = not run.store.n_completions(cycle)
    config = run.config
    plan = CyclePlan(
        cycle=cycle,
        seed=config.seed,
        requests=tuple(requests),
        batches=tuple(batches_of(config)),
        valid_target=config.loop.valid_target,
        max_params=config.task.max_params,
        traits=config.engine_traits,
        isolation=config.sandbox.isolation,
        protocol=run.protocol,
        training=config.protocol.training,
        at_once=config.written_at_once,
        workers=worker_count(config.sandbox),
        most_tokens=config.generation.max_new_tokens,
        before=run.watch.before(),
    )
    Pipeline(plan, adapter, run.store, run.generator, run.executor, run.watch).work()
    return Evaluated(round(time.monotonic() - started, 1) if fresh else None)


def batches_of(config: RunConfig) -> list[range]:
    """A cycle's completions in batches: what is sampled again as a whole after an interruption.

    Of ``generation.batch_size`` completions, where the number of valid ones ends the cycle or an
    engine advances its sequences in step; larger ones keep other engines full to the end.
    """
    size, n = config.generation.batch_size, config.loop.completions
    if config.loop.valid_target is None:
        match config.engine_traits.batching:
            case "separate":
                size = n
            case "continuous":
                size *= _FULL
    return [range(i, min(i + size, n)) for i in range(0, n, size)]


class Pipeline:
    """One cycle's queue between the generator, the executor and the store.

    Only the thread that calls :meth:`work` writes to the store. Events are completions from the
    generator's thread and verdicts from the executor's.

    Args:
        plan: What is to be done.
        adapter: The adapter that generates.
        store: Holds the requests; what is there already is not done again.
        generator: Writes completions.
        executor: Evaluates them.
        observer: Told how far the cycle is.
    """

    def __init__(
        self,
        plan: CyclePlan,
        adapter: Path | None,
        store: Store,
        generator: Sampler,
        executor: Executor,
        observer: Observer,
    ) -> None:
        self._plan, self._adapter, self._store = plan, adapter, store
        self._generator, self._executor, self._observer = generator, executor, observer
        self._events: queue.Queue[Callable[[], None]] = queue.Queue()
        self._answers: queue.SimpleQueue[tuple[Sampled, float]] = queue.SimpleQueue()
        """Each with the time it came; there is one event for each."""
        self._open = 0
        """Candidates submitted and without a verdict."""
        before = store.completions(plan.cycle)
        self._stored = {c.index for c in before}
        self._outcomes: Counter[Outcome] = Counter(store.outcome_counts(plan.cycle))
        known = (c.first_epoch_accuracy for c in store.candidates(plan.cycle))
        self._best = max((a for a in known if a is not None), default=None)
        self._began = time.monotonic()
        self._waiting = ""
        """What there is to wait for before the first token."""
        self._pace = CandidatesPace(
            len(plan.requests),
            at_once=plan.at_once,
            workers=plan.workers,
            most_tokens=plan.most_tokens,
            before=plan.before,
        )
        self._pace.resume(len(before), sum(c.n_tokens for c in before))

    def work(self) -> None:
        """Sample and evaluate what the store lacks of the cycle."""
        for completion in self._store.pending(self._plan.cycle):
            self._judge(completion)
        if self._plan.traits.loads_alone:
            # It weighs the GPU's memory while it loads, and fails when others give some back.
            self._drain(lambda: self._open == 0)
        for batches in self._rounds():
            self._generate(batches)
            self._drain(lambda: self._open == 0)
        self._drain(lambda: self._open == 0)

    def _rounds(self) -> Iterator[list[range]]:
        """Batches to sample one after the other: all, or one by one until enough are valid."""
        plan = self._plan
        owed = [b for b in plan.batches if not self._stored.issuperset(b)]
        if plan.valid_target is None:
            if owed:
                yield owed
            return
        for batch in plan.batches:
            self._drain(lambda: self._open == 0)
            valid = sum(n for outcome, n in self._outcomes.items() if outcome.is_valid)
            # A batch that was begun before an interruption is ended, as without one.
            if valid >= plan.valid_target and self._stored.isdisjoint(batch):
                return
            if batch in owed:
                yield [batch]

    def _generate(self, batches: list[range]) -> None:
        """Sample in another process, handling every completion and verdict as it comes."""
        wanted = [self._wanted(batch) for batch in batches]
        spent = Spent.from_json(self._store.get_meta(SPENT))
        done, unwanted = threading.Event(), threading.Event()
        failure: list[BaseException] = []
        begin = time.time()

        def tell(n_tokens: int) -> None:
            self._events.put(partial(self._writing, n_tokens))

        def produce() -> None:
            sampling = self._generator.generate(wanted, self._adapter, spent, tell)
            try:
                for sampled in sampling:
                    if unwanted.is_set():
                        break  # which ends the process
                    self._answers.put((sampled, time.time()))
                    self._events.put(lambda: self._sampled(begin))
            except BaseException as error:  # noqa: BLE001 - carried to the main thread
                failure.append(error)
            finally:
                self._events.put(done.set)

        self._waiting = "asking the server" if self._plan.traits.billed else "loading the LLM"
        self._report()
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

    def _wanted(self, batch: range) -> list[Request]:
        """The requests of a batch; where completions are separate, of what it lacks."""
        separate = self._plan.traits.batching == "separate"
        done = self._stored if separate else set()
        return [self._plan.requests[i] for i in batch if i not in done]

    def _drain(self, finished: Callable[[], bool]) -> None:
        while not finished():
            try:
                event = self._events.get(timeout=_HEARTBEAT)
            except queue.Empty:
                self._report()  # the time left changes while nothing happens
            else:
                event()

    def _writing(self, n_tokens: int) -> None:
        self._pace.writing(time.monotonic(), n_tokens)
        if self._plan.traits.local:
            self._waiting = ""
        self._report()

    def _sampled(self, begin: float) -> None:
        self._waiting = ""
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
                self._store.set_meta(key, value)
            return None
        is_new = completion.index not in self._stored
        self._pace.wrote(time.monotonic(), completion.n_tokens, is_new=is_new)
        if not is_new:
            return None
        self._store.add_completions([completion], meta)
        self._store.add_span(Span(self._plan.cycle, "generate", completion.index, begin, end))
        self._stored.add(completion.index)
        return completion

    def _judge(self, completion: Completion) -> None:
        """Check statically; what passes goes to the sandbox."""
        found, index = extract(completion.text), completion.index
        code = found.code
        if code is None:
            self._finish(index, None, Verdict(Outcome.NO_CODE, found.reason))
            return
        if (fault := check(code)) is not None:
            self._finish(index, code, fault)
            return
        self._open += 1
        self._pace.sent(time.monotonic())
        seed = derive_seed(self._plan.seed, "evaluate", self._plan.cycle, index)
        job = Evaluate(code, seed=seed, max_params=self._plan.max_params)

        def done(future: Future[Judged]) -> None:
            self._events.put(lambda: self._evaluated(index, code, future))

        self._executor.submit(job).add_done_callback(done)

    def _evaluated(self, index: int, code: str, future: Future[Judged]) -> None:
        self._open -= 1
        judged = future.result()
        self._pace.evaluated(time.monotonic(), judged.end - judged.begin)
        self._store.add_span(Span(self._plan.cycle, "evaluate", index, judged.begin, judged.end))
        self._finish(index, code, judged.verdict)

    def _finish(self, index: int, code: str | None, verdict: Verdict) -> None:
        plan = self._plan
        self._store.add_verdict(
            plan.cycle,
            index,
            verdict=verdict,
            code=code,
            code_sha256=code_sha256(code) if code is not None else None,
            isolation=plan.isolation,
            protocol=plan.protocol,
            training=plan.training,
        )
        self._outcomes[verdict.outcome] += 1
        found = (self._best, verdict.first_epoch_accuracy)
        self._best = max((a for a in found if a is not None), default=None)
        self._report()

    def _report(self) -> None:
        pace, now, n = self._pace, time.monotonic(), len(self._plan.requests)
        judged = sum(self._outcomes.values())
        n_valid = sum(n for o, n in self._outcomes.items() if o.is_valid)
        left = pace.left(now, self._expected(judged, n_valid))
        self._observer.update(
            Progress(
                "candidates",
                done=judged,
                total=n,
                unit="candidates",
                n_valid=n_valid,
                best=self._best,
                n_tokens=pace.n_tokens or None,
                tokens_per_second=pace.tokens_per_second(now),
                detail=self._waiting or f"{len(self._stored)} written",
                share=(pace.written_share() + judged / n) / 2,
                elapsed=now - self._began,
                eta=None if left is None else left.seconds,
                eta_is_whole=left is None or left.is_whole,
            )
        )

    def _expected(self, judged: int, n_valid: int) -> int:
        """Completions that the cycle will have, where the number of valid ones ends it."""
        n, target = len(self._plan.requests), self._plan.valid_target
        if target is None or not n_valid:
            return n
        wanted = max(judged, math.ceil(target * judged / n_valid))
        ends = [batch.stop for batch in self._plan.batches if batch.stop >= wanted]
        return min([n, *ends])
