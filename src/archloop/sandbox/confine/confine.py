"""Irreversible confinement of the calling process: limits, capabilities, Landlock, seccomp."""

from __future__ import annotations

import os
import resource
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from archloop.errors import IsolationError
from archloop.sandbox.confine import bwrap, landlock, seccomp
from archloop.sandbox.confine.identity import Identities, become, keep_capabilities
from archloop.sandbox.confine.landlock import DEVICE, LIST, READ, Access, Fence
from archloop.sandbox.reaper import end_with
from archloop.types import Isolation

_OPEN_FILES = 256
_ADDRESS_SLACK_MB = 512
"""Address space in addition to the memory limit: mapped files, reservations of the allocator."""
_CPU_GRACE = 5
"""Seconds between SIGXCPU, which names the cause, and SIGKILL."""
_THREAD_ADDRESS_MB = 256
"""Address space that a thread reserves: its stack and its allocator arena."""
_SYSTEM_LIBRARIES = ("/usr/lib", "/usr/lib64", "/lib", "/lib64")
_SYSTEM_FILES = (
    "/dev/zero",
    "/dev/urandom",
    "/proc/cpuinfo",
    "/proc/meminfo",
    "/sys/devices/system/cpu",
    "/usr/share/zoneinfo",
)
_GPU_FILES = ("/proc/driver/nvidia", "/sys/bus/pci", "/sys/devices", "/etc/ld.so.cache")
_LAZY_PACKAGES = ("nvidia", "triton", "functorch", "torchgen")
"""Shared libraries that torch opens later."""


LEVELS: tuple[Isolation, ...] = ("process", "confined", "bwrap")
"""Weakest first."""


def available_isolation() -> Isolation:
    """The strongest level this machine offers."""
    return next(level for level in reversed(LEVELS) if why_not(level) is None)


def require(isolation: Isolation) -> None:
    """Check that a level is available here.

    Raises:
        IsolationError: It is not; the message says what is missing and how to accept a weaker
            level.
    """
    if reason := why_not(isolation):
        weaker = next(n for n in reversed(LEVELS[: LEVELS.index(isolation)]) if why_not(n) is None)
        raise IsolationError(
            f"sandbox.isolation: {isolation!r} is not available here ({reason}); to accept a "
            f"weaker sandbox say --set sandbox.isolation={weaker}"
        )


def why_not(isolation: Isolation) -> str | None:
    """The reason why a level is not available here; ``None``: it is."""
    if isolation == "process":
        return None
    return _why_not_confined() or (bwrap.why_not() if isolation == "bwrap" else None)


def _why_not_confined() -> str | None:
    if sys.platform != "linux":
        return "needs Linux"
    if not seccomp.supported():
        return "this processor's system calls are not known"
    if (found := landlock.abi()) < landlock.MIN_ABI:
        return f"the kernel has Landlock ABI {found}, {landlock.MIN_ABI} is needed (Linux 6.2)"
    return None


def detach(folder: Path, *, output: int | None, parent: int) -> None:
    """Set up the process: own session, end with the parent, private home and folder, no input.

    Args:
        folder: The private folder.
        output: Where stdout and stderr go; ``None``: nowhere.
        parent: Process id of the parent.
    """
    os.setsid()
    end_with(parent)
    null = os.open(os.devnull, os.O_RDWR)
    for fd, target in ((0, null), (1, output or null), (2, output or null)):
        os.dup2(target, fd)
    os.close(null)
    if output is not None:
        os.close(output)
    os.chdir(folder)
    for name in ("HOME", "TMPDIR"):
        os.environ[name] = str(folder)
    tempfile.tempdir = str(folder)


def limit(
    memory_mb: int, disk_mb: int, threads: int, *, cpu_seconds: int, memory: bool = True
) -> None:
    """Resource limits; memory counts on top of what the process holds already.

    Args:
        memory_mb: Private memory. Address space, which shared memory counts against too, is
            limited to that and what ``threads`` threads reserve.
        disk_mb: Size of one file; the main process watches their sum.
        threads: Threads the candidate is meant to use.
        cpu_seconds: Processor time of all its threads together.
        memory: ``False`` where CUDA reserves address space without measure.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (disk_mb << 20, disk_mb << 20))
    resource.setrlimit(resource.RLIMIT_NOFILE, (_OPEN_FILES, _OPEN_FILES))
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds + _CPU_GRACE))
    if memory:
        space_mb = memory_mb + _ADDRESS_SLACK_MB + threads * _THREAD_ADDRESS_MB
        for kind, held, mb in (
            (resource.RLIMIT_DATA, "VmData", memory_mb),
            (resource.RLIMIT_AS, "VmSize", space_mb),
        ):
            ceiling = _own_bytes(held) + (mb << 20)
            resource.setrlimit(kind, (ceiling, ceiling))


def _own_bytes(field: str) -> int:
    """A size of this process as the kernel counts it for resource limits."""
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text().splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) << 10
    return 0


def readable_paths() -> dict[str, Access]:
    """The paths that a network may read: system libraries, standard library, imported packages.

    Only packages that the calling process has imported are included, as some installed ones contain
    data sets with labels (scikit-learn's digits is one of the tasks).
    """
    rules = {str(path): READ for path in (*_libraries(), *_packages())}
    rules |= {path: READ for path in _SYSTEM_FILES}
    for name in ("purelib", "platlib", "stdlib", "platstdlib"):
        rules[sysconfig.get_path(name)] = LIST
    if gpus := list(Path("/dev").glob("nvidia*")):
        rules |= {str(gpu): DEVICE | LIST if gpu.is_dir() else DEVICE for gpu in gpus}
        rules |= {path: READ for path in (*_GPU_FILES, *_driver_folders())}
    rules[os.devnull] = Access.READ_FILE | Access.WRITE_FILE
    return {path: access for path, access in rules.items() if Path(path).exists()}


def _libraries() -> Iterator[Path]:
    """The standard library without the packages below it; system libraries without Python's."""
    for name in {sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")}:
        for path in Path(name).iterdir():
            if path.name not in ("site-packages", "dist-packages"):
                yield path
    folders = {Path(p).resolve() for p in (*_SYSTEM_LIBRARIES, f"{sys.base_prefix}/lib")}
    for folder in folders:
        if folder.is_dir():
            yield from (p for p in folder.iterdir() if not p.name.startswith("python"))


def _packages() -> Iterator[Path]:
    loaded = {name.partition(".")[0] for name in sys.modules} - {"archloop", "__main__"}
    for name in loaded:
        file = getattr(sys.modules.get(name), "__file__", None)
        if file is None:
            continue
        path = Path(file)
        if path.is_relative_to(sysconfig.get_path("stdlib")) and "-packages" not in file:
            continue
        yield path.parent if path.stem == "__init__" else path
        yield path.parent.parent / f"{name}.libs"
    for name in _LAZY_PACKAGES:
        yield Path(sysconfig.get_path("platlib")) / name


def _driver_folders() -> set[str]:
    """The folders of the GPU driver's loaded libraries, from which it opens more later."""
    maps = Path("/proc/self/maps")
    names = [line.split()[-1] for line in maps.read_text().splitlines()] if maps.is_file() else []
    return {str(Path(n).parent) for n in names if Path(n).name.startswith("libcuda.so")}


def change_user(ids: Identities, folder: Path, parent: int) -> None:
    """Give this process, of one thread, a user id of its own, which owns ``folder``.

    Raises:
        OSError: The kernel refused.
    """
    become(ids, folder)
    end_with(parent)  # the kernel forgets it when the user changes


def confine(
    folder: Path, fence: Fence, start: Callable[[], None], *, gpu: bool = False, kept: int = 0
) -> int | None:
    """No capabilities, Landlock (write only ``folder``), seccomp; irreversible.

    Args:
        folder: The private one.
        fence: The files that may be reached.
        start: Called after Landlock, which threads started earlier would escape, and before
            seccomp, which would block the initialisation of a GPU.
        gpu: ``start`` initialises one.
        kept: Bits of capabilities that are kept.

    Returns:
        The descriptor of refused system calls, as of :func:`seccomp.install`.

    Raises:
        OSError: The kernel refused a step.
    """
    keep_capabilities(kept)
    seccomp.no_new_privileges()
    landlock.restrict(fence, folder)
    start()
    return seccomp.install(gpu=gpu)
