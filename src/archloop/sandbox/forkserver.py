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
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch._dynamo  # noqa: F401 - the first optimiser imports it, and it writes a folder
import torch.fx
import torch.utils.checkpoint
from torch import nn

from archloop.sandbox import wire
from archloop.sandbox.confine import confine, detach, limit, readable_paths
from archloop.sandbox.harness import TrainingData, serve_candidate

_PR_SET_CHILD_SUBREAPER = 36
_REAP_SECONDS = 10.0
_LEAVE = os.WEXITED | os.WNOHANG | os.WNOWAIT


def main() -> None:
    """Serve until the control socket closes; then end all candidates and remove their folders."""
    control = socket.socket(fileno=int(sys.argv[1]))
    setup = wire.receive(control)
    children: set[int] = set()
    try:
        _warm_up()
        data = _map(setup["data"]) if setup["data"] else None
        if setup["isolation"] == "confined":
            setup["readable"] = readable_paths()
        gc.collect()
        gc.freeze()
        wire.send(control, {"ready": True})
        _serve(control, setup, data, children)
    except wire.WireError:
        for pid in children:
            _kill(pid)
        for pid in children:
            os.waitpid(pid, 0)
        _sweep(set())
        shutil.rmtree(setup["root"], ignore_errors=True)


def _serve(
    control: socket.socket, setup: dict[str, Any], data: TrainingData | None, children: set[int]
) -> None:
    """Fork and reap on request.

    Raises:
        wire.WireError: The control socket closed.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    while True:
        request, fd = wire.receive_with_fd(control)
        if request["do"] == "fork" and fd is not None:
            pid = _fork(control, fd, setup, data, request)
            children.add(pid)
            os.close(fd)
            wire.send(control, {"pid": pid})
        elif request["do"] == "reap":
            children.discard(request["pid"])
            wire.send(control, _end(request, children))


def _warm_up() -> None:
    """Import what the first optimiser imports; no backward pass, which would touch CUDA."""
    torch.set_num_threads(1)
    layer = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9)
    nn.CrossEntropyLoss()(layer(torch.zeros(2, 2)), torch.zeros(2, dtype=torch.long))
    for parameter in layer.parameters():
        parameter.grad = torch.zeros_like(parameter)
    nn.utils.clip_grad_norm_(layer.parameters(), 3)
    optimizer.step()


def _map(spec: dict[str, Any]) -> TrainingData:
    def array(name: str, dtype: Any) -> Any:
        shape = spec[name]["shape"]
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        # Private: what a candidate manages to write stays its own.
        memory = mmap.mmap(spec[name]["fd"], size, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ)
        os.close(spec[name]["fd"])
        return np.frombuffer(memory, dtype).reshape(shape)

    return TrainingData(array("images", np.uint8), array("labels", np.int64))


def _fork(
    control: socket.socket,
    fd: int,
    setup: dict[str, Any],
    data: TrainingData | None,
    request: dict[str, Any],
) -> int:
    pid = os.fork()
    if pid:
        return pid
    try:
        control.close()
        sock = socket.socket(fileno=fd)
        folder = Path(request["folder"])
        detach(folder)
        job = wire.receive(sock)
        try:
            _confine(folder, setup)
        except OSError as error:
            wire.send(sock, {"stage": "unconfined", "error": str(error)})
            return 0
        wire.send(sock, {"stage": "confined"})
        serve_candidate(sock, job, data if request["train"] else None)
    finally:
        os._exit(0)


def _confine(folder: Path, setup: dict[str, Any]) -> None:
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.init()  # type: ignore[no-untyped-call]
    limit(
        setup["memory_mb"],
        setup["disk_mb"],
        setup["threads"],
        mapped_bytes=setup["mapped_bytes"],
        memory=not cuda,
    )
    if setup["isolation"] == "confined":
        confine(folder, setup["readable"])


def _kill(pid: int) -> None:
    for kill in (os.killpg, os.kill):
        try:
            kill(pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            continue


def _end(request: dict[str, Any], others: set[int]) -> dict[str, Any]:
    """Collect a candidate, and kill its process group and whatever else it left behind.

    A candidate whose socket closed gets a moment to end by itself, so that its status says how. It
    is reaped after its group is killed, so its number cannot have been given to another process.
    """
    pid = request["pid"]
    by_itself = _wait(request["grace"], lambda: os.waitid(os.P_PID, pid, _LEAVE) is not None)
    _kill(pid)
    status = None
    if _wait(_REAP_SECONDS, lambda: os.waitid(os.P_PID, pid, _LEAVE) is not None):
        _, status = os.waitpid(pid, 0)
    _sweep(others)
    shutil.rmtree(request["folder"], ignore_errors=True)
    return {"by_itself": by_itself, "status": status}


def _wait(seconds: float, done: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + seconds
    while not done():
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.001)
    return True


def _sweep(others: set[int]) -> None:
    """Kill and reap descendants of dead candidates, which the kernel has handed to this process."""
    file = Path(f"/proc/self/task/{os.getpid()}/children")
    while strays := [p for p in _children(file) if p not in others]:
        for pid in strays:
            _kill(pid)
            os.waitpid(pid, 0)


def _children(file: Path) -> list[int]:
    return [int(p) for p in file.read_text().split()] if file.is_file() else []


if __name__ == "__main__":
    main()
