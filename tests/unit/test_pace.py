"""Times left: by simulated clocks, against what was truly left."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from archloop.pace import Before, CandidatesPace, ItemPace, Left, RunPace, StageClock, left_of
from archloop.progress import Progress


def item_ratios(durations: Sequence[float], *, each: float) -> list[float]:
    """Estimated over true time left, asked every ``each`` seconds from the first item on."""
    ends = [sum(durations[: i + 1]) for i in range(len(durations))]
    pace, asked, ratios = ItemPace(0.0), each, []
    for done, end in enumerate(ends, start=1):
        while asked < end:
            if done > 1:
                left = pace.left(asked, len(ends))
                assert left is not None
                ratios.append(left / (ends[-1] - asked))
            asked += each
        pace.at(end, done)
    return ratios


@pytest.mark.parametrize("seed", range(5))
def test_steps_of_a_fine_tune_end_about_when_it_was_said(seed: int) -> None:
    draw = random.Random(seed)
    durations = [9.0, *(draw.uniform(4.0, 9.0) for _ in range(59))]
    early = item_ratios(durations, each=3.0)[:60]
    assert min(early) > 0.5
    assert max(early) < 2.0


def test_a_machine_that_becomes_slow_is_noticed() -> None:
    """20 steps of 1 s, then 40 of 4 s: after 10 slow ones the estimate has caught up."""
    ratios = item_ratios([1.0] * 20 + [4.0] * 40, each=1.0)
    later = ratios[20 + 40 : -8]
    assert min(later) > 0.6
    assert max(later) < 1.5


def test_the_last_item_is_never_nearly_done_for_long() -> None:
    """Eleven items in a second each, the last one takes 80: nobody reads 9 s for over a minute."""
    pace = ItemPace(0.0)
    for done in range(1, 12):
        pace.at(float(done), done)
    assert (pace.left(11.5, 12) or 0.0) < 2.0
    said = [pace.left(11.0 + t, 12) or 0.0 for t in (20, 40, 60)]
    assert min(said) > 9.0
    assert left_of(10.0, 4.0) == 6.0
    assert left_of(10.0, 10.0) == 2.5
    assert left_of(10.0, 30.0) == 20.0


def test_nothing_is_said_before_there_is_a_basis() -> None:
    clock = StageClock()
    assert clock.timed(Progress("fine-tune", detail="loading"), 0.0).eta is None
    begun = clock.timed(Progress("fine-tune", done=0, total=10), 60.0)
    assert (begun.elapsed, begun.eta) == (60.0, None)
    # The minute of loading is no step's.
    assert clock.timed(Progress("fine-tune", done=1, total=10), 62.0).eta == pytest.approx(18.0)
    assert clock.timed(Progress("graphs", done=0, total=962), 63.0).eta is None
    own = Progress("candidates", done=3, total=4, elapsed=5.0)
    assert clock.timed(own, 64.0) == own, "a stage that keeps the time itself is left alone"


def simulate(
    n: int, *, at_once: int, workers: int, evaluated: float, seed: int
) -> list[tuple[float, float | None, float]]:
    """A cycle: a token of each sequence in 0.1 s, half of the candidates take an evaluation.

    Returns:
        Time, estimated time left, true time left; every second.
    """
    draw = random.Random(seed)
    lengths = [draw.randint(150, 600) for _ in range(n)]
    seconds = [draw.uniform(0.6, 1.4) * evaluated if i % 2 else 0.0 for i in range(n)]
    pace = CandidatesPace(n, at_once=at_once, workers=workers, most_tokens=1024)
    pace.writing(0.0, 0)
    waiting, running = list(range(n)), dict[int, int]()
    queue: list[int] = []
    busy: dict[int, float] = {}
    said, tick, now = [], 0, 0.0
    while waiting or running or queue or busy:
        tick, now = tick + 1, (tick + 1) / 10
        while waiting and len(running) < at_once:
            running[waiting.pop(0)] = 0
        if running:
            pace.writing(now, len(running))
        for i in list(running):
            running[i] += 1
            if running[i] == lengths[i]:
                del running[i]
                pace.wrote(now, lengths[i])
                if seconds[i]:
                    queue.append(i)
                    pace.sent(now)
        for i in [i for i, end in busy.items() if end <= now]:
            del busy[i]
            pace.evaluated(now, seconds[i])
        while queue and len(busy) < workers:
            busy[queue[0]] = now + seconds[queue[0]]
            del queue[0]
        if tick % 10 == 0:
            left = pace.left(now)
            said.append((now, left.seconds if left and left.is_whole else None))
    return [(at, left, now - at) for at, left in said]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    ("evaluated", "workers"), [(1.0, 2), (30.0, 2), (60.0, 1)], ids=["writing", "both", "training"]
)
def test_a_cycle_ends_about_when_it_was_said(evaluated: float, workers: int, seed: int) -> None:
    told = simulate(24, at_once=12, workers=workers, evaluated=evaluated, seed=seed)
    whole = told[-1][0]
    # From the second half of what is known on, and until so little is left that nobody cares.
    checked = [(left, true) for at, left, true in told if at > whole / 3 and true > 15.0]
    assert checked
    for left, true in checked:
        assert left is not None
        assert true / 3 < left < 3 * true


def test_eighty_seconds_are_not_nine() -> None:
    """Eleven of twelve had faults that were found at once, the last one is in training."""
    pace = CandidatesPace(12, at_once=12, workers=1, most_tokens=1024, before=Before(seconds=90.0))
    pace.writing(0.0, 0)
    for i in range(12):
        pace.wrote(100.0 + i / 100, 300)
    pace.sent(100.2)
    found = pace.left(110.0)
    assert found is not None
    assert 60.0 < found.seconds < 100.0
    assert found.is_whole
    unknown = CandidatesPace(12, at_once=12, workers=1, most_tokens=1024)
    for i in range(12):
        unknown.wrote(100.0 + i, 300)
    unknown.sent(100.0)
    assert unknown.left(110.0) is None, "no evaluation was ever measured"


def test_a_cycle_that_is_resumed_counts_only_its_own_speed() -> None:
    pace = CandidatesPace(10, at_once=2, workers=0, most_tokens=200)
    pace.resume(8, 800)
    pace.writing(0.0, 0)
    pace.wrote(5.0, 100, is_new=False)  # of the interrupted batch, sampled again
    assert pace.n_tokens == 800
    assert pace.tokens_per_second(5.0) == 20.0
    assert pace.left(5.0) == Left(pytest.approx(10.0, rel=0.1), is_whole=True)
    assert pace.written_share() == pytest.approx(0.8)


def test_tokens_are_counted_once() -> None:
    pace = CandidatesPace(2, at_once=2, workers=0, most_tokens=50)
    pace.writing(0.0, 0)
    assert pace.left(1.0) is None, "no token yet"
    pace.writing(1.0, 60)
    pace.wrote(1.0, 40)
    assert pace.n_tokens == 60
    pace.wrote(2.0, 20)
    assert pace.n_tokens == 60
    assert pace.left(2.0) == Left(0.0, is_whole=True)
    assert pace.written_share() == 1.0


def test_before_the_first_end_the_longest_completion_is_what_is_known() -> None:
    """Four sequences with 100 tokens each after 40 s, of 1,024 at most: 40 s to 370 s are left."""
    pace = CandidatesPace(4, at_once=4, workers=1, most_tokens=1024)
    pace.writing(0.0, 0)
    pace.writing(40.0, 400)
    found = pace.left(40.0)
    assert found is not None
    assert 120.0 < found.seconds < 370.0
    assert not found.is_whole, "an evaluation was never measured"
    pace.writing(400.0, 3680)
    ending = pace.left(400.0)
    assert ending is not None
    assert ending.seconds < 5.0, "4 tokens each are left at the most"


STAGES = ("fine-tune", "candidates", "select")


def test_a_run_ends_about_when_it_was_said() -> None:
    """Three cycles of 60 + 200 + 2 s, the first one without a fine-tune; one more at the end."""
    took = {"fine-tune": 60.0, "candidates": 200.0, "select": 2.0}
    pace = RunPace(3, STAGES, ["fine-tune"], {})
    ratios = []
    plan = [(c, s) for c in (1, 2, 3) for s in STAGES if (c, s) != (1, "fine-tune")]
    plan.append((4, "fine-tune"))
    for number, (cycle, stage) in enumerate(plan):
        seen = [s for c, s in plan[: number + 1] if c == cycle]
        later = sum(took[s] for _, s in plan[number + 1 :])
        for part in (0.25, 0.75):
            elapsed, left = part * took[stage], (1 - part) * took[stage]
            found = pace.left(cycle, seen, elapsed, Left(left, is_whole=True))
            assert found is not None
            if found.is_whole:
                ratios.append(found.seconds / (left + later))
            else:
                assert cycle == 1, "from the second cycle on, each stage has been measured"
                assert found.seconds < left + later
        pace.took(stage, took[stage])
    assert len(ratios) == 2 * 7
    assert (min(ratios), max(ratios)) == (pytest.approx(1.0), pytest.approx(1.0))


def test_a_run_that_is_resumed_knows_its_earlier_cycles() -> None:
    measured = {"fine-tune": [50.0, 70.0], "candidates": [200.0], "select": [1.0]}
    pace = RunPace(3, STAGES, [], measured)
    assert pace.left(3, ["fine-tune"], 20.0, None) == Left(40.0 + 201.0, True)
    assert RunPace(2, STAGES, [], {}).left(1, ["seeds"], 1.0, None) is None
