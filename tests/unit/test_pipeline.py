"""One cycle's queue between a generator, an executor and a real store; no LLM, no sandbox."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from archloop.code.chat import render_code
from archloop.config import load_config
from archloop.config.engines import ENGINES
from archloop.errors import ArchloopError, CapReachedError
from archloop.evaluation.executor import Evaluate, Evaluated
from archloop.llm.generation.session import Sampled
from archloop.llm.spending import Spent
from archloop.loop.pipeline import CyclePlan, Pipeline, batches_of
from archloop.progress import Progress, Silent
from archloop.store.run_dir import SPENT
from archloop.store.store import Store
from archloop.types import Completion, Outcome, Request, Verdict
from conftest import network

GOOD = render_code(network())
N = 6


def requests(n: int = N) -> tuple[Request, ...]:
    return tuple(Request(1, i, 100 + i, "t", (), 0.5) for i in range(n))


@dataclass
class Writer:
    """Answers requests from a table; fails after ``most`` answers, if that is given."""

    texts: dict[int, str] = field(default_factory=dict)
    most: int | None = None
    error: BaseException | None = None
    asked: list[list[list[int]]] = field(default_factory=list)
    costs: bool = False
    waits: threading.Event | None = None
    """Set when somebody closed the iterator."""

    def generate(
        self,
        batches: Sequence[Sequence[Request]],
        adapter: Path | None,  # noqa: ARG002 - of the protocol
        spent: Spent,  # noqa: ARG002
        tell: Callable[[int], None],
    ) -> Iterator[Sampled]:
        tell(0)
        self.asked.append([[r.index for r in batch] for batch in batches])
        done = 0
        try:
            for request in (r for batch in batches for r in batch):
                if done == self.most:
                    assert self.error is not None
                    raise self.error
                done += 1
                tell(5)
                text = self.texts.get(request.index, GOOD)
                sum_so_far = Spent(prompt_tokens=10 * done) if self.costs else None
                yield Sampled(Completion(1, request.index, text, 7, "stop"), sum_so_far)
        finally:
            if self.waits is not None:
                self.waits.set()


@dataclass
class Table:
    """An executor that answers at once, by the seed of the job."""

    fails: dict[int, BaseException] = field(default_factory=dict)
    """By the number of the job."""
    outcomes: dict[int, Outcome] = field(default_factory=dict)
    seeds: list[int] = field(default_factory=list)

    def submit(self, job: Evaluate) -> Future[Evaluated]:
        future: Future[Evaluated] = Future()
        number = len(self.seeds)
        self.seeds.append(job.seed)
        if number in self.fails:
            future.set_exception(self.fails[number])
        else:
            outcome = self.outcomes.get(number, Outcome.VALID)
            accuracy = 0.5 if outcome.is_valid else None
            verdict = Verdict(outcome, n_params=5, first_epoch_accuracy=accuracy)
            future.set_result(Evaluated(verdict, 1.0, 2.0))
        return future


class Later(Table):
    """Answers from another thread, a moment later or never."""

    def __init__(self, *, never: bool = False) -> None:
        super().__init__()
        self.never, self.n_open = never, 0

    def submit(self, job: Evaluate) -> Future[Evaluated]:
        done, future = super().submit(job), Future[Evaluated]()
        self.n_open += 1

        def answer() -> None:
            self.n_open -= 1
            future.set_result(done.result())

        if not self.never:
            threading.Timer(0.05, answer).start()
        return future


class Watching(Silent):
    def __init__(self) -> None:
        self.seen: list[Progress] = []

    def update(self, progress: Progress) -> None:
        self.seen.append(progress)


def plan(engine: str = "openvino", *, n: int = N, size: int = 2, **changes: Any) -> CyclePlan:
    values: dict[str, Any] = {
        "cycle": 1,
        "seed": 0,
        "requests": requests(n),
        "batches": tuple(range(i, min(i + size, n)) for i in range(0, n, size)),
        "valid_target": None,
        "max_params": 10,
        "traits": ENGINES[engine],
        "isolation": "confined",
        "protocol": "p",
        "training": "contract",
    }
    return CyclePlan(**values | changes)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "run.db") as opened:
        opened.add_requests(requests())
        yield opened


def work(
    store: Store,
    writer: Writer,
    table: Any = None,
    watching: Silent | None = None,
    **changes: Any,
) -> None:
    executor = table or Table()
    Pipeline(plan(**changes), None, store, writer, executor, watching or Silent()).work()


def outcomes(store: Store) -> list[str]:
    return [c.outcome.value for c in store.candidates(1)]


def test_every_completion_gets_a_verdict_and_every_step_a_span(store: Store) -> None:
    watching = Watching()
    texts = {1: "no code here", 2: render_code("import os\nos.nice(1)\n" + network())}
    work(store, Writer(texts), Table(), watching)
    assert outcomes(store) == ["valid", "no_code", "forbidden_code", "valid", "valid", "valid"]
    spans = [(s.stage, s.index) for s in store.spans()]
    assert sorted(i for stage, i in spans if stage == "generate") == list(range(N))
    assert sorted(i for stage, i in spans if stage == "evaluate") == [0, 3, 4, 5]
    assert (watching.seen[-1].done, watching.seen[-1].total) == (N, N)


def test_tokens_and_candidates_are_told_as_they_come(store: Store) -> None:
    watching = Watching()
    work(store, Writer(), Table(), watching, at_once=2, most_tokens=7)
    seen = watching.seen
    assert [p.n_tokens for p in seen][0] is None
    assert seen[0].detail == "loading the LLM"
    assert 5 in [p.n_tokens for p in seen], "before the first completion is finished"
    told = [p.n_tokens for p in seen if p.n_tokens is not None]
    assert told == sorted(told)
    last = seen[-1]
    assert (last.n_tokens, last.detail, last.best) == (7 * N, f"{N} written", 0.5)
    assert (last.share, last.eta) == (1.0, 0.0)
    assert all(p.elapsed is not None for p in seen), "no other clock guesses the time left"


def test_a_long_evaluation_is_told_of_while_it_lasts(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("archloop.loop.pipeline._HEARTBEAT", 0.005)
    held: list[Future[Evaluated]] = []

    class Holding(Table):
        def submit(self, job: Evaluate) -> Future[Evaluated]:  # noqa: ARG002 - all are alike
            held.append(Future())
            return held[-1]

    class Releasing(Watching):
        def update(self, progress: Progress) -> None:
            super().update(progress)
            if len({p.elapsed for p in self.seen if p.detail == f"{N} written"}) == 4:
                while held:
                    held.pop().set_result(Evaluated(Verdict(Outcome.VALID), 1.0, 2.0))

    work(store, Writer(), Holding(), Releasing())  # which ends as nothing is waited for in silence
    assert outcomes(store) == ["valid"] * N


def test_the_time_left_is_that_of_the_completions_which_are_needed(store: Store) -> None:
    """Of batches of two: half of all are valid and two are wanted, so that four are needed."""
    made = plan(valid_target=2)
    pipeline = Pipeline(made, None, store, Writer(), Table(), Silent())
    asked = [(0, 0), (2, 1), (2, 2), (4, 1)]
    assert [pipeline._expected(*counts) for counts in asked] == [N, 4, 2, N]


def test_what_is_stored_is_not_done_again_but_its_batch_is_sampled_as_a_whole(
    store: Store,
) -> None:
    with pytest.raises(KeyboardInterrupt):
        work(store, Writer(most=3, error=KeyboardInterrupt()))
    assert [c.index for c in store.completions(1)] == [0, 1, 2]
    again, table = Writer(), Table()
    work(store, again, table)
    assert again.asked == [[[2, 3], [4, 5]]]
    assert outcomes(store) == ["valid"] * N
    assert len(set(table.seeds)) == len(table.seeds)


def test_a_server_is_asked_only_for_what_is_missing(store: Store) -> None:
    error = CapReachedError("openai.cap_tokens: reached")
    with pytest.raises(CapReachedError):
        work(store, Writer(most=3, error=error, costs=True), engine="openai", size=N)
    assert len(store.candidates(1)) == 3, "what has been paid for is judged"
    assert Spent.from_json(store.get_meta(SPENT)) == Spent(prompt_tokens=30)
    again = Writer()
    work(store, again, engine="openai", size=N)
    assert again.asked == [[[3, 4, 5]]]


def test_a_cycle_ends_at_a_batch_with_enough_valid_ones(store: Store) -> None:
    writer = Writer()
    work(store, writer, Table(outcomes={0: Outcome.TRAIN_ERROR}), valid_target=2)
    assert writer.asked == [[[0, 1]], [[2, 3]]]
    assert outcomes(store) == ["train_error", "valid", "valid", "valid"]


def test_a_batch_begun_before_an_interruption_is_ended_with_enough_valid_too(
    store: Store,
) -> None:
    with pytest.raises(KeyboardInterrupt):
        work(store, Writer(most=3, error=KeyboardInterrupt()), valid_target=2, size=4)
    again = Writer()
    work(store, again, valid_target=2, size=4)
    assert again.asked == [[[0, 1, 2, 3]]]
    assert outcomes(store) == ["valid"] * 4


def test_an_engine_that_weighs_the_gpu_loads_when_no_candidate_holds_memory_of_it(
    store: Store,
) -> None:
    with pytest.raises(KeyboardInterrupt):
        work(store, Writer(most=2, error=KeyboardInterrupt()), Later(never=True), engine="vllm")
    open_before: list[int] = []
    table = Later()

    class Loading(Writer):
        def generate(self, *args: Any) -> Iterator[Sampled]:
            open_before.append(table.n_open)
            yield from super().generate(*args)

    work(store, Loading(), table, engine="vllm")
    assert open_before == [0]
    assert outcomes(store) == ["valid"] * N


def test_a_fault_of_the_harness_ends_the_cycle_and_the_writing(store: Store) -> None:
    stopped = threading.Event()
    writer = Writer(waits=stopped)
    with pytest.raises(ArchloopError, match="lost"):
        work(store, writer, Table(fails={1: ArchloopError("the sandbox is lost")}))
    assert stopped.wait(10)
    assert "valid" in outcomes(store)


@pytest.mark.parametrize(
    ("engine", "target", "sizes"),
    [
        ("transformers", "none", [4, 4, 4, 4, 4, 4, 4, 2]),
        ("openvino", "none", [16, 14]),  # the last two would be written alone otherwise
        ("openvino", "5", [4, 4, 4, 4, 4, 4, 4, 2]),
        ("openai", "none", [30]),
        ("openai", "5", [4, 4, 4, 4, 4, 4, 4, 2]),
    ],
)
def test_batches_by_engine_and_end_of_the_cycle(engine: str, target: str, sizes: list[int]) -> None:
    config = load_config(
        "openai" if engine == "openai" else "smoke",
        [
            f"generation.engine={engine}",
            f"loop.valid_target={target}",
            "loop.completions=30",
            "generation.batch_size=4",
        ],
    )
    batches = batches_of(config)
    assert [len(batch) for batch in batches] == sizes
    assert [i for batch in batches for i in batch] == list(range(30))
