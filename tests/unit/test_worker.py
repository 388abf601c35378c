from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from archloop.errors import ArchloopError, CapReachedError, UsageError
from archloop.worker import run_worker

MODULE = """
import multiprocessing, os, subprocess, sys, time
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
    if job["do"] == "file":
        open("nowhere")
    if job["do"] == "lines":
        raise OSError("a library's\\nerror")
    if job["do"] == "vllm":
        print("(EngineCore pid=7)     assert free >= before, (", file=sys.stderr)
        print("(EngineCore pid=7) AssertionError: Error in memory profiling.", file=sys.stderr)
        print("[rank0]: Warning: a process group was not destroyed", file=sys.stderr)
        raise RuntimeError("Engine core initialization failed. See root cause above. Failed: {}")
    if job["do"] == "flood":
        sys.stderr.buffer.write(b"\\xff\\n" * 100_000)
        raise RuntimeError("after the flood")
    if job["do"] == "crash":
        raise RuntimeError("the last line")
    if job["do"] == "die":
        os._exit(3)
    if job["do"] == "fork":
        child = multiprocessing.get_context("fork").Process(target=int, daemon=True)
        child.start()
        child.join(20)
        return {"code": child.exitcode}
    if job["do"] == "die before a child":
        pid = os.fork() or time.sleep(600)
        emit("tick", {"pid": pid})
        os._exit(3)
    if job["do"] == "leave a child":
        child = subprocess.Popen(["sleep", "600"])
        emit("tick", {"pid": child.pid})
        time.sleep(600)
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
        ("file", UsageError, "No such file or directory: 'nowhere'"),
        ("lines", UsageError, "^a library's error$"),
        ("crash", ArchloopError, "RuntimeError: the last line"),
        ("flood", ArchloopError, "RuntimeError: after the flood"),
        ("die", ArchloopError, "ended with code 3"),
        ("vllm", ArchloopError, "ended with code 1: AssertionError: Error in memory profiling.$"),
    ],
)
def test_a_failure_is_one_line(do: str, kind: type[Exception], said: str) -> None:
    with pytest.raises(kind, match=said) as error:
        list(run_worker("a_worker", {"do": do}))
    assert "\n" not in str(error.value)


def test_a_library_may_fork() -> None:
    """vLLM does, for the process with its engine; the forked process closes its stdin first."""
    (result,) = run_worker("a_worker", {"do": "fork"})
    assert result["data"] == {"code": 0}


@pytest.mark.parametrize("do", ["wait", "leave a child"])
def test_closing_the_iterator_ends_the_process_and_what_it_started(do: str) -> None:
    events = run_worker("a_worker", {"do": do})
    pid = next(events)["data"]["pid"]
    events.close()  # type: ignore[attr-defined]
    assert _is_gone(pid)


def test_a_process_that_outlives_the_worker_does_not_keep_it_open() -> None:
    events = run_worker("a_worker", {"do": "die before a child"})
    pid = next(events)["data"]["pid"]
    with pytest.raises(ArchloopError, match="ended with code 3"):
        next(events)
    assert _is_gone(pid)


def test_what_a_worker_started_goes_with_the_process_that_started_the_worker(
    tmp_path: Path,
) -> None:
    (tmp_path / "parent.py").write_text(
        "from archloop.worker import run_worker\n"
        "for event in run_worker('a_worker', {'do': 'leave a child'}):\n"
        "    print(event['data']['pid'], flush=True)\n"
    )
    with subprocess.Popen(
        [sys.executable, tmp_path / "parent.py"], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout
        pid = int(parent.stdout.readline())
        parent.kill()
    assert _is_gone(pid)


def _is_gone(pid: int) -> bool:
    """Within five seconds; a process that nobody has waited for counts as gone."""
    for _ in range(50):
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.1)
    return False
