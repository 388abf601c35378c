from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from archloop.errors import ArchloopError, UsageError
from archloop.store.store import Store, candidate_id
from archloop.types import (
    Candidate,
    Completion,
    CycleStats,
    Decision,
    GraphSketch,
    NoveltyScores,
    Origin,
    Outcome,
    Request,
    Span,
    Verdict,
)

VALID = Verdict(Outcome.VALID, n_params=1200, first_epoch_accuracy=0.1 + 0.2, train_seconds=3.5)
FAILED = Verdict(Outcome.TRAIN_ERROR, error="RuntimeError: shape '[4]' is invalid — 3 ≠ 4")


def make_completion(cycle: int, index: int, text: str = "```python\npass\n```") -> Completion:
    return Completion(cycle, index, text, n_tokens=7, finish_reason="stop")


def make_request(cycle: int, index: int) -> Request:
    prompt = ({"role": "system", "content": "é"}, {"role": "user", "content": f"{index} \ud800"})
    origin = Origin("feedback", "abc123", (f"c00-{index:04d}",))
    return Request(cycle, index, 2**40 + index, "cifar10", prompt, 0.1 + 0.2, origin)  # type: ignore[arg-type]


def add_completions(store: Store, completions: list[Completion]) -> None:
    """Ask for completions, and have them answered."""
    store.add_requests([make_request(c.cycle, c.index) for c in completions])
    store.add_completions(completions)


def judge(store: Store, cycle: int, index: int, verdict: Verdict = VALID) -> None:
    store.add_verdict(
        cycle,
        index,
        verdict=verdict,
        code=f"x = {index}",
        code_sha256="ab" * 32,
        isolation="confined",
        protocol="0123456789ab",
        training="contract",
    )


def make_stats(cycle: int, outcomes: dict[str, int]) -> CycleStats:
    n_valid = sum(n for name, n in outcomes.items() if Outcome(name).is_valid)
    return CycleStats(
        cycle=cycle,
        n_gen=sum(outcomes.values()),
        n_valid=n_valid,
        n_at_floor=outcomes.get("accepted", 0),
        n_near_duplicate=outcomes.get("near_duplicate", 0),
        n_accepted=outcomes.get("accepted", 0),
        accuracies=(0.1 + 0.2,) * n_valid,
        corpus_size=1698,
        adapter="adapters/cycle_01",
        corpus_sha256="cd" * 32,
        outcomes=outcomes,
        wall_seconds=12.25,
        n_tokens=99,
    )


def accept(candidate: Candidate) -> Decision:
    scores = NoveltyScores(0.5, False, 0.0, False, "lemur-alt-1", nn_graph_train=0.25)
    return Decision(candidate.id, Outcome.ACCEPTED, scores, rejection_count=2)


def refuse(candidate: Candidate) -> Decision:
    scores = NoveltyScores(0.95, True, 0.0, False, "x", rejected_by=("lexical",))
    return Decision(candidate.id, Outcome.NEAR_DUPLICATE, scores, 3, ("lexical",))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "run.db")


def test_values_come_with_the_completions_they_belong_to(tmp_path: Path) -> None:
    with Store(tmp_path / "run.db") as store:
        first = Completion(1, 0, "a", 5, "stop")
        store.add_requests([make_request(1, 0)])
        store.add_completions([first], {"spent": 5})
        assert store.get_meta("spent") == 5
        with pytest.raises(ArchloopError):
            store.add_completions([replace(first, text="b")], {"spent": 10})
        assert store.get_meta("spent") == 5


def test_meta_keeps_any_json_value_and_replaces_it(store: Store) -> None:
    store.set_meta("sessions", [{"torch": "2.13", "cores": 2}])
    store.set_meta("sessions", {"a": None})
    assert store.get_meta("sessions") == {"a": None}
    assert store.get_meta("absent", 5) == 5
    with pytest.raises(ValueError, match="schema"):
        store.set_meta("schema", 9)


def test_rows_come_back_as_they_went_in(tmp_path: Path) -> None:
    with Store(tmp_path / "run.db") as store:
        add_completions(store, [make_completion(1, i, f"answer {i} é\n") for i in (2, 0, 1)])
        judge(store, 1, 2, FAILED)
        judge(store, 1, 0)
    with Store(tmp_path / "run.db", read_only=True) as store:
        assert [c.index for c in store.completions(1)] == [0, 1, 2]
        assert store.completions(1)[2] == make_completion(1, 2, "answer 2 é\n")
        assert store.pending(1) == [make_completion(1, 1, "answer 1 é\n")]
        first, second = store.candidates()
        assert first == Candidate(
            id="c01-0000",
            cycle=1,
            index=0,
            outcome=Outcome.VALID,
            code="x = 0",
            code_sha256="ab" * 32,
            n_params=1200,
            first_epoch_accuracy=0.1 + 0.2,
            train_seconds=3.5,
            isolation="confined",
            protocol="0123456789ab",
            training="contract",
        )
        assert second.outcome is Outcome.TRAIN_ERROR
        assert second.error == FAILED.error
        assert store.candidates(2) == []


def test_a_graph_comes_back_with_its_outputs_or_without(store: Store) -> None:
    outputs = (0.1 + 0.2, -1.5, 1e-9, 0.0, 3.0, 4.0, 5.0, -6.0)
    graphs = [GraphSketch("1f", bytes(8), outputs), GraphSketch("2f", bytes(16)), None]
    add_completions(store, [make_completion(1, i, "t") for i in range(3)])
    for index, graph in enumerate(graphs):
        judge(store, 1, index, replace(VALID, graph=graph))
    found = store.candidates()
    assert [c.graph for c in found] == graphs
    assert not any(name.startswith("output") for c in found for name in c.measures)


def test_the_same_completions_again_are_passed_over_and_different_ones_refused(
    store: Store,
) -> None:
    add_completions(store, [make_completion(1, 0)])
    add_completions(store, [make_completion(1, 0), make_completion(1, 1), make_completion(1, 1)])
    assert len(store.completions(1)) == 2
    with pytest.raises(ArchloopError, match="c01-0001"):
        store.add_completions([make_completion(1, 2), make_completion(1, 1, "other")])
    assert len(store.completions(1)) == 2, "all or none"


def test_a_verdict_is_given_once_and_only_to_a_completion(store: Store) -> None:
    add_completions(store, [make_completion(1, 0)])
    judge(store, 1, 0)
    with pytest.raises(ArchloopError, match="c01-0000 has a verdict"):
        judge(store, 1, 0, FAILED)
    assert store.candidates(1)[0].outcome is Outcome.VALID
    with pytest.raises(ArchloopError, match="c01-0001 .*never generated"):
        judge(store, 1, 1)


def test_requests_come_back_and_do_not_change(store: Store) -> None:
    asked = [make_request(1, i) for i in (1, 0)]
    store.add_requests(asked)
    store.add_requests([*asked, make_request(1, 0)])
    assert store.requests(1) == asked[::-1]
    with pytest.raises(ArchloopError, match="c01-0001: another request"):
        store.add_requests([make_request(1, 2), replace(asked[0], temperature=0.5)])
    assert store.requests(1) == asked[::-1], "all or none"
    with pytest.raises(ArchloopError, match="c01-0003: .*requested"):
        store.add_completions([make_completion(1, 3)])


def test_commit_writes_decisions_and_statistics(store: Store) -> None:
    add_completions(store, [make_completion(1, i) for i in range(3)])
    for index, verdict in enumerate(
        (VALID, FAILED, replace(VALID, graph=GraphSketch("ab", b"", profile={"macs": 1e12})))
    ):
        judge(store, 1, index, verdict)
    first, failed, third = store.candidates(1)
    decisions = [accept(first), refuse(third)]
    outcomes = {"accepted": 1, "near_duplicate": 1, "train_error": 1, "timeout": 0}
    stats = replace(
        make_stats(1, outcomes), threshold=0.1 + 0.2, temperature=0.7, decided={"a": [1, None]}
    )
    store.commit_cycle(stats, decisions)
    assert store.cycles() == [stats]
    assert store.decisions() == store.decisions(1) == decisions
    assert store.decisions(2) == []
    scores = decisions[0].scores.for_row()
    accepted = replace(first, outcome=Outcome.ACCEPTED, rejection_count=2, **scores)
    assert store.accepted() == [accepted]
    assert store.candidates(1)[1] == failed
    last = store.candidates(1)[2]
    assert (last.outcome, last.measures) == (Outcome.NEAR_DUPLICATE, {"macs": 1e12})
    assert store.outcome_counts(1) == store.outcome_counts()
    assert {o.value: n for o, n in store.outcome_counts().items()} == {
        name: n for name, n in outcomes.items() if n
    }
    assert store.outcome_counts(2).total() == store.n_completions(2) == 0
    assert (store.n_accepted(), store.n_completions(1)) == (1, 3)


def test_everything_valid_is_decided_once_and_nothing_else(store: Store) -> None:
    add_completions(store, [make_completion(1, i) for i in range(2)])
    judge(store, 1, 0)
    judge(store, 1, 1)
    one, two = (accept(c) for c in store.candidates(1))
    stats = make_stats(1, {"accepted": 2})
    for wrong, why in (
        ([one], "nothing is decided about c01-0001"),
        ([one, two, two], "decided twice"),
        ([one, replace(two, id="c02-0001")], "c02-0001 is not valid"),
        ([one, replace(two, outcome=Outcome.VALID)], "not a decision"),
    ):
        with pytest.raises(ArchloopError, match=why):
            store.commit_cycle(stats, wrong)
        assert store.decisions() == []
    store.commit_cycle(stats, [two, one])
    assert store.decisions() == [one, two]


def test_numbers_of_a_network_that_is_not_valid_are_kept(store: Store) -> None:
    add_completions(store, [make_completion(101, 12345)])
    judge(store, 101, 12345, Verdict(Outcome.OVER_BUDGET, n_params=10**9))
    (found,) = store.candidates()
    assert (found.id, found.n_params, found.train_seconds) == ("c101-12345", 10**9, None)
    assert isinstance(found.n_params, int)


def test_a_committed_cycle_does_not_change(store: Store) -> None:
    add_completions(store, [make_completion(1, 0)])
    judge(store, 1, 0)
    stats = make_stats(1, {"accepted": 1})
    store.commit_cycle(stats, [accept(store.candidates(1)[0])])
    for change in (
        lambda: store.commit_cycle(stats, []),
        lambda: store.add_requests([make_request(1, 1)]),
        lambda: store.add_completions([make_completion(1, 1)]),
        lambda: judge(store, 1, 1),
    ):
        with pytest.raises(ArchloopError, match="cycle 1 is committed"):
            change()
    add_completions(store, [make_completion(1, 0)])  # nothing new


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"n_gen": 3}, "3 completions"),
        ({"n_valid": 2}, "2 valid"),
        ({"n_accepted": 0}, "0 accepted"),
        ({"accuracies": ()}, "0 accuracies"),
        ({"outcomes": {"accepted": 2}}, "outcomes"),
    ],
)
def test_statistics_that_differ_from_the_rows_are_refused(
    store: Store, changes: dict[str, object], what: str
) -> None:
    add_completions(store, [make_completion(1, i) for i in range(2)])
    judge(store, 1, 0)
    judge(store, 1, 1, FAILED)
    stats = replace(make_stats(1, {"accepted": 1, "train_error": 1}), **changes)  # type: ignore[arg-type]
    with pytest.raises(ArchloopError, match=what):
        store.commit_cycle(stats, [accept(store.candidates(1)[0])])
    assert store.cycles() == []
    assert store.candidates(1)[0].outcome is Outcome.VALID, "nothing of it was written"


def test_a_pending_completion_or_a_failed_candidate_stops_the_commit(store: Store) -> None:
    add_completions(store, [make_completion(1, i) for i in range(2)])
    judge(store, 1, 0, FAILED)
    failed = store.candidates(1)[0]
    with pytest.raises(ArchloopError, match="2 candidates, the rows 1"):
        store.commit_cycle(make_stats(1, {"train_error": 2}), [])
    judge(store, 1, 1, FAILED)
    with pytest.raises(ArchloopError, match="c01-0000 is not valid"):
        store.commit_cycle(make_stats(1, {"train_error": 1, "accepted": 1}), [accept(failed)])


def test_ids_are_wide_enough_to_sort() -> None:
    assert candidate_id(1, 23) == "c01-0023"
    assert candidate_id(22, 12345) == "c22-12345"


WRITER = """
import sys
from archloop.store.store import Store
sys.path.insert(0, {here!r})
from test_store import accept, add_completions, judge, make_completion, make_stats
store = Store({path!r})
cycle = len(store.cycles())
while True:
    cycle += 1
    add_completions(store, [make_completion(cycle, i) for i in range(20)])
    print("completions", cycle, flush=True)
    for completion in store.pending(cycle):
        judge(store, cycle, completion.index)
        print("verdict", cycle, completion.index, flush=True)
    chosen = [accept(c) for c in store.candidates(cycle)]
    store.commit_cycle(make_stats(cycle, {{"accepted": 20}}), chosen)
    print("cycle", cycle, flush=True)
"""


def test_nothing_reported_as_written_is_lost_to_sigkill(tmp_path: Path) -> None:
    path = tmp_path / "run.db"
    script = WRITER.format(here=str(Path(__file__).parent), path=str(path))
    said: list[list[str]] = []
    for lines in (1, 8, 27, 50):  # in the midst of verdicts, at a commit, in a later cycle
        writer = subprocess.Popen(
            [sys.executable, "-c", script],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert writer.stdout is not None
        said += [writer.stdout.readline().split() for _ in range(lines)]
        writer.send_signal(signal.SIGKILL)
        rest, errors = writer.communicate()
        assert writer.returncode == -signal.SIGKILL, errors
        said += [line.split() for line in rest.splitlines(keepends=True) if line.endswith("\n")]
        _check_whole(path, said)
        with Store(path):  # the next session starts cleanly
            pass
        _finish_cycle(path)
    assert sum(words[0] == "verdict" for words in said) > 20


def _finish_cycle(path: Path) -> None:
    """What resuming does: the missing verdicts of the last cycle, then its commit."""
    with Store(path) as store:
        cycle = len(store.cycles()) + 1
        for completion in store.pending(cycle):
            judge(store, cycle, completion.index)
        if store.candidates(cycle):
            chosen = [accept(c) for c in store.candidates(cycle)]
            store.commit_cycle(make_stats(cycle, {"accepted": 20}), chosen)


def _check_whole(path: Path, said: list[list[str]]) -> None:
    with sqlite3.connect(path) as db:
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert db.execute("PRAGMA foreign_key_check").fetchall() == []
    with Store(path, read_only=True) as store:
        committed = {stats.cycle for stats in store.cycles()}
        judged = {(c.cycle, c.index) for c in store.candidates()}
        for words in said:
            cycle = int(words[1])
            assert len(store.completions(cycle)) == 20
            if words[0] == "verdict":
                assert (cycle, int(words[2])) in judged
            if words[0] == "cycle":
                assert cycle in committed
        for candidate in store.candidates():
            whole = candidate.cycle in committed
            assert (candidate.outcome is Outcome.ACCEPTED) == whole, "outcomes without statistics"


def test_others_read_while_one_writes(tmp_path: Path) -> None:
    path = tmp_path / "run.db"
    script = WRITER.format(here=str(Path(__file__).parent), path=str(path))
    writer = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    try:
        assert writer.stdout is not None
        writer.stdout.readline()
        seen = []
        with Store(path, read_only=True) as reader:
            for _ in range(5):
                seen.append(len(reader.candidates()))
                for _ in range(10):
                    writer.stdout.readline()
        assert seen == sorted(seen)
        assert len(set(seen)) > 2
    finally:
        writer.kill()
        writer.communicate()


def test_threads_may_give_verdicts_at_the_same_time(store: Store) -> None:
    add_completions(store, [make_completion(1, i) for i in range(40)])
    faults: list[BaseException] = []

    def work(start: int) -> None:
        try:
            for index in range(start, 40, 4):
                judge(store, 1, index)
                store.pending(1)
        except BaseException as error:  # noqa: BLE001 - a thread's fault is shown by the test
            faults.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults
    assert store.pending(1) == []


def test_another_schema_is_refused_in_one_line_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "run.db"
    Store(path).close()
    with sqlite3.connect(path) as db:
        db.execute("UPDATE meta SET value = '99' WHERE key = 'schema'")
        db.execute("DROP TABLE cycles")
    with pytest.raises(UsageError, match="schema 99") as caught:
        Store(path)
    assert "\n" not in str(caught.value)
    with sqlite3.connect(path) as db:
        assert not db.execute("SELECT 1 FROM sqlite_master WHERE name = 'cycles'").fetchall()


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.db"
    content = b"not a database, but longer than its header " * 40
    path.write_bytes(content)
    with pytest.raises(UsageError, match="as a run database: file is not a database"):
        Store(path)
    assert path.read_bytes() == content


def test_another_programs_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.db"
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE notes (text)")
    with pytest.raises(UsageError, match="as a run database: no such table"):
        Store(path)


def test_a_full_disk_is_one_clear_line(store: Store) -> None:
    with store._read() as db:
        db.exec_driver_sql("PRAGMA max_page_count = 20")
    with pytest.raises(UsageError, match=r"run\.db: .*database or disk is full"):
        store.set_meta("key", "x" * 100_000)
    store.set_meta("key", "x")


def test_damaged_pages_are_one_clear_line(tmp_path: Path) -> None:
    path = tmp_path / "run.db"
    with Store(path) as store:
        add_completions(store, [make_completion(1, i, "x" * 500) for i in range(100)])
    content = bytearray(path.read_bytes())
    content[len(content) // 2 :] = b"x" * (len(content) - len(content) // 2)
    path.write_bytes(content)
    with (
        Store(path, read_only=True) as store,
        pytest.raises(UsageError, match=r"run\.db: .*malformed"),
    ):
        store.completions(1)


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("candidates.flags", "{"),
        ("candidates.flags", "5"),
        ("measures.value", "many"),
        ("requests.origin", "5"),
        ("requests.temperature", "hot"),
        ("completions.n_tokens", "few"),
        ("decisions.outcome", "perhaps"),
        ("decisions.nn_jaccard_gen", "near"),
        ("cycles.accuracies", "5"),
        ("cycles.n_valid", "all"),
        ("meta.value", "{"),
    ],
)
def test_a_damaged_row_is_one_clear_line(tmp_path: Path, column: str, value: str) -> None:
    path = tmp_path / "run.db"
    with Store(path) as store:
        add_completions(store, [make_completion(1, 0)])
        judge(store, 1, 0)
        store.commit_cycle(make_stats(1, {"accepted": 1}), [accept(store.candidates()[0])])
    table, name = column.split(".")
    with sqlite3.connect(path) as db:
        db.execute(f"UPDATE {table} SET {name} = ?", (value,))  # noqa: S608
    with pytest.raises(UsageError, match=r"run\.db: ") as fault, Store(path) as store:
        store.candidates(), store.completions(1), store.cycles(), store.requests(1)
        store.decisions()
    assert "\n" not in str(fault.value)


def test_reading_needs_a_database_and_changes_none(tmp_path: Path) -> None:
    folder = tmp_path / "a run? 100%"
    folder.mkdir()
    with pytest.raises(UsageError, match="no such run database"):
        Store(folder / "run.db", read_only=True)
    assert list(folder.iterdir()) == []
    Store(folder / "run.db").close()
    with (
        Store(folder / "run.db", read_only=True) as store,
        pytest.raises(Exception, match="readonly"),
    ):
        store.set_meta("key", 1)


def test_commits_are_synced_to_disk(store: Store) -> None:
    with store._write() as db:
        assert db.exec_driver_sql("PRAGMA synchronous").scalar() == 2
        assert db.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"


def test_a_part_of_ten_thousand_rows_takes_a_part_of_the_work(store: Store) -> None:
    code = "class Net(nn.Module):\n    pass\n" * 60
    for cycle in range(1, 51):
        add_completions(store, [make_completion(cycle, i, code) for i in range(200)])
    keys = [(c, i) for c in range(1, 51) for i in range(200) if c < 50 or i < 150]
    accepted = "'accepted', '[]', 0, 0.5, 0, 0.5, 0, 0.5, 0.5, '[]'"
    with store._write() as db:
        db.exec_driver_sql(
            'INSERT INTO candidates (cycle, "index", outcome, code, flags) '
            "VALUES (?, ?, 'valid', ?, '[]')",
            [(*key, code) for key in keys],
        )
        db.exec_driver_sql("INSERT INTO measures VALUES (?, ?, 'first_epoch_accuracy', 0.4)", keys)
        db.exec_driver_sql(
            'INSERT INTO decisions (cycle, "index", outcome, rejected_by, rejection_count, '
            "nn_jaccard_train, near_dup_text_train, nn_jaccard_gen, near_dup_text_gen, "
            "nn_normalized_train, nn_normalized_gen, near_duplicate_kinds) "
            f"VALUES (?, ?, {accepted})",
            [key for key in keys if key[1] % 20 == 0],
        )
    whole = _work(store, store.candidates, 9950)
    assert _work(store, lambda: store.candidates(7), 200) < whole / 20
    assert _work(store, store.accepted, 498) < whole / 5
    assert _work(store, lambda: store.pending(50), 50) < whole / 20


def _work(store: Store, read: Callable[[], list[Any]], count: int) -> int:
    """Hundreds of instructions of SQLite's machine that a read of ``count`` rows takes.

    No seconds, which another process takes too.
    """
    steps = 0

    def step() -> int:
        nonlocal steps
        steps += 1
        return 0

    with store._engine.connect() as db:
        driver = db.connection.driver_connection
        assert isinstance(driver, sqlite3.Connection)
    driver.set_progress_handler(step, 100)
    try:
        assert len(read()) == count
    finally:
        driver.set_progress_handler(None, 0)
    assert steps, "another connection was read from"
    return steps


def test_spans_are_kept_in_order(store: Store) -> None:
    spans = [Span(1, "fine-tune", None, 1.5, 2.5), Span(1, "evaluate", 3, 0.5, 9.0)]
    for span in spans:
        store.add_span(span)
    assert store.spans() == spans
