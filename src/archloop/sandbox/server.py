"""The main process's handle on the fork server: start it, ask it for a process, replace it."""

from __future__ import annotations

import mmap
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from archloop.config import SandboxConfig
from archloop.errors import SandboxError
from archloop.sandbox import wire
from archloop.types import TaskData

_START_SECONDS = 120.0
_ANSWER_SECONDS = 60.0
_ENVIRONMENT = ("PATH", "LANG", "LC_ALL", "CUDA_VISIBLE_DEVICES", "LD_LIBRARY_PATH")
"""Variables a network may see; anything else may be a secret."""


class ServerLostError(Exception):
    """The fork server died or stopped answering."""


@dataclass
class Child:
    """A candidate's process."""

    pid: int
    sock: socket.socket
    folder: Path


def shared_memory(array: NDArray[Any]) -> int:
    """A file descriptor of anonymous memory that holds an array's bytes."""
    contiguous = np.ascontiguousarray(array)
    fd = os.memfd_create("archloop") if hasattr(os, "memfd_create") else _unlinked_file()
    os.truncate(fd, max(contiguous.nbytes, 1))
    with mmap.mmap(fd, max(contiguous.nbytes, 1)) as memory:
        np.frombuffer(memory, contiguous.dtype, contiguous.size)[:] = contiguous.ravel()
    return fd


def _unlinked_file() -> int:
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


class ForkServer:
    """One fork server process; every method may be called from many threads."""

    def __init__(self, config: SandboxConfig, task: TaskData | None) -> None:
        self._config = config
        self._lock = threading.Lock()
        self._root = Path(tempfile.mkdtemp(prefix="archloop-sandbox-"))
        (self._root / "home").mkdir()
        self.candidates = self._root / "candidates"
        self.candidates.mkdir()
        self._count = 0
        fds: dict[str, Any] = {}
        if task is not None:
            for name, array in (("images", task.train_images), ("labels", task.train_labels)):
                fds[name] = {"fd": shared_memory(array), "shape": list(array.shape)}
        self._start(fds)

    def _start(self, data: dict[str, Any]) -> None:
        self._control, theirs = socket.socketpair()
        passed = [spec["fd"] for spec in data.values()]
        environment = {k: os.environ[k] for k in _ENVIRONMENT if k in os.environ}
        environment |= {
            "HOME": str(self._root / "home"),
            "TMPDIR": str(self._root / "home"),
            "OMP_NUM_THREADS": str(self._config.threads),
            "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
            "HF_HUB_OFFLINE": "1",
            "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        self._process = subprocess.Popen(
            [sys.executable, "-m", "archloop.sandbox.forkserver", str(theirs.fileno())],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=environment,
            pass_fds=[theirs.fileno(), *passed],
            start_new_session=True,
            cwd=self._root,
        )
        theirs.close()
        setup = {
            "data": data,
            "isolation": self._config.isolation,
            "memory_mb": self._config.memory_mb,
            "disk_mb": self._config.disk_mb,
        }
        try:
            wire.send(self._control, setup)
            wire.receive(self._control, time.monotonic() + _START_SECONDS)
        except (wire.WireError, wire.DeadlineError, OSError):
            self.close()
            raise SandboxError("the fork server did not start") from None
        finally:
            for fd in passed:
                os.close(fd)

    @property
    def pid(self) -> int:
        """The server's process id."""
        return self._process.pid

    def fork(self, *, train: bool) -> Child:
        """A new, confined child that waits for its job.

        Raises:
            ServerLostError: The server does not answer.
        """
        ours, theirs = socket.socketpair()
        with self._lock:
            self._count += 1
            folder = self.candidates / f"{self._count:06d}"
            folder.mkdir()
            request = {"do": "fork", "train": train, "folder": str(folder)}
            try:
                answer = self._ask(request, (theirs.fileno(),))
            finally:
                theirs.close()
        return Child(answer["pid"], ours, folder)

    def reap(self, child: Child, *, grace: float = 0.0) -> int | None:
        """End a child and all it left behind; its wait status.

        Args:
            child: From :meth:`fork`; its socket is closed.
            grace: Seconds it may take to end by itself.

        Raises:
            ServerLostError: The server does not answer.
        """
        child.sock.close()
        request = {"do": "reap", "pid": child.pid, "grace": grace, "folder": str(child.folder)}
        with self._lock:
            status = self._ask(request)["status"]
        return status if isinstance(status, int) else None

    def _ask(self, request: dict[str, Any], fds: tuple[int, ...] = ()) -> dict[str, Any]:
        try:
            wire.send(self._control, request, fds)
            return wire.receive(self._control, time.monotonic() + _ANSWER_SECONDS)
        except (wire.WireError, wire.DeadlineError, OSError) as error:
            raise ServerLostError(str(error)) from None

    def close(self) -> None:
        """End the server; its children die with it."""
        self._control.close()
        try:
            self._process.wait(5.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        shutil.rmtree(self._root, ignore_errors=True)
