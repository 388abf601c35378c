from __future__ import annotations

import pytest

from archloop.config import NoveltyConfig, SelectionConfig
from archloop.novelty import NoveltyJudge
from archloop.search.selection import Decision, ValidCandidate, select, threshold_of
from archloop.types import Candidate, Outcome

ACCEPTED, BELOW, DUPLICATE = (
    Outcome.ACCEPTED,
    Outcome.BELOW_THRESHOLD,
    Outcome.NEAR_DUPLICATE,
)


def text(word: str) -> str:
    """Code that shares no shingle with that of another word."""
    return "\n".join(f"{word}{i} = layer({word}, {i}, width={i * 8})" for i in range(20))


def started(*seeds: str) -> NoveltyJudge:
    judge = NoveltyJudge(NoveltyConfig())
    for seed in seeds:
        judge.add_known(seed, text(seed))
    judge.start_cycle()
    return judge


def brief(decisions: list[Decision]) -> list[tuple[str, Outcome, int]]:
    return [(d.id, d.outcome, d.rejection_count) for d in decisions]


def test_ladder_and_rejection_count() -> None:
    candidates = [
        ValidCandidate("0", text("seed"), 0.9),  # a copy of a seed, however accurate
        ValidCandidate("1", text("a"), 0.39),
        ValidCandidate("2", text("a"), 0.41),  # what was not accepted does not count
        ValidCandidate("3", text("a"), 0.41),
        ValidCandidate("4", text("a"), 0.10),  # near-duplicate comes before the threshold
        ValidCandidate("5", text("b"), 0.40),  # reaching the threshold is enough
        ValidCandidate("6", text("c"), 0.50),
    ]
    decisions = select(candidates, started("seed"), 0.40)
    assert brief(decisions) == [
        ("0", DUPLICATE, 0),
        ("1", BELOW, 1),
        ("2", ACCEPTED, 1),
        ("3", DUPLICATE, 0),
        ("4", DUPLICATE, 1),
        ("5", ACCEPTED, 2),
        ("6", ACCEPTED, 0),
    ]
    assert decisions[0].scores.near_dup_text_train
    assert not decisions[0].scores.near_dup_text_gen
    assert decisions[3].scores.near_dup_text_gen
    assert not decisions[3].scores.near_dup_text_train
    assert decisions[3].scores.nearest == "2"


def test_rejections_are_carried_over_from_the_last_cycle() -> None:
    candidate = ValidCandidate("0", text("a"), 0.5)
    decisions = select([candidate], started(), 0.40, rejection_count=7)
    assert brief(decisions) == [("0", ACCEPTED, 7)]


def test_without_the_novelty_filter_scores_are_kept() -> None:
    candidates = [
        ValidCandidate("0", text("a"), 0.5),
        ValidCandidate("1", text("a"), 0.5),
        ValidCandidate("2", text("a"), 0.1),
    ]
    decisions = select(candidates, started(), 0.40, reject_near_duplicates=False)
    assert brief(decisions) == [("0", ACCEPTED, 0), ("1", ACCEPTED, 0), ("2", BELOW, 0)]
    assert [d.scores.nn_jaccard_gen for d in decisions] == [0.0, 1.0, 1.0]
    assert decisions[1].scores.is_near_duplicate


def test_without_the_threshold_every_novel_one_is_accepted() -> None:
    candidates = [ValidCandidate("0", text("a"), 0.0), ValidCandidate("1", text("a"), 0.9)]
    decisions = select(candidates, started(), 0.0)
    assert [d.outcome for d in decisions] == [ACCEPTED, DUPLICATE]


def test_next_cycle_compares_with_the_corpus() -> None:
    judge = started()
    select([ValidCandidate("c01-0000", text("a"), 0.5)], judge, 0.40)
    judge.start_cycle()
    (decision,) = select([ValidCandidate("c02-0000", text("a"), 0.5)], judge, 0.40)
    assert decision.outcome is DUPLICATE
    assert decision.scores.near_dup_text_train
    assert not decision.scores.near_dup_text_gen


@pytest.mark.parametrize("size", [0, 1])
def test_few_candidates(size: int) -> None:
    assert len(select([ValidCandidate("0", text("a"), 0.5)][:size], started(), 0.40)) == size


@pytest.mark.parametrize(
    ("limit", "ends"),
    [
        (None, [ACCEPTED, ACCEPTED, ACCEPTED, BELOW]),
        (30.0, [ACCEPTED, BELOW, ACCEPTED, BELOW]),
    ],
)
def test_who_trained_for_too_long_is_not_accepted(limit: float | None, ends: list[Outcome]) -> None:
    candidates = [
        ValidCandidate("0", text("a"), 0.5, train_seconds=30.0),  # as long as allowed
        ValidCandidate("1", text("b"), 0.9, train_seconds=30.1),
        ValidCandidate("2", text("b"), 0.5, train_seconds=5.0),  # no near-duplicate of the last
        ValidCandidate("3", text("c"), 0.1, train_seconds=5.0),
    ]
    if limit is None:
        candidates[2] = candidates[2]._replace(code=text("d"))
    decisions = select(candidates, started(), 0.40, max_train_seconds=limit)
    assert [d.outcome for d in decisions] == ends


@pytest.mark.parametrize(
    ("percentile", "window", "wanted"),
    [
        (None, 3, 0.40),
        (50.0, 1, 0.55),
        (50.0, 2, 0.50),
        (50.0, 9, 0.40),  # 0.35 by rank: the floor holds
        (75.0, 1, 0.575),  # between two ranks
    ],
)
def test_percentile_raises_the_threshold_above_the_floor(
    percentile: float | None, window: int, wanted: float
) -> None:
    config = SelectionConfig(percentile=percentile, window=window)
    cycles = [[0.1] * 5, [0.30, 0.45], [0.50, 0.60, 0.55]]
    assert threshold_of(config, cycles) == pytest.approx(wanted)


@pytest.mark.parametrize(("accuracies", "wanted"), [([], 0.40), ([0.7], 0.7), ([0.2], 0.40)])
def test_a_cycle_with_one_valid_candidate_or_none(accuracies: list[float], wanted: float) -> None:
    assert threshold_of(SelectionConfig(percentile=50.0), [accuracies]) == wanted


def test_of_a_row_accuracy_source_and_seconds_count() -> None:
    row = Candidate(
        "c01-0000", 1, 0, Outcome.VALID, code="x", first_epoch_accuracy=0.5, train_seconds=7.0
    )
    assert ValidCandidate.of(row) == ("c01-0000", "x", 0.5, None, 7.0)
