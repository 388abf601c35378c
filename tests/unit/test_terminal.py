"""The command line with streams that fail, that lack characters, and at a real terminal."""

from __future__ import annotations

import fcntl
import os
import re
import signal
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from archloop.code.chat import render_code
from archloop.store.run_dir import FINISHED
from archloop.store.store import Store
from archloop.types import Outcome, Verdict
from conftest import network
from made_runs import add_texts, finished_run, make_run
from scripted_server import Reply, chat, scripted

COMMAND = [sys.executable, "-P", "-m", "archloop"]
LONG = f"class Net:\n\tname = '{'x' * 150}'"
DIGITS = ["--task", "digits", "--set", "protocol.train_images=300"]


@pytest.mark.parametrize("stderr", ["full", "left", "unwritable"])
def test_progress_that_nobody_can_read_ends_nothing(stderr: str, tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(network())
    reader, left = os.pipe()
    os.close(reader)
    with (
        Path("/dev/full").open("wb") as full,
        os.fdopen(left, "wb") as pipe,
        Path("/dev/null").open("rb") as null,
    ):
        done = subprocess.run(
            [*COMMAND, "evaluate", "net.py", *DIGITS],
            stdout=subprocess.PIPE,
            stderr={"full": full, "left": pipe, "unwritable": null}[stderr],
            text=True,
            cwd=tmp_path,
            check=False,
        )
    assert done.returncode == 0
    assert done.stdout.startswith("net.py: valid, first-epoch accuracy")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_character_that_a_stream_lacks_ends_nothing(encoding: str, tmp_path: Path) -> None:
    finished_run(tmp_path / "→ ±")
    done = subprocess.run(
        [*COMMAND, "run", "--run-dir", "→ ±"],
        capture_output=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONIOENCODING": encoding},
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    sign = "±" if encoding == "latin-1" else r"\xb1"
    assert rf"directory: \u2192 {sign}".encode(encoding) in done.stdout


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["frobnicate"], "no such command 'frobnicate'; see '{} --help'"),
        (["run", "--frobnicate"], "no such option '--frobnicate'; see '{} run --help'"),
        (["report"], "missing argument 'RUN...'; see '{} report --help'"),
        (["doctor", "a", "b"], "got unexpected extra argument (b); see '{} doctor --help'"),
    ],
)
def test_usage_that_click_refuses_is_one_line_too(arguments: list[str], line: str) -> None:
    done = subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, check=False)
    assert done.stderr == f"archloop: {line.format('python -m archloop')}\n"
    assert (done.returncode, done.stdout) == (2, "")


def test_without_a_command_the_help_is_shown() -> None:
    done = subprocess.run(COMMAND, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "Start with: archloop run demo" in done.stderr


RESUMABLE = "interrupted; run the same command again to resume"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "openai", "--run-dir", "run"], RESUMABLE),
        (["generate", "--config", "openai"], "interrupted"),
    ],
)
@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_promises_to_go_on_where_it_will(
    arguments: list[str], said: str, by: signal.Signals, tmp_path: Path
) -> None:
    with scripted(lambda _number, _body: Reply(chat("x").body, delay=2.0)) as server:
        keys = ["task.name=digits", "llm.model=m", "seeds.source=none", "loop.completions=1"]
        keys.append(f"openai.base_url={server.url}")
        process = subprocess.Popen(
            [*COMMAND, *arguments, *(part for key in keys for part in ("--set", key))],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            cwd=tmp_path,
            # A shell lets what it starts in the background ignore it, and so would this test's.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        assert process.stderr
        assert any("asking the server" in line for line in process.stderr)
        process.send_signal(by)
        last = process.communicate()[1].splitlines()[-1]
    assert (process.returncode, last) == (128 + by, said)


def at_terminal(arguments: list[str], cwd: Path, columns: int = 80, term: str = "xterm") -> str:
    """What a command writes to a terminal that is its stdin, stdout and stderr."""
    main, side = os.openpty()
    fcntl.ioctl(side, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    environment = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "NO_COLOR")}
    process = subprocess.Popen(
        [*COMMAND, *arguments],
        stdin=side,
        stdout=side,
        stderr=side,
        cwd=cwd,
        env=environment | {"TERM": term},
    )
    os.close(side)
    shown = b""
    while part := _read(main):
        shown += part
    os.close(main)
    assert process.wait() == 0, shown
    return shown.decode().replace("\r\n", "\n")


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 1 << 16)
    except OSError:  # the other side is closed
        return b""


def seen(shown: str) -> list[str]:
    """The lines that stand on the terminal in the end: what was erased is gone, colours too."""
    lines = (line.rpartition("\x1b[2K")[2] for line in shown.split("\n"))
    return [re.sub(r"\x1b\[[?0-9;]*[a-zA-Z]|\r", "", line) for line in lines]


def generated(tmp_path: Path, term: str) -> str:
    """Two completions of a server, at a terminal."""
    with scripted(
        lambda _number, _body: Reply(chat(render_code("x = 1")).body, delay=0.5)
    ) as server:
        keys = ["task.name=digits", "llm.model=m", "openai.concurrency=1"]
        keys.append(f"openai.base_url={server.url}")
        options = [part for key in keys for part in ("--set", key)]
        command = ["generate", "-n", "2", "--config", "openai", "--out", "out", *options]
        return at_terminal(command, tmp_path, term=term)


def test_rows_stand_on_lines_of_their_own_above_the_live_one(tmp_path: Path) -> None:
    shown = generated(tmp_path, "xterm")
    assert "━" in shown, "there is a live line"
    lines = seen(shown)
    assert lines[:2] == ["out/0000.py", "out/0001.py"]
    assert lines[2].startswith("LLM server: ")
    assert "".join(lines[3:]) == ""


def test_a_log_line_stands_above_the_live_one(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(network())
    shown = at_terminal(["-v", "evaluate", "net.py", *DIGITS], tmp_path, columns=200)
    assert "━" in shown
    assert [line for line in seen(shown) if line.startswith("INFO archloop.tasks: task Digits")]


def test_a_dumb_terminal_gets_plain_lines(tmp_path: Path) -> None:
    shown = generated(tmp_path, "dumb")
    assert "generate: 0/2 completions, asking the server\n" in shown
    assert "\nout/0001.py\n" in shown
    assert "\x1b" not in shown


@pytest.mark.parametrize("piped", [True, False])
def test_the_best_network_is_shown_by_its_file(piped: bool, tmp_path: Path) -> None:
    run = finished_run(tmp_path / "run", LONG)
    file = run.candidate(1, "c01-0000")
    arguments = ["run", "--run-dir", "run"]

    def lines() -> list[str]:
        if not piped:
            return seen(at_terminal(arguments, tmp_path, columns=80))
        command = [*COMMAND, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=True)
        return done.stdout.splitlines()

    best = "Best network: c01-0000, first-epoch accuracy 50.00%, 10 parameters"
    shown = lines()
    assert best in shown
    assert not [line for line in shown if ".py" in line], "this run was copied without it"
    file.parent.mkdir(parents=True)
    file.touch()
    shown = lines()
    assert shown[shown.index(best) + 1] == "    run/candidates/cycle_01/c01-0000.py (2 lines)"
    assert "xxx" not in "".join(shown), "the code is not shown"


def test_without_a_valid_candidate_the_outcomes_are_counted(tmp_path: Path) -> None:
    run = finished_run(tmp_path / "run")
    ends = [Outcome.NO_CODE, Outcome.TIMEOUT, Outcome.NO_CODE]
    run.database.unlink()
    with Store(run.database) as store:
        judge(store, 1, ends)
        store.set_meta(FINISHED, "2026-01-01T00:00:00+00:00")
    done = subprocess.run(
        [*COMMAND, "run", "--run-dir", "run"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=True,
    )
    assert "No candidate was valid: 2 no_code, 1 timeout.\n" in done.stdout


def judge(store: Store, cycle: int, outcomes: list[Outcome]) -> None:
    """Completions with these outcomes, and one more without a verdict."""
    n = len(outcomes)
    add_texts(store, cycle, ["text"] * (n + 1))
    for index, outcome in enumerate(outcomes):
        store.add_verdict(
            cycle,
            index,
            verdict=Verdict(outcome),
            code=None,
            code_sha256=None,
            isolation=None,
            protocol=None,
            training=None,
        )


def test_status_tells_of_the_cycle_that_is_not_committed(tmp_path: Path) -> None:
    finished_run(tmp_path / "run").database.unlink()
    with Store(tmp_path / "run" / "run.db") as store:
        judge(store, 1, [Outcome.NO_CODE, Outcome.VALID])
    done = subprocess.run(
        [*COMMAND, "status", "run"], capture_output=True, text=True, cwd=tmp_path, check=True
    )
    assert done.stdout.splitlines() == [
        "run: interrupted",
        "No cycle is committed yet.",
        "cycle 1, not committed: 3 completions, 2 judged, 1 valid",
    ]


def test_a_narrow_terminal_loses_no_figure(tmp_path: Path) -> None:
    make_run(tmp_path / "run", [([0.21, 0.45, 0.4], 50), ([0.5], 4)])
    text = " ".join(at_terminal(["status", "run"], tmp_path, columns=40).split())
    assert "…" not in text
    assert "cycle 1, valid 3/50, % [95 %] 6 [2, 16], best % 45.0, mean % 35.3 ±31.5," in text
    assert "cycle all, valid 4/54," in text
    assert "corpus 1,698, time 0:03:20" in text
