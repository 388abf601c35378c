"""The warm parent of all candidates: torch imported, images mapped; forks one child each.

It stays single-threaded and never runs generated code itself. The main process passes it one end of
a socket for every candidate, so results do not go through here; it also reaps on request, and kills
whatever a dead candidate left behind (it is the subreaper of its descendants).
"""

from __future__ import annotations

import ctypes
import gc
import mmap
import os
import shutil
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch._dynamo  # noqa: F401 - the first optimiser imports it, and it writes a folder
import torch.fx
import torch.utils.checkpoint
from torch import nn

from archloop.sandbox import wire
from archloop.sandbox.confine import confine, detach, limit
from archloop.sandbox.harness import TrainingData, serve_candidate

_PR_SET_CHILD_SUBREAPER = 36
_REAP_SECONDS = 10.0


def main() -> None:
    """Serve until the control socket closes."""
    control = socket.socket(fileno=int(sys.argv[1]))
    setup = wire.receive(control)
    _warm_up()
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    data = _map(setup["data"]) if setup["data"] else None
    gc.collect()
    gc.freeze()
    wire.send(control, {"ready": True})
    children: set[int] = set()
    while True:
        try:
            request, fd = wire.receive_with_fd(control)
        except (wire.WireError, OSError):
            break
        if request["do"] == "fork" and fd is not None:
            pid = _fork(control, fd, setup, data if request["train"] else None, request["folder"])
            children.add(pid)
            os.close(fd)
            wire.send(control, {"pid": pid})
        elif request["do"] == "reap":
            status = _reap(request["pid"], request["grace"])
            children.discard(request["pid"])
            survivors = _sweep(children)
            shutil.rmtree(request["folder"], ignore_errors=True)
            wire.send(control, {"status": status, "survivors": survivors})
    for pid in children:
        _kill(pid)


def _warm_up() -> None:
    """Import what the first optimiser and backward pass import, in one thread."""
    torch.set_num_threads(1)
    layer = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9)
    nn.CrossEntropyLoss()(layer(torch.zeros(2, 2)), torch.zeros(2, dtype=torch.long)).backward()
    nn.utils.clip_grad_norm_(layer.parameters(), 3)
    optimizer.step()


def _map(spec: dict[str, Any]) -> TrainingData:
    def array(name: str, dtype: Any) -> Any:
        shape = spec[name]["shape"]
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        memory = mmap.mmap(spec[name]["fd"], size, prot=mmap.PROT_READ)
        os.close(spec[name]["fd"])
        return np.frombuffer(memory, dtype).reshape(shape)

    return TrainingData(array("images", np.uint8), array("labels", np.int64))


def _fork(
    control: socket.socket, fd: int, setup: dict[str, Any], data: TrainingData | None, folder: str
) -> int:
    pid = os.fork()
    if pid:
        return pid
    try:
        control.close()
        sock = socket.socket(fileno=fd)
        job = wire.receive(sock)
        detach(Path(folder))
        limit(setup["memory_mb"], setup["disk_mb"], memory=not torch.cuda.is_available())
        if setup["isolation"] == "confined":
            confine(Path(folder))
        wire.send(sock, {"stage": "confined"})
        serve_candidate(sock, job, data)
    finally:
        os._exit(0)


def _kill(pid: int) -> None:
    for kill in (os.killpg, os.kill):
        try:
            kill(pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            continue


def _reap(pid: int, grace: float) -> int | None:
    """Collect a candidate's exit status (as ``os.waitpid`` gives it) and kill its process group.

    A candidate whose socket closed gets a moment to end by itself, so that its status says how. It
    is reaped last, so its number cannot have been given to another process when the group is
    killed.
    """
    deadline = time.monotonic() + grace
    while time.monotonic() < deadline:
        if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            break
        time.sleep(0.001)
    _kill(pid)
    deadline = time.monotonic() + _REAP_SECONDS
    while time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return status
        time.sleep(0.001)
    return None


def _sweep(children: set[int]) -> int:
    """Kill and reap descendants of dead candidates, which the kernel has handed to this process."""
    survivors = 0
    file = Path(f"/proc/self/task/{os.getpid()}/children")
    while strays := [p for p in _children(file) if p not in children]:
        for pid in strays:
            survivors += 1
            _kill(pid)
            os.waitpid(pid, 0)
    return survivors


def _children(file: Path) -> list[int]:
    return [int(p) for p in file.read_text().split()] if file.is_file() else []


if __name__ == "__main__":
    main()
