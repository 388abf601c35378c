from __future__ import annotations

import csv
import io
import json
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from archloop.config import config_digest
from archloop.corpus.pairs import make_pair, write_pairs
from archloop.errors import UsageError
from archloop.report import format_cycle_table, status_json, write_report
from archloop.report import reported as reported_module
from archloop.report.formats import duration, mean
from archloop.report.summary import CycleSummary, Mean, Proportion, RunSummary
from archloop.search.prompts import CIFAR10, PromptTemplate
from archloop.store.run_dir import PINNED, TASK_SIZE, Run, RunDir
from archloop.store.store import Store
from archloop.types import CycleStats, Outcome, Verdict
from made_runs import CONFIG, add_texts, make_run, write_cycle


def paper_like_first_cycle() -> tuple[list[float], int]:
    """22 valid of 50, as in the paper's cycle 1."""
    chance = random.Random(1)
    return [chance.uniform(0.2, 0.36) for _ in range(21)] + [0.4778], 50


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "first", [paper_like_first_cycle(), ([0.5], 4), ([], 3)])


def read_csv(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(path.read_text("utf-8"))))


def test_the_papers_first_cycle_gives_the_papers_rate_and_interval(run: Path) -> None:
    with Run.open(run) as opened:
        first = CycleSummary.of(opened.cycles()[0])
    assert first.valid.rate == 0.44
    # Wilson 1927 with z = 1.96, worked out by hand: (0.44 + 0.0384146 -+ 0.1429...) / 1.0768...
    assert first.valid.interval == pytest.approx((0.31160, 0.57694), abs=1e-4)
    assert first.best == 0.4778
    assert first.at_floor == Proportion(1, 22)


def test_an_empty_sample_has_no_figures() -> None:
    assert Proportion(0, 0).rate is None
    assert Proportion(0, 0).interval is None
    assert Mean.of([]) == Mean(0, None, None)
    assert Mean.of([0.5]) == Mean(1, 0.5, None)
    assert RunSummary.of([]).wall_seconds is None


def test_totals_average_the_cycles_and_pool_the_candidates(run: Path) -> None:
    with Run.open(run) as opened:
        stats = opened.cycles()
    whole = RunSummary.of(stats)
    assert whole.valid == Proportion(23, 57)
    assert whole.valid_rate.value == pytest.approx((0.44 + 0.25 + 0.0) / 3)
    assert whole.valid_rate.n == 3
    assert whole.accuracy.n == 23
    assert whole.accuracy.value == pytest.approx(sum(stats[0].accuracies + (0.5,)) / 23)
    assert (whole.n_accepted, whole.n_tokens, whole.wall_seconds) == (2, 570, 300.0)
    assert list(whole.outcomes) == [
        Outcome.SYNTAX_ERROR,
        Outcome.BELOW_THRESHOLD,
        Outcome.ACCEPTED,
    ]


def test_a_part_not_measured_makes_the_total_unknown(run: Path) -> None:
    with Run.open(run) as opened:
        stats = opened.cycles()
    assert RunSummary.of([stats[0], replace(stats[1], n_tokens=None)]).n_tokens is None


def test_without_its_seeds_nothing_is_said_of_memorisation(run: Path, tmp_path: Path) -> None:
    RunDir(run).corpus(1).unlink()
    files = {path.name: path.read_text("utf-8") for path in write_report([run], tmp_path / "out")}
    assert "Not known: the seeds, `corpus/cycle_01.jsonl`" in files["report.md"]
    assert "| memorised |" not in files["report.md"]
    assert files["diversity.csv"] == ""


def test_without_the_graphs_of_its_seeds_nothing_is_said_of_new_motifs(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ARCHLOOP_CACHE", str(tmp_path / "cache"))
    seed = make_pair(PromptTemplate().render(CIFAR10, 500_000), "x = 1", {})
    write_pairs(RunDir(run).corpus(1), [seed])
    with Store(RunDir(run).database) as store:
        store.set_meta(TASK_SIZE, {"shape": [3, 32, 32], "classes": 10})
    text = write_report([run], tmp_path / "out")[0].read_text("utf-8")
    assert "| all | 2 | 0.000 | 0/2 | 1/2 | - |" in text
    assert "New motifs are not known" in text


def test_a_cycle_that_is_committed_meanwhile_is_left_out(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Busy(Run):
        """Goes on whenever its cycles have been read."""

        def cycles(self) -> list[CycleStats]:
            found = super().cycles()
            with Store(RunDir(run).database) as store:
                write_cycle(store, len(found) + 1, [0.5], 2)
            return found

    monkeypatch.setattr(reported_module, "Run", Busy)
    files = write_report([run], tmp_path / "out")
    assert "| all | 2 |" in files[0].read_text("utf-8")
    assert [row["cycle"] for row in read_csv(files[4])] == ["1", "2", "3", "all"]


@pytest.mark.parametrize(
    ("error", "cell"),
    [
        *((f"{c}A(1)", f"'{c}A(1)") for c in "=+-@"),
        ("\tA(1)", " A(1)"),
        ("\r=A(1)", " =A(1)"),
        ("a\r=1", "a =1"),
    ],
)
def test_no_text_is_a_formula_in_a_spreadsheet(
    run: Path, tmp_path: Path, error: str, cell: str
) -> None:
    with Store(RunDir(run).database) as store:
        add_texts(store, 4, ["t"])
        store.add_verdict(
            4,
            0,
            verdict=Verdict(Outcome.IMPORT_ERROR, error),
            code="x",
            code_sha256=None,
            isolation=None,
            protocol=None,
            training=None,
        )
    rows = list(csv.reader(write_report([run], tmp_path / "out")[9].open(newline="")))
    assert rows[-1][rows[0].index("error")] == cell


def test_a_configuration_keeps_its_digest_when_later_versions_have_more_keys(
    run: Path, tmp_path: Path
) -> None:
    file = RunDir(run).config
    stored = json.loads(file.read_text())
    del stored["finetune"]["merge_batches"]
    file.write_text(json.dumps(stored))
    report, _, totals, *_ = write_report([run], tmp_path / "out")
    assert read_csv(totals)[0]["configuration"] == config_digest(stored) != config_digest(CONFIG)
    assert config_digest(stored) in report.read_text()
    with Run.open(run) as opened:
        assert status_json(opened)["config"] == config_digest(stored)


def test_report_files_hold_the_figures(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out" / "deep"
    files = write_report([run], out)
    names = ["cycles", "totals", "outcomes", "diversity", "structures", "classes", "niches"]
    names += ["motifs", "candidates"]
    names = ["report.md", *(f"{name}.csv" for name in names), "cycles-1.svg"]
    assert [path.name for path in files] == names
    assert sorted(path.name for path in out.iterdir()) == sorted(names), "nothing half-written"
    text = files[0].read_text("utf-8")
    assert "| 1 | 0.2 | 44.0 [31.2, 57.7] (22/50) | 47.78 |" in text
    assert "4.5 [0.8, 21.8] (1/22)" in text
    assert "| cycle | accepted | distance | memorised | distinct graphs | new motifs |" in text
    assert config_digest(CONFIG) in text
    assert "abc123abc123" in text
    assert "deepseek-ai/deepseek-coder-7b-instruct-v1.5" in text
    assert "| c02-0000, 50.00 %, 4,321 parameters, accepted |" in text
    assert "| syntax_error | 28 | 3 | 3 | 34 |" in text
    assert "| 18 | 59.1 | 63.98 | 50.99 | 96.81 | 38 | 2,025 |" in text, "the paper's own row"
    assert "torch 2." in text
    cycles = read_csv(files[1])
    assert [row["valid_k"] + "/" + row["valid_n"] for row in cycles] == ["22/50", "1/4", "0/3"]
    assert float(cycles[0]["valid_low"]) == pytest.approx(0.31160, abs=1e-4)
    assert cycles[1]["accuracy_low"] == "", "one value has no interval"
    assert cycles[2]["best_accuracy"] == ""
    totals = read_csv(files[2])[0]
    for row, share in ((cycles[0], "1/22"), (totals, "2/23")):
        assert row["at_floor_k"] + "/" + row["at_floor_n"] == share
        assert row["min_accuracy"] == "0.4"
    assert float(totals["accuracy_n"]) == 23
    assert sum(int(row["syntax_error"]) for row in read_csv(files[3])) == 34
    assert len(read_csv(files[9])) == 57
    assert read_csv(files[9])[56]["error"] == "x | y z"


def test_every_markdown_row_has_as_many_cells_as_its_heading(run: Path, tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"task": CONFIG.task.model_copy(update={"name": "a|b"})})
    odd = make_run(tmp_path / "odd", [([0.41], 2)], config)
    text = write_report([run, odd], tmp_path / "out")[0].read_text("utf-8")
    width = 0
    for line in text.splitlines():
        cells = line.replace("\\|", "").count("|")
        width = 0 if not cells else width or cells
        assert cells == width, line


def test_runs_of_one_name_are_told_apart(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / side / "run", [([0.41], 2)]) for side in ("a", "b")]
    rows = read_csv(write_report(runs, tmp_path / "out")[2])
    assert [row["run"] for row in rows] == [str(path) for path in runs]
    rows = read_csv(write_report(runs[:1], tmp_path / "out")[2])
    assert [row["run"] for row in rows] == ["run"]


def test_a_run_without_a_committed_cycle_is_reported_as_such(tmp_path: Path) -> None:
    files = write_report([make_run(tmp_path / "young", [])], tmp_path / "out")
    assert "No cycle is committed yet." in files[0].read_text("utf-8")
    assert files[1].read_text() == ""


def test_nothing_is_written_when_a_directory_is_no_run(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no run here"):
        write_report([run, tmp_path], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_status_is_one_json_object_with_k_n_rates_and_intervals(run: Path) -> None:
    with Store(RunDir(run).database) as store:
        store.set_meta(PINNED, {"task": "digits", "prompt": "p", "decoding": "d"})
        add_texts(store, 4, ["t"] * 3)
        store.add_verdict(
            4,
            1,
            verdict=Verdict(Outcome.VALID, first_epoch_accuracy=0.2),
            code="x",
            code_sha256=None,
            isolation=None,
            protocol=None,
            training=None,
        )
    with Run.open(run) as opened:
        status = json.loads(json.dumps(status_json(opened), allow_nan=False))
    assert status["state"] == "interrupted"
    assert status["task"] == "digits", "the one in use"
    assert status["planned_cycles"] == 22
    assert status["current"] == {
        "cycle": 4,
        "n_gen": 3,
        "n_judged": 1,
        "n_valid": 1,
        "outcomes": {"valid": 1},
    }
    first, second, third = status["cycles"]
    assert first["valid"] == {
        "k": 22,
        "n": 50,
        "rate": 0.44,
        "interval": pytest.approx([0.31160, 0.57694], abs=1e-4),
    }
    assert len(first["accuracies"]) == 22
    assert (first["at_floor"]["k"], first["n_at_floor"]) == (1, 1)
    assert second["mean_accuracy"] == {"n": 1, "value": 0.5, "interval": None}
    assert third["best_accuracy"] is None
    assert status["totals"]["valid"]["k"] == 23


def test_the_terminal_table_fits_and_keeps_brackets(run: Path) -> None:
    with Run.open(run) as opened:
        stats = opened.cycles()
        large = replace(stats[0], cycle=22, n_gen=208, n_valid=155, wall_seconds=40_000.0)
        table = format_cycle_table([*stats, large], opened.config)
    console = Console(file=io.StringIO(), width=80)
    console.print(table)
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    assert "% [95 %]" in lines[0] + lines[1]
    assert ">= 40 %" in lines[0] + lines[1]
    assert lines[2].split()[:5] == ["1", "22/50", "44", "[31,", "58]"]
    assert lines[-1].split()[:2] == ["all", "178/265"]
    assert max(map(len, lines)) <= 80
    assert not any("…" in line for line in lines)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "-"), (0.4, "0 s"), (59.6, "1 min 00 s"), (200, "3 min 20 s"), (7500, "2 h 05 min")],
)
def test_durations_read_well(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


def test_an_interval_of_a_mean_ends_where_a_share_can() -> None:
    assert mean(Mean.of([0.6, 0.85])) == "72.50 [0.00, 100.00]"
    assert mean(Mean.of([0.5, 0.5, 0.6])) == "53.33 [38.99, 67.68]"


def test_intervals_of_means_are_the_same_everywhere(tmp_path: Path) -> None:
    root = make_run(tmp_path / "run", [([0.6, 0.85], 2)])
    rows = read_csv(write_report([root], tmp_path / "out")[1])
    assert (rows[0]["accuracy_low"], rows[0]["accuracy_high"]) == ("0.0", "1.0")
    with Run.open(root) as opened:
        (cycle,) = status_json(opened)["cycles"]
        table = format_cycle_table(opened.cycles(), CONFIG)
    assert cycle["mean_accuracy"]["interval"] == [0.0, 1.0]
    assert list(table.columns[4].cells) == ["72.5 [0, 100]"]


def test_a_report_takes_the_place_of_the_one_before_and_of_nothing_else(
    run: Path, tmp_path: Path
) -> None:
    second, out = make_run(tmp_path / "second", [([0.5], 4)]), tmp_path / "out"
    write_report([run, second], out)
    (out / "cycles-mine.svg").touch()
    (out / "timeline-2.svg").touch()
    files = write_report([run], out)
    assert sorted(out.iterdir()) == sorted([*files, out / "cycles-mine.svg"])


@pytest.mark.parametrize("again", ["first", "link"])
def test_a_run_is_reported_once(run: Path, tmp_path: Path, again: str) -> None:
    (tmp_path / "link").symlink_to(run)
    with pytest.raises(UsageError, match=f"{again}: named more than once"):
        write_report([tmp_path / again, run], tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("new", [True, False])
def test_a_full_disk_leaves_what_was_there(run: Path, tmp_path: Path, new: bool) -> None:
    """The process may write no file as large as the drawing is; the database needs 32 KiB."""
    out = tmp_path / "deep" / "out"
    if not new:
        out.mkdir(parents=True)
        (out / "report.md").write_text("old")
    limit = "import resource as r; r.setrlimit(r.RLIMIT_FSIZE, (36_000, 36_000))"
    code = f"{limit}; from archloop.cli import main; main()"
    command = [sys.executable, "-P", "-c", code, "report", str(run), "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if new:
        assert not (tmp_path / "deep").exists()
    else:
        assert [(path.name, path.read_text()) for path in out.iterdir()] == [("report.md", "old")]
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"archloop: [Errno 27] File too large: '{out}'\n"
