"""Confinement of the calling process, for good: limits, capabilities, Landlock, seccomp."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys
import sysconfig
from pathlib import Path

from archloop.errors import IsolationError
from archloop.sandbox import seccomp
from archloop.types import Isolation

_PR_SET_PDEATHSIG = 1
_SYS_CAPSET = {"x86_64": 126, "aarch64": 91}
_CAPABILITY_VERSION_3 = 0x20080522
_OPEN_FILES = 256


def available_isolation() -> Isolation:
    """The strongest level this machine offers."""
    return "confined" if _why_not_confined() is None else "process"


def require(isolation: Isolation) -> None:
    """Refuse a level that is not available here.

    Raises:
        IsolationError: Saying what is missing and which flag accepts less.
    """
    if isolation == "confined" and (reason := _why_not_confined()):
        raise IsolationError(
            f"sandbox.isolation: 'confined' is not available here ({reason}); to accept a weaker "
            "sandbox say --set sandbox.isolation=process"
        )


def _why_not_confined() -> str | None:
    if sys.platform != "linux":
        return "needs Linux"
    if not seccomp.supported():
        return "this processor's system calls are not known"
    try:
        import sandlock
    except ImportError:
        return "the sandlock package is not installed"
    found, needed = sandlock.landlock_abi_version(), sandlock.min_landlock_abi()
    if found < needed:
        return f"the kernel has Landlock ABI {found}, {needed} is needed"
    return None


def detach(folder: Path) -> None:
    """Own session and process group, death with the parent, a private home and working folder."""
    os.setsid()
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    os.chdir(folder)
    for name in ("HOME", "TMPDIR"):
        os.environ[name] = str(folder)


def limit(memory_mb: int, disk_mb: int, *, memory: bool = True) -> None:
    """Resource limits; memory counts on top of what the process holds already."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (disk_mb << 20, disk_mb << 20))
    resource.setrlimit(resource.RLIMIT_NOFILE, (_OPEN_FILES, _OPEN_FILES))
    if memory:
        ceiling = _data_bytes() + (memory_mb << 20)
        resource.setrlimit(resource.RLIMIT_DATA, (ceiling, ceiling))


def _data_bytes() -> int:
    """Private writable memory of this process (VmData), which RLIMIT_DATA counts."""
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text().splitlines():
            if line.startswith("VmData:"):
                return int(line.split()[1]) << 10
    return 0


def readable_paths() -> list[str]:
    """What a network may read: the interpreter, its packages and the system's libraries."""
    paths = {sys.prefix, sys.base_prefix, *sysconfig.get_paths().values()}
    paths |= {
        "/usr/lib",
        "/usr/lib64",
        "/lib",
        "/lib64",
        "/usr/share/zoneinfo",
        "/sys/devices/system/cpu",
    }
    paths |= {"/dev/null", "/dev/zero", "/dev/urandom", "/proc/cpuinfo", "/proc/meminfo"}
    return sorted(p for p in paths if Path(p).exists())


def confine(folder: Path) -> None:
    """No capabilities, Landlock (write only ``folder``), seccomp; irreversible.

    Raises:
        OSError: The kernel refused a step.
    """
    import sandlock

    gpu = [str(p) for p in Path("/dev").glob("nvidia*")]
    _drop_capabilities()
    sandlock.confine(
        sandlock.Sandbox(fs_readable=readable_paths(), fs_writable=[str(folder), "/dev/null", *gpu])
    )
    seccomp.install()


def _drop_capabilities() -> None:
    """Give up every capability, so that even root cannot raise its limits again."""
    import platform

    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    none = (ctypes.c_uint32 * 6)()
    libc = ctypes.CDLL(None, use_errno=True)
    number = _SYS_CAPSET[platform.machine()]
    if libc.syscall(number, ctypes.byref(header), ctypes.byref(none)):
        raise OSError(ctypes.get_errno(), "capset refused")
