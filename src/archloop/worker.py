"""Runs one job in a fresh Python process and streams its JSON events.

When the process ends, the memory of its LLM is released. The job is one JSON line on stdin, events
are JSON lines on a separate pipe, and output of libraries goes to stderr. The process ends with its
parent: it reads stdin and exits when that closes. It leads a process group, so that processes which
a library starts (vLLM's engine, the ranks of a fine-tune) end with it.
"""

from __future__ import annotations

import json
import logging
import os
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

from archloop import errors
from archloop.errors import ArchloopError, UsageError

logger = logging.getLogger(__name__)

_EVENT_FD = "ARCHLOOP_EVENT_FD"
_VLLM_ERROR = re.compile(r"\(EngineCore[^)]*\) (\w*(?:Error|Exception)\b.*)")
Emit = Callable[[str, dict[str, Any]], None]


def run_worker(module: str, job: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Start ``python -m module`` on a job, yield its events; closing the iterator ends it.

    Raises:
        ArchloopError: The process ended without a result, or raised an error, which has the same
            class here.
    """
    reader, writer = os.pipe()
    process = subprocess.Popen(
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
    assert process.stdin and process.stderr
    tail: deque[str] = deque(maxlen=400)
    helpers = [
        threading.Thread(target=_drain, args=(process.stderr, tail), daemon=True),
        threading.Thread(target=_reap, args=(process,), daemon=True),
    ]
    for helper in helpers:
        helper.start()
    finished = False
    try:
        with os.fdopen(reader, "r", encoding="utf-8") as events:
            with suppress(BrokenPipeError):
                process.stdin.write(json.dumps(job) + "\n")
                process.stdin.flush()
            for line in events:
                event = json.loads(line)
                if event["event"] == "error":
                    raise getattr(errors, event["data"]["kind"])(event["data"]["message"])
                finished = finished or event["event"] == "result"
                yield event
        process.wait()
    finally:
        process.kill()
        for helper in helpers:
            helper.join()
        for stream in (process.stdin, process.stderr):
            with suppress(BrokenPipeError):
                stream.close()
    if not finished:
        raise ArchloopError(f"{module} ended with code {process.returncode}: {_last_word(tail)}")


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


def serve(work: Callable[[dict[str, Any], Emit], dict[str, Any]]) -> None:
    """The other side: read the job, do the work, emit its result (a worker's ``__main__``)."""
    job = json.loads(sys.stdin.readline())
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    with os.fdopen(int(os.environ[_EVENT_FD]), "w", encoding="utf-8") as events:

        def emit(event: str, data: dict[str, Any]) -> None:
            events.write(json.dumps({"event": event, "data": data}) + "\n")
            events.flush()

        try:
            emit("result", work(job, emit))
        except (ArchloopError, OSError) as error:
            traceback.print_exc()
            told = as_told(error)
            emit("error", {"message": str(told), "kind": _kind(told)})


def as_told(error: ArchloopError | OSError) -> ArchloopError:
    """The error that the main process raises for an exception; a file error counts as bad input."""
    if isinstance(error, ArchloopError):
        return error
    return UsageError(" ".join(str(error).split()))


def _kind(error: ArchloopError) -> str:
    """The closest error class that both sides know."""
    return next(c.__name__ for c in type(error).__mro__ if c.__module__ == errors.__name__)


def _leave_with_parent() -> None:
    # Not sys.stdin.read(): its lock would be held for good in a process that a library forks, and
    # multiprocessing closes sys.stdin there.
    while os.read(0, 1):
        pass
    if os.getpgid(0) == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(1)
