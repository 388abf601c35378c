"""The fork server: a process with torch imported that forks a child for each job.

It stays single-threaded and never runs generated code itself. The main process passes it one end of
a socket for every child, so results do not go through this process. On request it reaps a child and
kills all processes that the candidate left behind (it is the subreaper of its descendants). What is
there when it ends is for its parent to end (:mod:`archloop.sandbox.reaper`).
Training images are open files here; only the children that feed batches map them, candidates close
them first.
"""

from __future__ import annotations

import ctypes
import gc
import mmap
import os
import socket
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch._dynamo  # noqa: F401 - the first optimiser imports it, and it writes a folder
import torch.fx
import torch.utils.checkpoint
from torch import nn

from archloop.novelty.graph import Graph, sketch_graph
from archloop.novelty.macs import macs
from archloop.sandbox import wire
from archloop.sandbox.candidate import meta
from archloop.sandbox.candidate.harness import serve_candidate
from archloop.sandbox.candidate.network import seed_everything
from archloop.sandbox.confine import huge_pages, landlock
from archloop.sandbox.confine.confine import (
    change_user,
    confine,
    detach,
    limit,
    readable_paths,
)
from archloop.sandbox.confine.identity import Identities, identities
from archloop.sandbox.confine.landlock import READ
from archloop.sandbox.confine.private_folder import remove_folder
from archloop.sandbox.feed.feed import TrainingData, serve_feed
from archloop.sandbox.host.gpus import show_only
from archloop.sandbox.job import CandidateJob
from archloop.sandbox.reaper import become_subreaper, kill, sweep

_IMAGE = [["1N", 3, 4, 4], "float32"]
_SMALL: Graph = {
    "nodes": [
        ["input", [], [_IMAGE]],
        ["parameter", [["trainable", True]], [[[3, 3, 1, 1], "float32"]]],
        [
            "convolution",
            [
                ["input", {"input": [0, 0]}],
                ["weight", {"input": [1, 0]}],
                ["bias", None],
                ["stride", [1, 1]],
                ["padding", [0, 0]],
                ["dilation", [1, 1]],
                ["transposed", False],
                ["output_padding", [0, 0]],
                ["groups", 1],
            ],
            [_IMAGE],
        ],
        ["relu", [["self", {"input": [2, 0]}]], [_IMAGE]],
        ["add", [["self", {"input": [3, 0]}], ["other", {"input": [0, 0]}]], [_IMAGE]],
        ["view", [["self", {"input": [4, 0]}], ["size", ["1N", 48]]], [[["1N", 48], "float32"]]],
    ],
    "output": [5, 0],
}
"""A graph for the first time that graphs are compared."""
_WARM = 20
"""Times until the interpreter has adapted; a child would do it again for each network."""
_REAP_SECONDS = 10.0
_HARNESS_FAULT = 70
"""Exit code of a child that failed outside the network's code; its output says why."""
_LEAVE = os.WEXITED | os.WNOHANG | os.WNOWAIT


def main(control_fd: int) -> None:
    """Serve until the control socket, of this descriptor, closes."""
    with socket.socket(fileno=control_fd) as control, suppress(wire.WireError):
        setup = wire.receive(control)
        _warm_up()
        private = setup["candidates"]
        readable = readable_paths() if sys.platform == "linux" else {}
        found = identities([p for p, access in readable.items() if access & READ], private)
        setup["ids"] = None if isinstance(found, str) else found
        if setup["isolation"] != "process":
            setup["fence"] = landlock.fence(readable, Path(private))
        gc.collect()
        gc.freeze()
        huge_pages.collapse()
        ready: dict[str, Any] = {"ready": True, "gpus": torch.cuda.device_count()}
        if isinstance(found, str):
            ready["one_user"] = found
        _answer(control, os.getpid(), ready)
        _serve(control, setup)


def _serve(control: socket.socket, setup: dict[str, Any]) -> None:
    """Fork and reap on request.

    Raises:
        wire.WireError: The control socket closed.
    """
    become_subreaper()
    children: set[int] = set()
    while True:
        # A request to fork comes with the child's socket and where its output goes.
        request, fds = wire.receive_with_fds(control)
        if request["do"] == "fork":
            pid = _fork(control, fds, setup, request)
            children.add(pid)
            for fd in fds:
                os.close(fd)
            _answer(control, pid, {"pid": pid})
        elif request["do"] == "reap":
            children.discard(request["pid"])
            wire.send(control, _end(request, children))


def _answer(control: socket.socket, pid: int, answer: dict[str, Any]) -> None:
    """An answer with the pidfd of a process, which unlike its id is valid in every namespace."""
    if not hasattr(os, "pidfd_open"):
        wire.send(control, answer)
        return
    pidfd = os.pidfd_open(pid)
    wire.send(control, answer, (pidfd,))
    os.close(pidfd)


def _warm_up() -> None:
    """Do the first steps of every network once; no backward pass, which would initialise CUDA.

    This triggers the imports of the first optimiser and the first random number, and fills the
    caches of a forward pass on the meta device.
    """
    torch.set_num_threads(1)
    if torch.cuda.is_available():
        # Loaded, not started: a confined candidate could not read this library.
        ctypes.CDLL("libcuda.so.1")
    meta.install()
    seed_everything(0)
    with torch.device("meta"), torch.no_grad():
        features = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2))
        head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(), nn.Linear(8, 2))
        head(features(torch.zeros(2, 3, 8, 8)))
    layer = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9)
    nn.CrossEntropyLoss()(layer(torch.zeros(2, 2)), torch.zeros(2, dtype=torch.long))
    for parameter in layer.parameters():
        parameter.grad = torch.zeros_like(parameter)
    nn.utils.clip_grad_norm_(layer.parameters(), 3)
    optimizer.step()
    for _ in range(_WARM):
        sketch_graph(_SMALL)
        macs(_SMALL)


def _map(spec: dict[str, Any]) -> TrainingData:
    def array(name: str, dtype: Any) -> Any:
        shape = spec[name]["shape"]
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        # torch requires a writable mapping. It is private: a write would not change another
        # process's data.
        memory = mmap.mmap(spec[name]["fd"], size, flags=mmap.MAP_PRIVATE)
        return np.frombuffer(memory, dtype).reshape(shape)

    return TrainingData(array("images", np.uint8), array("labels", np.int64))


def _fork(
    control: socket.socket, fds: list[int], setup: dict[str, Any], request: dict[str, Any]
) -> int:
    server = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    try:
        control.close()
        sock = socket.socket(fileno=fds[0])
        folder = Path(request["folder"])
        detach(folder, output=fds[1] if len(fds) > 1 else None, parent=server)
        if request["role"] == "feed":
            serve_feed(sock, _map(setup["data"]))
            return 0
        for spec in setup["data"].values():
            os.close(spec["fd"])
        job = CandidateJob.from_wire(wire.receive(sock))
        try:
            listener = _confine(folder, setup, request["gpu"], server)
        except (OSError, RuntimeError) as error:  # CUDA raises RuntimeError
            wire.send(sock, {"stage": "unconfined", "error": str(error)})
            return 0
        wire.send(sock, {"stage": "confined"}, () if listener is None else (listener,))
        if listener is not None:
            os.close(listener)
        serve_candidate(sock, job)
    except BaseException:  # noqa: BLE001 - this process must not go on as a second fork server
        traceback.print_exc()
        os._exit(_HARNESS_FAULT)
    finally:
        os._exit(0)


def _confine(folder: Path, setup: dict[str, Any], gpu: int | None, server: int) -> int | None:
    """Confine this process; returns the descriptor of refused system calls, if there is one."""
    show_only(gpu)
    limit(
        setup["memory_mb"],
        setup["disk_mb"],
        setup["threads"],
        cpu_seconds=setup["cpu_seconds"],
        memory=gpu is None,
    )
    ids: Identities | None = setup["ids"]
    if ids is not None:
        change_user(ids, folder, server)

    def start() -> None:
        if gpu is not None:
            _start_gpu(setup["memory_mb"] << 20)

    if setup["isolation"] == "process":
        start()
        return None
    kept = 0 if ids is None else ids.capabilities
    return confine(folder, setup["fence"], start, gpu=gpu is not None, kept=kept)


def _start_gpu(memory: int) -> None:
    """Select the GPU, limit its memory and switch on deterministic operators.

    Operators without a deterministic version only warn, in the candidate's output.
    """
    torch.cuda.init()  # type: ignore[no-untyped-call]
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, memory / total))
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def _end(request: dict[str, Any], others: set[int]) -> dict[str, Any]:
    """Reap a child, and kill its process group and all other processes that it left behind.

    It is reaped after its group is killed, so its process id cannot have been reused.
    """
    pid = request["pid"]
    kill(pid)
    status = None
    if _wait(_REAP_SECONDS, lambda: os.waitid(os.P_PID, pid, _LEAVE) is not None):
        _, status = os.waitpid(pid, 0)
    left_processes = sweep(others)
    remove_folder(Path(request["folder"]))
    return {"status": status, "left_processes": left_processes}


def _wait(seconds: float, done: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + seconds
    while not done():
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.0005)
    return True
