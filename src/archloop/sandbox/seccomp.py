"""A seccomp filter that leaves a network arithmetic, memory, threads and its open files.

New programs, processes, sockets, namespaces, mounts, tracing and raised limits are refused with
EPERM, so that Python raises PermissionError and the candidate's outcome says why. Written as
classic BPF, as no maintained Python binding installs without a system library.
"""

from __future__ import annotations

import ctypes
import errno
import platform
import struct
from typing import NamedTuple

PR_SET_NO_NEW_PRIVS = 38
PR_SET_SECCOMP = 22
SECCOMP_MODE_FILTER = 2
_ALLOW = 0x7FFF0000
_ERRNO = 0x00050000
_KILL = 0x80000000
_CLONE_THREAD = 0x00010000
_X32_BIT = 0x40000000

# Offsets in struct seccomp_data (linux/seccomp.h).
_NR, _ARCH, _ARG0_LOW, _ARG2_LOW, _ARG2_HIGH = 0, 4, 16, 32, 36
# Classic BPF (linux/bpf_common.h).
_LOAD, _JEQ, _JSET, _RET = 0x20, 0x15, 0x45, 0x06


class _Machine(NamedTuple):
    audit_arch: int
    clone: int
    prlimit64: int
    denied: tuple[int, ...]


# Numbers that newer system calls share on every architecture (asm-generic/unistd.h, from 424):
# pidfd_send_signal, io_uring_setup/enter/register, open_tree, move_mount, fsopen, fsconfig,
# fsmount, fspick, pidfd_open, pidfd_getfd, mount_setattr.
_SHARED = (424, 425, 426, 427, 428, 429, 430, 431, 432, 433, 434, 438, 442)
_CLONE3 = 435

_MACHINES = {
    # execve, execveat, fork, vfork, ptrace, socket, socketpair, connect, bind, listen, accept,
    # accept4, mount, umount2, pivot_root, chroot, unshare, setns, bpf, perf_event_open, keyctl,
    # add_key, request_key, userfaultfd, kexec_load, kexec_file_load, init_module, finit_module,
    # delete_module,
    # reboot, swapon, swapoff, process_vm_readv, process_vm_writev, setsid, setpgid, setrlimit,
    # name_to_handle_at, open_by_handle_at, acct, syslog, iopl, ioperm, personality, quotactl.
    "x86_64": _Machine(
        0xC000003E,
        56,
        302,
        (59, 322, 57, 58, 101, 41, 53, 42, 49, 50, 43, 288)
        + (165, 166, 155, 161, 272, 308, 321, 298, 250, 248)
        + (249, 323, 246, 320, 175, 313, 176)
        + (169, 167, 168, 310, 311, 112, 109, 160)
        + (303, 304, 163, 103, 172, 173, 135, 179),
    ),
    # The same, less fork, vfork, iopl and ioperm, which do not exist there.
    "aarch64": _Machine(
        0xC00000B7,
        220,
        261,
        (221, 281, 117, 198, 199, 203, 200, 201, 202, 242)
        + (40, 39, 41, 51, 97, 268, 280, 241, 219, 217)
        + (218, 282, 104, 294, 105, 273, 106)
        + (142, 224, 225, 270, 271, 157, 154, 164)
        + (264, 265, 89, 116, 92, 60),
    ),
}


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_char_p)]


def supported() -> bool:
    """Whether this processor's system calls are known here."""
    return platform.machine() in _MACHINES


def install() -> None:
    """Filter the calling thread's system calls for good, and those of all threads it starts.

    Raises:
        OSError: The kernel refused.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    code = _assemble(_MACHINES[platform.machine()])
    program = _Program(len(code) // 8, code)
    if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "PR_SET_NO_NEW_PRIVS refused")
    if libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0):
        raise OSError(ctypes.get_errno(), "PR_SET_SECCOMP refused")


def _assemble(machine: _Machine) -> bytes:
    deny = _ERRNO | errno.EPERM
    rules = [
        (_LOAD, 0, 0, _ARCH),
        (_JEQ, 1, 0, machine.audit_arch),
        (_RET, 0, 0, _KILL),
        (_LOAD, 0, 0, _NR),
        (_JSET, 0, 1, _X32_BIT),
        (_RET, 0, 0, _KILL),
    ]
    for number in (*machine.denied, *_SHARED):
        rules += [(_JEQ, 0, 1, number), (_RET, 0, 0, deny)]
    # glibc starts threads with clone3 and falls back to clone, whose flags a filter can see.
    rules += [(_JEQ, 0, 1, _CLONE3), (_RET, 0, 0, _ERRNO | errno.ENOSYS)]
    rules += [
        (_JEQ, 0, 4, machine.clone),
        (_LOAD, 0, 0, _ARG0_LOW),
        (_JSET, 1, 0, _CLONE_THREAD),
        (_RET, 0, 0, deny),
        (_RET, 0, 0, _ALLOW),
    ]
    # prlimit64 may read limits (no new ones given), not set them.
    rules += [
        (_JEQ, 0, 5, machine.prlimit64),
        (_LOAD, 0, 0, _ARG2_LOW),
        (_JEQ, 0, 2, 0),
        (_LOAD, 0, 0, _ARG2_HIGH),
        (_JEQ, 1, 0, 0),
        (_RET, 0, 0, deny),
        (_RET, 0, 0, _ALLOW),
    ]
    return b"".join(struct.pack("HBBI", *rule) for rule in rules)
