from __future__ import annotations

import os
import time
from pathlib import Path

import psutil
import pytest

from archloop.errors import ArchloopError, CapReachedError, UsageError
from archloop.worker import run_worker

MODULE = """
import os, sys, time
from archloop.errors import ArchloopError, CapReachedError, UsageError
from archloop.worker import serve

class LocalError(UsageError):
    pass

def work(job, emit):
    print("noise on stdout")
    if job["do"] == "usage":
        raise UsageError("bad input")
    if job["do"] == "local":
        raise LocalError("bad in its own way")
    if job["do"] == "cap":
        raise CapReachedError("enough")
    if job["do"] == "fault":
        raise ArchloopError("machine fault")
    if job["do"] == "crash":
        raise RuntimeError("the last line")
    if job["do"] == "die":
        os._exit(3)
    emit("tick", {"pid": os.getpid()})
    if job["do"] == "wait":
        time.sleep(600)
    return {"answer": 42}

serve(work)
"""


@pytest.fixture(autouse=True)
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a_worker.py").write_text(MODULE)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")


def test_events_come_as_they_happen_and_the_result_last() -> None:
    tick, result = run_worker("a_worker", {"do": "work"})
    assert tick["event"] == "tick"
    assert result == {"event": "result", "data": {"answer": 42}}


@pytest.mark.parametrize(
    ("do", "kind", "said"),
    [
        ("usage", UsageError, "bad input"),
        ("local", UsageError, "bad in its own way"),
        ("cap", CapReachedError, "enough"),
        ("fault", ArchloopError, "machine fault"),
        ("crash", ArchloopError, "RuntimeError: the last line"),
        ("die", ArchloopError, "ended with code 3"),
    ],
)
def test_a_failure_is_one_line(do: str, kind: type[Exception], said: str) -> None:
    with pytest.raises(kind, match=said) as error:
        list(run_worker("a_worker", {"do": do}))
    assert "\n" not in str(error.value)


def test_closing_the_iterator_ends_the_process() -> None:
    events = run_worker("a_worker", {"do": "wait"})
    pid = next(events)["data"]["pid"]
    events.close()  # type: ignore[attr-defined]
    time.sleep(0.1)
    assert not psutil.pid_exists(pid)
