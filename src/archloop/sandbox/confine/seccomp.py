"""A seccomp filter that allows the system calls that torch needs, and refuses all others.

The list was recorded with strace from 40 LEMUR networks and from networks that use threads, files,
TorchScript, profilers and signals (docs/lab-notes.md). A refused call fails with EPERM, so Python
raises PermissionError, and the main process learns its name: the kernel holds the call until the
main process has noted and answered it (:mod:`archloop.sandbox.host.refusals`).
Written as classic BPF, as no maintained Python binding installs without a system library.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct

from archloop.sandbox.confine.calls import NUMBERS

PR_SET_NO_NEW_PRIVS = 38
_SET_MODE_FILTER = 1
_FLAG_TSYNC, _FLAG_NEW_LISTENER, _FLAG_TSYNC_ESRCH = 1, 8, 16
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
NOTIFY, REFUSE = 0x7FC00000, _ERRNO | errno.EPERM
"""Answers of a filter to a refused call: the main process's, or EPERM at once."""
_KILL = 0x80000000
_X32_BIT = 0x40000000

# Offsets in struct seccomp_data (linux/seccomp.h), little-endian; an argument's halves are apart.
_NR, _ARCH, _ARGUMENTS = 0, 4, 16
# Classic BPF (linux/bpf_common.h).
_LOAD, _AND, _JEQ, _JGT, _JSET, _RET = 0x20, 0x54, 0x15, 0x25, 0x45, 0x06
_AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}

_GROUPS = {
    "memory": "brk mmap munmap mprotect mremap msync",
    "threads, and the end of the process": "futex rseq set_robust_list sched_yield "
    "sched_getaffinity sched_get_priority_max sched_get_priority_min exit exit_group",
    "signals": "rt_sigaction rt_sigprocmask rt_sigreturn rt_sigpending rt_sigtimedwait sigaltstack "
    "alarm getitimer setitimer pause restart_syscall",
    "time and chance": "clock_gettime clock_getres clock_nanosleep nanosleep gettimeofday time "
    "times getrandom",
    "what the process is": "getpid gettid getppid getpgrp getuid geteuid getresuid getgid getegid "
    "getresgid getgroups getcpu uname getrusage getrlimit",
    "files; Landlock decides which can be opened": "open openat close close_range dup dup2 dup3 "
    "read write readv writev pread64 pwrite64 preadv pwritev lseek sendfile copy_file_range fsync "
    "fdatasync ftruncate truncate poll ppoll select pselect6",
    "folders and names": "stat lstat fstat newfstatat statx access faccessat faccessat2 readlink "
    "readlinkat getcwd chdir fchdir getdents64 mkdir mkdirat rmdir unlink unlinkat rename renameat "
    "renameat2",
    "the sockets to the main process and the feeder": "sendto sendmsg recvfrom recvmsg getsockname "
    "getsockopt",
}
ALLOWED = frozenset(name for names in _GROUPS.values() for name in names.split())
"""Allowed whatever the arguments."""

_OF_A_GPU = """
eventfd2 pipe2 epoll_create1 epoll_ctl epoll_wait epoll_pwait get_mempolicy mbind mlock munlock
sysinfo
"""
ALLOWED_ON_A_GPU = frozenset(_OF_A_GPU.split())
"""Allowed besides to a process that computes on a GPU, for the driver's threads. Written from what
CUDA programs use once they run, not recorded: a call that is missing shows in the flags of honest
networks there."""

ONLY_ITSELF = ("kill", "tgkill", "sched_setaffinity")
"""Allowed only if the first argument is 0 or the process's own id."""

COMMANDS = {
    # F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_SETFL, F_DUPFD_CLOEXEC. Not record locks and leases,
    # which others can notice, and not signals from the kernel to a chosen process.
    "fcntl": (1, (0, 1, 2, 3, 4, 1030)),
    # TCGETS, TIOCGWINSZ, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX
    "ioctl": (1, (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)),
    # PR_SET_NAME, PR_GET_NAME, PR_SET_VMA. Not PR_SET_PDEATHSIG.
    "prctl": (0, (15, 16, 0x53564D41)),
    # MADV_NORMAL to MADV_DONTNEED, FREE, (NO)HUGEPAGE, (DO)DONTDUMP, WIPE- and KEEPONFORK, GUARD.
    # Not MADV_COLD and MADV_PAGEOUT, which move pages of files.
    "madvise": (2, (0, 1, 2, 3, 4, 8, 14, 15, 16, 17, 18, 19, 102, 103)),
    # POSIX_FADV_NORMAL to POSIX_FADV_WILLNEED. Not POSIX_FADV_DONTNEED, which drops cached pages.
    "fadvise64": (3, (0, 1, 2, 3)),
}
"""Allowed with these values of one argument: its position and the values."""

_THREAD, _OF_A_THREAD = 0x00010000, 0x007D0F00
"""CLONE_THREAD; the flags with which the C library starts a thread."""
_NVIDIA_IOCTL = 0x46
"""Magic byte of the commands of /dev/nvidia* (nv-ioctl-numbers.h)."""
_UVM_COMMANDS = (0x30000001, 0x30000002)
"""UVM_INITIALIZE and UVM_DEINITIALIZE (uvm_linux_ioctl.h); other commands are below 256."""

Rule = tuple[int, int, int, int]


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_char_p)]


def supported() -> bool:
    """Whether the system call numbers of this processor are known here."""
    return platform.machine() in _AUDIT_ARCH


def no_new_privileges() -> None:
    """Set no_new_privs for the calling thread, which Landlock and seccomp require.

    Raises:
        OSError: The kernel refused.
    """
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "PR_SET_NO_NEW_PRIVS refused")


def install(*, gpu: bool = False) -> int | None:
    """Filter the system calls of all present and future threads of this process, irreversibly.

    All of them must have no_new_privs set.

    Args:
        gpu: It computes on a GPU.

    Returns:
        The descriptor on which refused calls arrive and wait for their answer; ``None`` where the
        system reports none, as inside another sandbox that listens itself. Calls are refused then
        too.

    Raises:
        OSError: The kernel refused.
    """
    flags = _FLAG_TSYNC | _FLAG_TSYNC_ESRCH
    try:
        return enforce(flags | _FLAG_NEW_LISTENER, assemble(os.getpid(), NOTIFY, gpu=gpu))
    except OSError as error:
        if error.errno not in (errno.EBUSY, errno.EINVAL, errno.ENOSYS):
            raise
    enforce(flags, assemble(os.getpid(), REFUSE, gpu=gpu))
    return None


def enforce(flags: int, code: bytes) -> int:
    """Install a filter's program; see seccomp(2) for the flags and the result.

    Raises:
        OSError: The kernel refused.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    program = _Program(len(code) // 8, code)
    number = getattr(NUMBERS["seccomp"], platform.machine())
    found = int(libc.syscall(number, _SET_MODE_FILTER, flags, ctypes.byref(program)))
    if found < 0:
        raise OSError(ctypes.get_errno(), "seccomp refused")
    return found


def assemble(pid: int, refuse: int, *, gpu: bool, machine: str | None = None) -> bytes:
    """The filter's program.

    Args:
        pid: Of the process.
        refuse: What the filter answers to a call that is not allowed.
        gpu: It computes on a GPU.
        machine: The processor; ``None``: this one.
    """
    machine = machine or platform.machine()
    rules: list[Rule] = [
        (_LOAD, 0, 0, _ARCH),
        (_JEQ, 1, 0, _AUDIT_ARCH[machine]),
        (_RET, 0, 0, _KILL),
        (_LOAD, 0, 0, _NR),
        (_JSET, 0, 1, _X32_BIT),
        (_RET, 0, 0, _KILL),
    ]

    def case(name: str, *body: Rule) -> None:
        """What happens to one call; nothing is said of one that the architecture lacks."""
        number: int | None = getattr(NUMBERS[name], machine)
        if number is not None:
            rules.extend([(_JEQ, 0, len(body), number), *body])

    allow, deny = (_RET, 0, 0, _ALLOW), (_RET, 0, 0, refuse)
    for name in sorted(ALLOWED | (ALLOWED_ON_A_GPU if gpu else frozenset())):
        case(name, allow)
    # glibc starts threads with clone3 and falls back to clone, whose flags a filter can see.
    case("clone3", (_RET, 0, 0, _ERRNO | errno.ENOSYS))
    others = 0xFFFFFFFF ^ _OF_A_THREAD
    case("clone", _load(0), (_JSET, 2, 0, others), (_JSET, 0, 1, _THREAD), allow, deny)
    for name in ONLY_ITSELF:
        case(name, _load(0), (_JEQ, 1, 0, 0), (_JEQ, 0, 1, pid), allow, deny)
    # prlimit64 may read limits of the process (the third argument is NULL), not set them.
    own: list[Rule] = [_load(0), (_JEQ, 1, 0, 0), (_JEQ, 0, 5, pid)]
    none: list[Rule] = [_load(2), (_JEQ, 0, 3, 0), _load(2, high=True), (_JEQ, 0, 1, 0)]
    case("prlimit64", *own, *none, allow, deny)
    for name, (position, values) in COMMANDS.items():
        known = [rule for value in values for rule in ((_JEQ, 0, 1, value), allow)]
        more = _of_a_driver(allow) if gpu and name == "ioctl" else []
        case(name, _load(position), *known, *more, deny)
    rules.append(deny)
    return b"".join(struct.pack("HBBI", *rule) for rule in rules)


def _load(argument: int, *, high: bool = False) -> Rule:
    return (_LOAD, 0, 0, _ARGUMENTS + 8 * argument + 4 * high)


def _of_a_driver(allow: Rule) -> list[Rule]:
    """Allow the commands of NVIDIA's devices, the command being loaded; others fall through."""
    small: list[Rule] = [(_JGT, 1, 0, 0xFF), allow]
    uvm = [rule for value in _UVM_COMMANDS for rule in ((_JEQ, 0, 1, value), allow)]
    return [*small, *uvm, (_AND, 0, 0, 0xFF00), (_JEQ, 0, 1, _NVIDIA_IOCTL << 8), allow]
