"""The main process's client of the fork server: starts it and asks it for processes."""

from __future__ import annotations

import fcntl
import logging
import math
import mmap
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from archloop.config import SandboxConfig
from archloop.errors import SandboxError
from archloop.sandbox import wire
from archloop.sandbox.confine import bwrap
from archloop.sandbox.confine.private_folder import remove_folder
from archloop.sandbox.host.gpus import Gpus
from archloop.sandbox.host.refusals import Refusals, TooManyError
from archloop.sandbox.host.watch import Output
from archloop.text import one_line
from archloop.types import TaskData

_START_SECONDS = 120.0
_ANSWER_SECONDS = 60.0
_CLOSE_SECONDS = 5.0
_ENVIRONMENT = ("PATH", "LANG", "LC_ALL", "CUDA_VISIBLE_DEVICES", "LD_LIBRARY_PATH")
"""Environment variables that a network may see; any other may be a secret."""
_LOG_CHARACTERS = 2000
_PASSABLE = 0o711
"""Mode of the folders above the private ones: other users may pass, not look."""
_SIZE_SEALS = fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK if hasattr(fcntl, "F_SEAL_GROW") else 0

logger = logging.getLogger(__name__)


class ServerLostError(Exception):
    """The fork server died or stopped answering."""

    def __init__(self, reason: str, *, while_running: bool = False) -> None:
        super().__init__(reason)
        self.while_running = while_running
        """Whether the candidate's code may have run before that."""


@dataclass
class Child:
    """A process of a candidate, or its feeder."""

    pid: int
    """Process id in the fork server's namespace."""
    pidfd: int
    """pidfd of the process, which unlike its id is never reused; -1 if the system has none."""
    sock: socket.socket
    folder: Path
    output: Output
    gpu: int | None = None
    """The GPU that it was assigned."""
    refusals: Refusals = field(default_factory=Refusals)

    @property
    def host_pid(self) -> int:
        """Its process id in the main process's namespace."""
        return _host_pid(self.pidfd, self.pid)

    def wait(self, seconds: float) -> bool:
        """Whether the process ends by itself within so many seconds."""
        if self.pidfd < 0:
            return False
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            poller = select.poll()
            for fd in (self.pidfd, *self.refusals.fds):
                poller.register(fd, select.POLLIN)
            ready = dict(poller.poll(1000 * left))
            if self.pidfd in ready:
                return True
            try:
                self.refusals.answer()
            except TooManyError:
                return False
        return False

    def kill(self) -> None:
        """Kill the process; the fork server removes what it leaves behind."""
        if self.pidfd >= 0:
            try:
                signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
            except ProcessLookupError:
                return

    def close(self) -> None:
        """Close the descriptors of the process; its output is kept."""
        self.output.read()
        self.output.close()
        self.refusals.close()
        self.sock.close()
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1


def _host_pid(pidfd: int, pid: int) -> int:
    """The id, in this process's namespace, of a process with an id in the fork server's."""
    if pidfd >= 0:
        for line in Path(f"/proc/self/fdinfo/{pidfd}").read_text().splitlines():
            if line.startswith("Pid:"):
                return int(line.split()[1])
    return pid


@dataclass(frozen=True)
class Ended:
    """How a child ended."""

    by_itself: bool
    """``False``: it was killed by the main process, so its exit status means nothing."""
    status: int | None
    """Exit status as returned by ``os.waitpid``."""
    left_processes: int
    """Number of processes that it left behind, which were killed."""


def shared_memory(array: NDArray[Any]) -> int:
    """A file descriptor of sealed, read-only memory with an array's bytes."""
    contiguous = np.ascontiguousarray(array)
    fd = _memory(contiguous.nbytes)
    with mmap.mmap(fd, max(contiguous.nbytes, 1)) as memory:
        memory[: contiguous.nbytes] = contiguous.tobytes()
    if hasattr(os, "memfd_create"):
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SIZE_SEALS | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL)
    return fd


def empty_memory(size: int) -> int:
    """A file descriptor of shared memory whose size is sealed."""
    fd = _memory(size)
    if hasattr(os, "memfd_create"):
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SIZE_SEALS | fcntl.F_SEAL_SEAL)
    return fd


def _memory(size: int) -> int:
    if not hasattr(os, "memfd_create"):
        return _unnamed_file(size)
    fd = os.memfd_create("archloop", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.truncate(fd, max(size, 1))
    return fd


def _unnamed_file(size: int) -> int:
    with tempfile.TemporaryFile() as file:
        file.truncate(max(size, 1))
        return os.dup(file.fileno())


def _shared_training_data(task: TaskData | None) -> dict[str, Any]:
    arrays: dict[str, NDArray[Any]] = {}
    if task is not None:
        arrays = {"images": task.train_images, "labels": task.train_labels}
    return {n: {"fd": shared_memory(a), "shape": list(a.shape)} for n, a in arrays.items()}


def _cpu_seconds(config: SandboxConfig) -> int:
    """CPU seconds that a candidate's process can use within its deadlines."""
    seconds = config.build_seconds + max(config.train_seconds, config.predict_seconds)
    return math.ceil(seconds * config.threads) + 1


class ForkServer:
    """One fork server process; every method may be called from many threads."""

    def __init__(self, config: SandboxConfig, task: TaskData | None) -> None:
        self._config = config
        self._lock = threading.Lock()
        self._root = Path(tempfile.mkdtemp(prefix="archloop-sandbox-"))
        (self._root / "home").mkdir()
        self.candidates = self._root / "candidates"
        self.candidates.mkdir()
        for folder in (self._root, self.candidates):
            folder.chmod(_PASSABLE)
        (self._root / "home").chmod(0o700)
        self._count = 0
        self._start(task)

    def _start(self, task: TaskData | None) -> None:
        data = _shared_training_data(task)
        self._control, theirs = socket.socketpair()
        passed = [spec["fd"] for spec in data.values()]
        command = [sys.executable, "-P", "-m", "archloop.sandbox.reaper"]
        command += [str(theirs.fileno()), str(self._root)]
        if self._config.isolation == "bwrap":
            command = bwrap.wrap(command, self._root)
        with tempfile.TemporaryFile() as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
                env=self._environment(),
                pass_fds=[theirs.fileno(), *passed],
                start_new_session=True,
                cwd=self._root,
            )
            theirs.close()
            self.pid, self._pidfd = self._process.pid, -1
            """Process id and pidfd of the server."""
            try:
                self._set_up(data)
            except ServerLostError:
                self.close()
                log.seek(0)
                lines = log.read()[-_LOG_CHARACTERS:].decode("utf-8", "replace").splitlines()
                reason = one_line(lines[-1]) if lines else "it said nothing"
                raise SandboxError(f"the fork server did not start: {reason}") from None
            finally:
                for fd in passed:
                    os.close(fd)

    def _set_up(self, data: dict[str, Any]) -> None:
        """Tell the new server what it serves, and wait until it is ready.

        Raises:
            ServerLostError: It ended, or does not answer.
        """
        setup = {
            "data": data,
            "root": str(self._root),
            "candidates": str(self.candidates),
            "isolation": self._config.isolation,
            "memory_mb": self._config.memory_mb,
            "disk_mb": self._config.disk_mb,
            "threads": self._config.threads,
            "cpu_seconds": _cpu_seconds(self._config),
        }
        ready, pidfd = self._ask_with_fd(setup, (), _START_SECONDS)
        self._gpus = Gpus(ready["gpus"])
        self._pidfd = pidfd
        self.pid = _host_pid(pidfd, self._process.pid)
        if "one_user" in ready:
            text = "networks run as root, without capabilities, and not as users of their own: %s"
            logger.warning(text, ready["one_user"])

    def _environment(self) -> dict[str, str]:
        """The environment variables of the server and its candidates.

        It starts with one thread, as a process with threads must not fork; hashes are the same each
        time; ``torch.compile`` leaves a network as it is, as the sandbox starts no compiler. The C
        library keeps freed memory for the next step of training: giving it back and asking for it
        again was a sixth of an epoch.
        """
        return {k: os.environ[k] for k in _ENVIRONMENT if k in os.environ} | {
            "HOME": str(self._root / "home"),
            "TMPDIR": str(self._root / "home"),
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
            "MALLOC_MMAP_MAX_": "0",
            "MALLOC_TRIM_THRESHOLD_": str(512 << 20),
            "PYTHONHASHSEED": "0",
            "TORCHDYNAMO_DISABLE": "1",
            "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
            "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
            "HF_HUB_OFFLINE": "1",
            "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
            "PYTHONDONTWRITEBYTECODE": "1",
        }

    def fork(self, *, feed: bool = False, meta: bool = False) -> Child:
        """Start a process that confines itself and waits for its job, or a feeder.

        Args:
            feed: Start a feeder.
            meta: It computes on the meta device, so it needs no GPU.

        Raises:
            ServerLostError: The server does not answer.
        """
        ours, theirs = socket.socketpair()
        read, write = os.pipe()
        output, gpu = Output(read), None
        try:
            with self._lock:
                self._count += 1
                gpu = None if feed or meta else self._gpus.take()
                folder = self.candidates / f"{self._count:06d}"
                folder.mkdir()
                role = "feed" if feed else "candidate"
                request = {"do": "fork", "role": role, "folder": str(folder), "gpu": gpu}
                fds = (theirs.fileno(), write)
                answer, pidfd = self._ask_with_fd(request, fds, _ANSWER_SECONDS)
        except (OSError, ServerLostError) as error:
            ours.close()
            output.close()
            with self._lock:
                self._gpus.give_back(gpu)
            raise ServerLostError(str(error)) from None
        finally:
            theirs.close()
            os.close(write)
        return Child(answer["pid"], pidfd, ours, folder, output, gpu)

    def reap(self, child: Child, *, grace: float = 0.0) -> Ended:
        """End a child and all processes that it left behind.

        Args:
            child: From :meth:`fork`; it is closed.
            grace: Seconds to wait for the child to end by itself.

        Raises:
            ServerLostError: The server does not answer; the child is dead all the same.
        """
        by_itself = grace > 0 and child.wait(grace)
        child.kill()
        request = {"do": "reap", "pid": child.pid, "folder": str(child.folder)}
        try:
            with self._lock:
                self._gpus.give_back(child.gpu)
                answer = self._ask(request)
        except ServerLostError as error:
            raise ServerLostError(str(error), while_running=True) from None
        finally:
            child.kill()
            child.close()
        status = answer["status"]
        return Ended(
            by_itself, status if isinstance(status, int) else None, answer["left_processes"]
        )

    def _ask_with_fd(
        self, request: dict[str, Any], fds: tuple[int, ...], seconds: float
    ) -> tuple[dict[str, Any], int]:
        """The answer, and the pidfd that comes with it, or -1 where the system has none."""
        try:
            wire.send(self._control, request, fds)
            self._control.settimeout(seconds)
            answer, found = wire.receive_with_fds(self._control)
        except wire.WireError as error:
            raise ServerLostError(str(error)) from None
        finally:
            self._control.settimeout(None)
        return answer, found[0] if found else -1

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        try:
            wire.send(self._control, request)
            return wire.receive(self._control, time.monotonic() + _ANSWER_SECONDS)
        except (wire.WireError, wire.DeadlineError) as error:
            raise ServerLostError(str(error)) from None

    def close(self) -> None:
        """End the server; its children die with it."""
        try:
            self._control.shutdown(socket.SHUT_RDWR)
        except OSError:
            self._control.close()
        # First the fork server, so that its parent ends and removes what is left, then that too.
        for end in (None, self._kill, self._process.kill):
            if end is not None:
                end()
            try:
                self._process.wait(_CLOSE_SECONDS)
                break
            except subprocess.TimeoutExpired:
                continue
        with self._lock:
            self._control.close()
            if self._pidfd >= 0:
                os.close(self._pidfd)
                self._pidfd = -1
        remove_folder(self._root)

    def _kill(self) -> None:
        if self._pidfd >= 0:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
