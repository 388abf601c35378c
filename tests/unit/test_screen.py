"""What the live lines, the log lines and ``archloop status`` say of a snapshot."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from rich.cells import cell_len
from rich.console import Console

from archloop.cli import screen as screens
from archloop.cli.screen import LiveScreen, PlainScreen
from archloop.loop.watch import Watch
from archloop.progress import Progress, RunProgress, Silent
from archloop.report import format_cycle_table, progress_lines, status_json
from archloop.report.formats import rough
from archloop.report.live import run_facts
from archloop.store.run_dir import Run, RunDir
from archloop.store.store import Store
from archloop.types import CycleStats
from made_runs import CONFIG, make_run, write_cycle


def stats(cycle: int) -> CycleStats:
    return CycleStats(
        cycle, 12, 5, 3, 1, 2, (0.4, 0.41, 0.38, 0.42, 0.451), 90, "a", "b", {}, wall_seconds=200.0
    )


RUN = RunProgress(
    2,
    3,
    elapsed=754.0,
    eta=1500.0,
    eta_is_whole=True,
    best=0.451,
    n_accepted=3,
    corpus_size=93,
    finished=(stats(1),),
)
CANDIDATES = Progress(
    "candidates",
    done=7,
    total=12,
    unit="candidates",
    n_valid=5,
    n_tokens=8123,
    tokens_per_second=46.2,
    detail="11 written",
    elapsed=200.0,
    eta=240.0,
    run=RUN,
)


def live(columns: int, *, height: int = 30, cycles: bool = True) -> LiveScreen:
    console = Console(
        file=io.StringIO(), force_terminal=True, width=columns, height=height, markup=False
    )

    def rows(finished: Sequence[CycleStats], last: int) -> object:
        return format_cycle_table(finished, CONFIG, last)

    return LiveScreen(console, rows if cycles else None)  # type: ignore[arg-type]


def lines(screen: LiveScreen, columns: int, height: int = 30) -> list[str]:
    console = Console(
        file=io.StringIO(), force_terminal=True, width=columns, height=height, color_system=None
    )
    with console.capture() as shown:
        console.print(screen)
    return shown.get().splitlines()


def test_a_run_is_two_lines_below_its_finished_cycles() -> None:
    screen = live(80)
    screen.update(CANDIDATES)
    shown = lines(screen, 80)
    row = "1 5/12 42 [19, 68] 45.1 41.2 ±3.3 3/5 1 2 90 0:03:20"
    assert " ".join(shown[2].split()) == row
    run, stage = shown[3:]
    facts = "0:12:34, ~25 min left, best 45.1 %, 3 accepted, corpus 93"
    assert (run.split()[:2], facts in run) == (["cycle", "2/3"], True)
    assert "candidates" in stage
    assert "7/12, ~4 min left, 11 written, 5 valid, 46 tokens/s" in stage
    assert "8,123" not in stage, "there is no room for it"
    screen = live(200)
    screen.update(CANDIDATES)
    assert "46 tokens/s, 8,123 tokens" in lines(screen, 200)[-1]


@pytest.mark.parametrize("columns", [20, 40, 80, 200])
def test_no_line_is_wider_than_the_terminal(columns: int) -> None:
    screen = live(columns)
    screen.update(CANDIDATES)
    shown = lines(screen, columns)
    assert max(map(cell_len, shown)) <= columns
    assert len(shown) == (5 if columns >= 80 else 3), "a table, or a line for the cycle"


def test_a_table_of_many_cycles_leaves_room_for_the_live_lines() -> None:
    screen = live(80, height=12)
    many = tuple(stats(cycle) for cycle in range(1, 23))
    screen.update(Progress("select", run=RunProgress(23, 30, 5.0, finished=many)))
    shown = lines(screen, 80, 12)
    assert len(shown) <= 12
    assert [line.split()[0] for line in shown[2:-2]] == [*map(str, range(17, 23)), "all"]
    assert shown[-3].split()[1] == "110/264", "the last row is of all cycles"


def test_nothing_of_the_stage_before_remains() -> None:
    screen = live(80)
    screen.update(Progress("graphs", done=0, total=962, unit="networks", run=RUN))
    assert "0/962" in lines(screen, 80)[-1]
    screen.update(Progress("fine-tune", detail="loading the LLM", run=RUN))
    last = lines(screen, 80)[-1]
    assert "962" not in last
    assert "left" not in last
    assert "loading the LLM" in last


def test_a_stage_that_was_never_measured_takes_nothing_off_what_is_known() -> None:
    known = RunProgress(2, 2, 90.0, eta=90.0)
    unknown = Progress("fine-tune", done=0, total=3, unit="steps", elapsed=9.0, run=known)
    assert run_facts(unknown, 50.0)[0] == ">90 s left"
    assert run_facts(replace(unknown, eta=60.0), 50.0)[0] == ">40 s left"
    measured = replace(unknown, run=replace(known, eta_is_whole=True))
    assert run_facts(measured, 50.0)[0] == "~40 s left"


def test_the_end_of_a_run_is_no_cycle() -> None:
    screen, out = live(80), io.StringIO()
    end = Progress("fine-tune", detail="loading the LLM", run=RunProgress(3, 2, 5.0))
    screen.update(end)
    assert "end of run" in lines(screen, 80)[0]
    PlainScreen(Console(file=out, width=1000)).update(end)
    assert out.getvalue() == "final fine-tune: loading the LLM; run: 0:00:05, 0 accepted\n"


def test_what_has_not_been_measured_is_more_than_what_is_said() -> None:
    assert [rough(s) for s in (2, 58, 99, 101, 250, 9000)] == [
        *("~5 s", "~60 s", "~100 s", "~2 min", "~4 min", "~2 h 30 min")
    ]
    assert rough(250, is_whole=False) == ">4 min"


HOSTILE = "\x1b]0;owned\x07\x9b2J[red]\n\rnext"


def test_hostile_text_is_shown_without_control_characters() -> None:
    screen = live(200)
    screen.update(Progress("candidates", detail=HOSTILE, run=RUN))
    shown = lines(screen, 200)
    assert "[red]" in shown[-1]
    assert not {"\x1b", "\x07", "\x9b", "\r"} & set("".join(shown))
    out = io.StringIO()
    plain = PlainScreen(Console(file=out, width=1000, markup=False))
    plain.update(Progress("candidates", detail=HOSTILE))
    plain.message(HOSTILE)
    assert "[red]" in out.getvalue()
    assert not {"\x1b", "\x07", "\x9b", "\r"} & set(out.getvalue())


def test_a_log_has_a_line_for_a_stage_and_then_from_time_to_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out, now = io.StringIO(), 0.0
    monkeypatch.setattr(screens.time, "monotonic", lambda: now)
    plain = PlainScreen(Console(file=out, width=1000, markup=False))
    for second in range(3600):
        now = float(second)
        plain.update(Progress("fine-tune", done=second, total=3600, unit="steps"))
    told = out.getvalue().splitlines()
    assert told[0] == "fine-tune: 0/3,600 steps"
    assert told[1] == "fine-tune: 15/3,600 steps, ~60 min left"
    assert 20 < len(told) < 40, "an hour is no 240 lines"
    again = Progress("select", run=RunProgress(3, 3, 9.0, finished=(stats(1), stats(2))))
    plain.update(CANDIDATES)
    plain.update(again)
    assert "cycle 1: " not in out.getvalue(), "it was committed before"
    assert "\ncycle 2: 12 candidates, 5 valid, 2 accepted, best 45.1 %\n" in out.getvalue()
    assert "\x1b" not in out.getvalue()


class Told(Silent):
    def __init__(self) -> None:
        self.all: list[Progress] = []

    def update(self, progress: Progress) -> None:
        self.all.append(progress)


def watch(root: Path, store: Store, told: Told) -> Watch:
    return Watch(told, store, RunDir(root).progress, cycles=3, learns=True, last=True)


def test_a_run_tells_its_state_with_every_snapshot(tmp_path: Path) -> None:
    told = Told()
    with Store(tmp_path / "run.db") as store:
        write_cycle(store, 1, [0.3, 0.45], 4)
        watching = watch(tmp_path, store, told)
        watching.begin_cycle(2)
        watching.corpus(93)
        watching.update(Progress("fine-tune", detail="loading"))
        watching.update(
            Progress("candidates", best=0.6, elapsed=10.0, eta=30.0, eta_is_whole=False)
        )
        before = watching.before()
    first, second = (p.run for p in told.all)
    assert first is not None
    assert second is not None
    assert (first.cycle, first.best, first.n_accepted, first.corpus_size) == (2, 0.45, 1, 93)
    assert (second.best, second.eta_is_whole) == (0.6, False)
    # 30 s of this cycle, and those of the next: the mean of 100 s in cycle 1 and 40 s in this one.
    assert second.eta == pytest.approx(30.0 + 70.0, abs=1.0)
    assert before.tokens == 10.0


def test_status_tells_of_the_stage_under_way_and_where_a_run_stopped(tmp_path: Path) -> None:
    root = make_run(tmp_path / "run", [([0.5], 4)])
    step = Progress(
        "fine-tune",
        done=3,
        total=60,
        unit="steps",
        tokens_per_second=210.0,
        detail="loss 0.812",
        elapsed=30.0,
        eta=600.0,
    )
    with Store(RunDir(root).database) as store:
        watching = watch(root, store, Told())
        watching.begin_cycle(2)
        watching.update(step)
    with RunDir(root).lock(), Run.open(root) as run:
        now, whole = progress_lines(run)
        found = status_json(run)["progress"]
    assert now == ("now: cycle 2/3 fine-tune: 3/60 steps, ~10 min left, loss 0.812, 210 tokens/s")
    assert whole.startswith("run: 0:00:0")
    assert whole.endswith("left, best 50.0 %, 1 accepted")
    assert (found["stage"], found["done"], found["run"]["cycle"]) == ("fine-tune", 3, 2)
    kept = json.loads(RunDir(root).progress.read_text("utf-8"))
    RunDir(root).progress.write_text(json.dumps(kept | {"at": time.time() - 120}), "utf-8")
    with RunDir(root).lock(), Run.open(root) as run:
        assert progress_lines(run)[0].endswith("(2 min 00 s ago)")
    with Run.open(root) as run:
        stopped = "not running; it stopped 2 min 00 s ago in cycle 2/3 fine-tune, 3/60 steps"
        assert progress_lines(run) == [stopped]


@pytest.mark.parametrize("kept", ["{", "[]", "null", '{"at": 1, "run": null, "other": 2}'])
def test_a_snapshot_that_cannot_be_read_is_none(kept: str, tmp_path: Path) -> None:
    root = make_run(tmp_path / "run", [([0.5], 4)])
    RunDir(root).progress.write_text(kept, "utf-8")
    with Run.open(root) as run:
        assert progress_lines(run) == []
        assert status_json(run)["progress"] is None


def test_a_snapshot_that_cannot_be_written_ends_nothing(tmp_path: Path) -> None:
    told, file = Told(), RunDir(tmp_path).progress
    file.mkdir()
    (file / "inside").touch()
    with Store(tmp_path / "run.db") as store:
        watching = watch(tmp_path, store, told)
        watching.begin_cycle(1)
        watching.update(Progress("seeds"))
        watching.close()
    assert len(told.all) == 1
