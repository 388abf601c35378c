"""How a process confines itself: system call numbers, the fence of files, the filter of calls."""

from __future__ import annotations

import os
import queue
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from archloop.sandbox.confine import landlock, seccomp
from archloop.sandbox.confine.confine import confine

HEADERS = {
    "x86_64": Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
    "aarch64": Path("/usr/include/asm-generic/unistd.h"),
}


@pytest.mark.parametrize("machine", HEADERS)
def test_system_call_numbers_are_those_of_the_headers(machine: str) -> None:
    if not HEADERS[machine].is_file():
        pytest.skip("no Linux headers here")
    found = re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", HEADERS[machine].read_text("utf-8"))
    numbers = {name: int(number) for name, number in found}
    calls = seccomp.DENIED | seccomp.ONLY_ITSELF
    calls |= {"clone": seccomp.CLONE, "clone3": seccomp.CLONE3, "prlimit64": seccomp.PRLIMIT64}
    newest = max(numbers.values())
    for name, call in calls.items():
        number = getattr(call, machine)
        if number is None:
            assert name not in numbers
        elif number <= newest:
            assert numbers[name] == number, name


def test_no_system_call_is_listed_twice() -> None:
    for machine in HEADERS:
        calls = [*seccomp.DENIED.values(), *seccomp.ONLY_ITSELF.values()]
        numbers = [n for c in calls if (n := getattr(c, machine)) is not None]
        assert len(numbers) == len(set(numbers))


LATE_FILTER = """
import queue, socket, threading
from archloop.sandbox.confine import seccomp

def attempt():
    try:
        socket.socket().close()
        return "open"
    except PermissionError:
        return "denied"

asked, answers = queue.Queue(), queue.Queue()
def work():
    while asked.get():
        answers.put(attempt())
threading.Thread(target=work, daemon=True).start()
asked.put(True)
print(answers.get())
seccomp.no_new_privileges()
seccomp.install()
asked.put(True)
print(answers.get(), attempt())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="seccomp is Linux's")
def test_the_filter_holds_for_threads_that_were_there_before() -> None:
    done = subprocess.run(
        [sys.executable, "-c", LATE_FILTER], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.split() == ["open", "denied", "denied"]


@pytest.mark.skipif(landlock.abi() < landlock.MIN_ABI, reason="needs Landlock")
@pytest.mark.parametrize("beside", ["", "private", "private/deeper/still"])
def test_a_fence_leaves_a_process_its_own_folder(tmp_path: Path, beside: str) -> None:
    """Wherever what may be read lies: apart from the private folders, among them or above them."""
    private = tmp_path / "private"
    own, other = private / "1", private / "2"
    readable = tmp_path / "readable" if not beside else tmp_path / beside / "readable"
    for folder in (own, other, readable):
        folder.mkdir(parents=True)
    for name in ("a", "b"):
        (readable / name).write_text("x")
    (other / "secret").write_text("x")
    (tmp_path / "secret").write_text("x")
    made = landlock.fence({str(readable / "a"): landlock.READ}, private)
    attempts = [
        (readable / "a", "r", True),
        (own / "new", "w", True),
        (readable / "b", "r", False),
        (readable / "a", "w", False),
        (other / "secret", "r", False),
        (other / "new", "w", False),
        (private / "new", "w", False),
        (tmp_path / "secret", "r", False),
    ]
    pid = os.fork()
    if not pid:
        os._exit(_first_surprise(made, own, attempts))
    _, status = os.waitpid(pid, 0)
    for fd in (made.ruleset, *made.elsewhere):
        os.close(fd)
    code = os.waitstatus_to_exitcode(status)
    assert code == 0, attempts[code - 1] if code <= len(attempts) else "it could not be limited"


@pytest.mark.skipif(landlock.abi() < landlock.MIN_ABI, reason="needs Landlock")
def test_threads_started_inside_the_fence_stay_in_it_and_are_filtered(tmp_path: Path) -> None:
    """As CUDA's are: it starts where files are out of reach, and before the filter."""
    own = tmp_path / "private" / "1"
    own.mkdir(parents=True)
    (tmp_path / "secret").write_text("x")
    pid = os.fork()
    if not pid:
        try:
            made = landlock.fence({}, own.parent)
            found = _attempts_of_a_thread(made, own, tmp_path / "secret")
        except BaseException:  # noqa: BLE001 - this process must not go on as a second pytest
            os._exit(2)
        os._exit(int(found != [("denied", "allowed"), ("denied", "denied")]))
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0


def _attempts_of_a_thread(fence: landlock.Fence, own: Path, secret: Path) -> list[tuple[str, str]]:
    """What reading a file and opening a socket come to, before the filter and after it."""
    asked: queue.Queue[None] = queue.Queue()
    answers: queue.Queue[tuple[str, str]] = queue.Queue()

    def attempt(what: Callable[[], Any]) -> str:
        try:
            what().close()
        except PermissionError:
            return "denied"
        return "allowed"

    def work() -> None:
        while True:
            asked.get()
            answers.put((attempt(secret.open), attempt(socket.socket)))

    found: list[tuple[str, str]] = []

    def ask() -> None:
        asked.put(None)
        found.append(answers.get(timeout=10))

    def start() -> None:
        threading.Thread(target=work, daemon=True).start()
        ask()

    confine(own, fence, start)
    ask()
    return found


def _first_surprise(
    fence: landlock.Fence, own: Path, attempts: list[tuple[Path, str, bool]]
) -> int:
    """The number of the first attempt that goes another way; 0 if there is none."""
    seccomp.no_new_privileges()
    landlock.restrict(fence, own)
    for number, (path, mode, expected) in enumerate(attempts, 1):
        try:
            path.open(mode).close()
        except PermissionError:
            if expected:
                return number
        else:
            if not expected:
                return number
    return 0
