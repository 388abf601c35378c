"""Work in a Python process of its own that streams JSON events: the LLM's memory goes with it.

A job, or one command after another, travels as a JSON line on stdin, events come back as JSON lines
on a pipe of their own; what libraries print goes to stderr. The process dies with its parent: it
holds the read end of stdin open and leaves when that closes. It leads a process group, so that
processes which a library starts (vLLM's engine, the ranks of a fine-tune) end with it.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import Any, TextIO

import psutil

from archloop import errors
from archloop.errors import ArchloopError, UsageError

logger = logging.getLogger(__name__)

_EVENT_FD = "ARCHLOOP_EVENT_FD"
_VLLM_ERROR = re.compile(r"\(EngineCore[^)]*\) (\w*(?:Error|Exception)\b.*)")
_END = "\n"
"""The line that asks the process to end."""
_END_SECONDS = 10.0
Emit = Callable[[str, dict[str, Any]], None]
Work = Callable[[dict[str, Any], Emit], dict[str, Any]]
"""Does a job or a command, emits events on the way, and gives the result."""


class Worker:
    """A process that answers one command after another; what it has loaded stays.

    Commands travel as JSON lines on its stdin. It must be ended; it also dies with its parent.
    """

    def __init__(self, module: str) -> None:
        """Start ``python -m module``, which calls :func:`serve` or :func:`serve_commands`."""
        self._module = module
        reader, writer = os.pipe()
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            pass_fds=[writer],
            env={**os.environ, _EVENT_FD: str(writer), "TOKENIZERS_PARALLELISM": "false"},
            encoding="utf-8",
            errors="replace",  # a library may print anything
            start_new_session=True,
        )
        os.close(writer)
        self._events = os.fdopen(reader, "r", encoding="utf-8")
        assert self._process.stdin and self._process.stderr
        self._stdin, self._stderr = self._process.stdin, self._process.stderr
        self._tail: deque[str] = deque(maxlen=400)
        self._helpers = [
            threading.Thread(target=_drain, args=(self._stderr, self._tail), daemon=True),
            threading.Thread(target=_reap, args=(self._process,), daemon=True),
        ]
        for helper in self._helpers:
            helper.start()

    def ask(self, command: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Send a command and yield its events, the last of which is its ``result``.

        Whoever does not take all of them has to end the process.

        Raises:
            ArchloopError: The process ended without a result, or raised it (as the kind it raised).
        """
        with suppress(BrokenPipeError):
            self._stdin.write(json.dumps(command) + "\n")
            self._stdin.flush()
        for line in self._events:
            event = json.loads(line)
            if event["event"] == "error":
                raise getattr(errors, event["data"]["kind"])(event["data"]["message"])
            yield event
            if event["event"] == "result":
                return
        code = self._process.wait()
        self.kill()
        raise ArchloopError(f"{self._module} ended with code {code}: {_last_word(self._tail)}")

    def wait(self) -> None:
        """Until the process has ended by itself."""
        self._process.wait()

    def resident_bytes(self) -> int:
        """Main memory that the process and what it started hold now."""
        found = 0
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(self._process.pid)
            for one in [process, *process.children(recursive=True)]:
                with suppress(psutil.NoSuchProcess):
                    found += one.memory_info().rss
        return found

    def end(self) -> None:
        """Let the process end by itself, or after some seconds end it."""
        with suppress(BrokenPipeError, ValueError):
            self._stdin.write(_END)
            self._stdin.flush()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_END_SECONDS)
        self.kill()

    def kill(self) -> None:
        """End the process and everything that it started."""
        self._process.kill()
        for helper in self._helpers:
            helper.join()
        for stream in (self._stdin, self._stderr, self._events):
            with suppress(BrokenPipeError):
                stream.close()


def run_worker(module: str, job: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Start ``python -m module`` on a job, yield its events; closing the iterator ends it.

    Raises:
        ArchloopError: The process ended without a result, or raised an error, which has the same
            class here.
    """
    worker = Worker(module)
    try:
        yield from worker.ask(job)
        worker.wait()
    finally:
        worker.kill()


def _drain(stream: TextIO, tail: deque[str]) -> None:
    for line in stream:
        tail.append(line)
        logger.debug("%s", line.rstrip())


def _last_word(output: Iterable[str]) -> str:
    """The error line of a failed process, or of vLLM's engine process that it refers to."""
    lines = [line.strip() for line in output if line.strip()] or ["no output"]
    if "See root cause above" in lines[-1]:
        found = [match[1] for line in lines if (match := _VLLM_ERROR.match(line))]
        return found[-1] if found else lines[-1]
    return lines[-1]


def _reap(process: subprocess.Popen[str]) -> None:
    """End the rest of an ended process's group, which holds its pipes open."""
    process.wait()
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


def serve(work: Work) -> None:
    """The other side: read the job, do the work, emit its result (a worker's ``__main__``)."""
    with _Answers() as answers:
        answers.to(work, json.loads(_commands().get()))


def serve_commands(work: Work, close: Callable[[], None]) -> None:
    """The other side of a process that stays: answer commands until one fails or they end.

    Args:
        work: Does a command and gives its result.
        close: Called at the end, after a failure too.
    """
    commands = _commands()
    with _Answers() as answers:
        try:
            while (line := commands.get()) != _END and answers.to(work, json.loads(line)):
                pass
        finally:
            close()


class _Answers:
    """The pipe that events go back on."""

    def __init__(self) -> None:
        self._events = os.fdopen(int(os.environ[_EVENT_FD]), "w", encoding="utf-8")

    def emit(self, event: str, data: dict[str, Any]) -> None:
        self._events.write(json.dumps({"event": event, "data": data}) + "\n")
        self._events.flush()

    def to(self, work: Work, command: dict[str, Any]) -> bool:
        """Do a command; whether it came to a result."""
        try:
            self.emit("result", work(command, self.emit))
        except (ArchloopError, OSError) as error:
            traceback.print_exc()
            told = as_told(error)
            self.emit("error", {"message": str(told), "kind": _kind(told)})
            return False
        return True

    def __enter__(self) -> _Answers:
        return self

    def __exit__(self, *_: object) -> None:
        self._events.close()


def as_told(error: ArchloopError | OSError) -> ArchloopError:
    """The error that the main process raises for an exception; a file error counts as bad input."""
    if isinstance(error, ArchloopError):
        return error
    return UsageError(" ".join(str(error).split()))


def _kind(error: ArchloopError) -> str:
    """The closest error class that both sides know."""
    return next(c.__name__ for c in type(error).__mro__ if c.__module__ == errors.__name__)


def _commands() -> queue.SimpleQueue[str]:
    """The lines of stdin; a thread puts them there, and leaves with the parent."""
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(lines,), daemon=True).start()
    return lines


def _listen(lines: queue.SimpleQueue[str]) -> None:
    # Not sys.stdin.read(): its lock would be held for good in a process that a library forks, and
    # multiprocessing closes sys.stdin there.
    rest = b""
    while chunk := os.read(0, 1 << 16):
        *whole, rest = (rest + chunk).split(b"\n")
        for line in whole:
            lines.put(line.decode() + "\n")
    if os.getpgid(0) == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(1)
