"""A seccomp filter that allows arithmetic, memory, threads and files that are open already.

New programs, processes, sockets, namespaces, mounts, tracing, raised limits, memory that no limit
counts, and changes to the owner, mode or times of files (which Landlock does not control) are
refused with EPERM, so that Python raises PermissionError and the candidate's outcome says why.
Written as classic BPF, as no maintained Python binding installs without a system library.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
from typing import NamedTuple

PR_SET_NO_NEW_PRIVS = 38
_SYS_SECCOMP = {"x86_64": 317, "aarch64": 277}
_SET_MODE_FILTER, _FLAG_TSYNC = 1, 1
_ALLOW = 0x7FFF0000
_ERRNO = 0x00050000
_KILL = 0x80000000
_CLONE_THREAD = 0x00010000
_X32_BIT = 0x40000000

# Offsets in struct seccomp_data (linux/seccomp.h), little-endian.
_NR, _ARCH, _ARG0_LOW, _ARG1_LOW, _ARG2_LOW, _ARG2_HIGH = 0, 4, 16, 24, 32, 36
# Classic BPF (linux/bpf_common.h).
_LOAD, _JEQ, _JSET, _RET = 0x20, 0x15, 0x45, 0x06


class Numbers(NamedTuple):
    """A system call's number (asm/unistd.h); ``None`` where an architecture lacks it."""

    x86_64: int | None
    aarch64: int | None


DENIED = {
    # new programs and processes (threads are told apart by the flags of clone, below)
    "execve": Numbers(59, 221),
    "execveat": Numbers(322, 281),
    "fork": Numbers(57, None),
    "vfork": Numbers(58, None),
    # other processes
    "ptrace": Numbers(101, 117),
    "process_vm_readv": Numbers(310, 270),
    "process_vm_writev": Numbers(311, 271),
    "process_madvise": Numbers(440, 440),
    "process_mrelease": Numbers(448, 448),
    "pidfd_open": Numbers(434, 434),
    "pidfd_getfd": Numbers(438, 438),
    "pidfd_send_signal": Numbers(424, 424),
    "tkill": Numbers(200, 130),
    "rt_sigqueueinfo": Numbers(129, 138),
    "rt_tgsigqueueinfo": Numbers(297, 240),
    "kcmp": Numbers(312, 272),
    "migrate_pages": Numbers(256, 238),
    "move_pages": Numbers(279, 239),
    "setpriority": Numbers(141, 140),
    "ioprio_set": Numbers(251, 30),
    "setsid": Numbers(112, 157),
    "setpgid": Numbers(109, 154),
    # the network
    "socket": Numbers(41, 198),
    "socketpair": Numbers(53, 199),
    "connect": Numbers(42, 203),
    "bind": Numbers(49, 200),
    "listen": Numbers(50, 201),
    "accept": Numbers(43, 202),
    "accept4": Numbers(288, 242),
    # mounts and namespaces
    "mount": Numbers(165, 40),
    "umount2": Numbers(166, 39),
    "pivot_root": Numbers(155, 41),
    "chroot": Numbers(161, 51),
    "unshare": Numbers(272, 97),
    "setns": Numbers(308, 268),
    "open_tree": Numbers(428, 428),
    "move_mount": Numbers(429, 429),
    "fsopen": Numbers(430, 430),
    "fsconfig": Numbers(431, 431),
    "fsmount": Numbers(432, 432),
    "fspick": Numbers(433, 433),
    "mount_setattr": Numbers(442, 442),
    "name_to_handle_at": Numbers(303, 264),
    "open_by_handle_at": Numbers(304, 265),
    # owner, mode, times and attributes of files
    "chmod": Numbers(90, None),
    "fchmod": Numbers(91, 52),
    "fchmodat": Numbers(268, 53),
    "fchmodat2": Numbers(452, 452),
    "chown": Numbers(92, None),
    "fchown": Numbers(93, 55),
    "lchown": Numbers(94, None),
    "fchownat": Numbers(260, 54),
    "utime": Numbers(132, None),
    "utimes": Numbers(235, None),
    "futimesat": Numbers(261, None),
    "utimensat": Numbers(280, 88),
    "setxattr": Numbers(188, 5),
    "lsetxattr": Numbers(189, 6),
    "fsetxattr": Numbers(190, 7),
    "removexattr": Numbers(197, 14),
    "lremovexattr": Numbers(198, 15),
    "fremovexattr": Numbers(199, 16),
    "setxattrat": Numbers(463, 463),
    "removexattrat": Numbers(466, 466),
    "file_setattr": Numbers(469, 469),
    # memory that no resource limit counts, or that outlives the process
    "memfd_create": Numbers(319, 279),
    "memfd_secret": Numbers(447, 447),
    "shmget": Numbers(29, 194),
    "msgget": Numbers(68, 186),
    "semget": Numbers(64, 190),
    "mq_open": Numbers(240, 180),
    # limits, accounting, the kernel itself
    "setrlimit": Numbers(160, 164),
    "acct": Numbers(163, 89),
    "syslog": Numbers(103, 116),
    "iopl": Numbers(172, None),
    "ioperm": Numbers(173, None),
    "personality": Numbers(135, 92),
    "quotactl": Numbers(179, 60),
    "quotactl_fd": Numbers(443, 443),
    "bpf": Numbers(321, 280),
    "perf_event_open": Numbers(298, 241),
    "keyctl": Numbers(250, 219),
    "add_key": Numbers(248, 217),
    "request_key": Numbers(249, 218),
    "userfaultfd": Numbers(323, 282),
    "kexec_load": Numbers(246, 104),
    "kexec_file_load": Numbers(320, 294),
    "init_module": Numbers(175, 105),
    "finit_module": Numbers(313, 273),
    "delete_module": Numbers(176, 106),
    "reboot": Numbers(169, 142),
    "swapon": Numbers(167, 224),
    "swapoff": Numbers(168, 225),
    "io_uring_setup": Numbers(425, 425),
    "io_uring_enter": Numbers(426, 426),
    "io_uring_register": Numbers(427, 427),
}

ONLY_ITSELF = {
    "kill": Numbers(62, 129),
    "tgkill": Numbers(234, 131),
    "sched_setaffinity": Numbers(203, 122),
    "sched_setscheduler": Numbers(144, 119),
    "sched_setparam": Numbers(142, 118),
    "sched_setattr": Numbers(314, 274),
}
"""Allowed only if the first argument is 0 or the process's own id."""

DENIED_COMMANDS = {
    # F_SETOWN, F_SETSIG, F_SETOWN_EX; F_SETLEASE, F_NOTIFY
    "fcntl": (Numbers(72, 25), (8, 10, 15, 1024, 1026)),
    "ioctl": (Numbers(16, 29), (0x8901, 0x8902)),  # FIOSETOWN, SIOCSPGRP
}
"""Commands (the second argument) that let the kernel send signals to a chosen process (any of
the user's before Landlock ABI 6), and commands that delay or observe other processes' access to
a file."""

CLONE = Numbers(56, 220)
CLONE3 = Numbers(435, 435)
PRLIMIT64 = Numbers(302, 261)

_AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}


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


def install() -> None:
    """Filter the system calls of all present and future threads of this process, irreversibly.

    All of them must have no_new_privs set.

    Raises:
        OSError: The kernel refused.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    machine = platform.machine()
    code = _assemble(machine, os.getpid())
    program = _Program(len(code) // 8, code)
    number = _SYS_SECCOMP[machine]
    # A number above 0 is a thread that could not be filtered.
    if left := libc.syscall(number, _SET_MODE_FILTER, _FLAG_TSYNC, ctypes.byref(program)):
        raise OSError(ctypes.get_errno() if left < 0 else errno.EBUSY, "seccomp refused")


def _assemble(machine: str, pid: int) -> bytes:
    deny, allow = (_RET, 0, 0, _ERRNO | errno.EPERM), (_RET, 0, 0, _ALLOW)
    rules = [
        (_LOAD, 0, 0, _ARCH),
        (_JEQ, 1, 0, _AUDIT_ARCH[machine]),
        (_RET, 0, 0, _KILL),
        (_LOAD, 0, 0, _NR),
        (_JSET, 0, 1, _X32_BIT),
        (_RET, 0, 0, _KILL),
    ]
    for call in DENIED.values():
        number: int | None = getattr(call, machine)
        if number is not None:
            rules += [(_JEQ, 0, 1, number), deny]
    # glibc starts threads with clone3 and falls back to clone, whose flags a filter can see.
    rules += [(_JEQ, 0, 1, getattr(CLONE3, machine)), (_RET, 0, 0, _ERRNO | errno.ENOSYS)]
    rules += [
        (_JEQ, 0, 4, getattr(CLONE, machine)),
        (_LOAD, 0, 0, _ARG0_LOW),
        (_JSET, 1, 0, _CLONE_THREAD),
        deny,
        allow,
    ]
    for call in ONLY_ITSELF.values():
        rules += [
            (_JEQ, 0, 5, getattr(call, machine)),
            (_LOAD, 0, 0, _ARG0_LOW),
            (_JEQ, 2, 0, 0),
            (_JEQ, 1, 0, pid),
            deny,
            allow,
        ]
    for call, commands in DENIED_COMMANDS.values():
        rules += [
            (_JEQ, 0, 3 + len(commands), getattr(call, machine)),
            (_LOAD, 0, 0, _ARG1_LOW),
            *((_JEQ, len(commands) - i, 0, command) for i, command in enumerate(commands)),
            allow,
            deny,
        ]
    # prlimit64 may read limits (no new ones given), not set them.
    rules += [
        (_JEQ, 0, 5, getattr(PRLIMIT64, machine)),
        (_LOAD, 0, 0, _ARG2_LOW),
        (_JEQ, 0, 2, 0),
        (_LOAD, 0, 0, _ARG2_HIGH),
        (_JEQ, 1, 0, 0),
        deny,
        allow,
    ]
    return b"".join(struct.pack("HBBI", *rule) for rule in rules)
