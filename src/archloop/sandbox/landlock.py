"""Landlock by its three system calls: the files a process may still reach, for good.

Called directly, for listing and reading are granted apart here, and for kernels from Linux 6.2
(ABI 3, the first that governs truncation): Ubuntu 24.04 has ABI 4.
"""

from __future__ import annotations

import ctypes
import fcntl
import functools
import os
import resource
import stat
import struct
from collections.abc import Mapping
from enum import IntFlag

MIN_ABI = 3
# The same on every architecture (asm-generic/unistd.h).
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_CREATE_RULESET_VERSION = 1
_RULE_PATH_BENEATH = 1
_SCOPE_ABSTRACT_SOCKETS_AND_SIGNALS = 3


class Access(IntFlag):
    """Rights, as in linux/landlock.h."""

    EXECUTE = 1 << 0
    WRITE_FILE = 1 << 1
    READ_FILE = 1 << 2
    READ_DIR = 1 << 3
    REMOVE_DIR = 1 << 4
    REMOVE_FILE = 1 << 5
    MAKE_CHAR = 1 << 6
    MAKE_DIR = 1 << 7
    MAKE_REG = 1 << 8
    MAKE_SOCK = 1 << 9
    MAKE_FIFO = 1 << 10
    MAKE_BLOCK = 1 << 11
    MAKE_SYM = 1 << 12
    REFER = 1 << 13
    TRUNCATE = 1 << 14
    IOCTL_DEV = 1 << 15


LIST = Access.READ_DIR
READ = Access.READ_FILE | Access.READ_DIR
WRITE = (
    READ
    | Access.WRITE_FILE
    | Access.TRUNCATE
    | Access.REMOVE_DIR
    | Access.REMOVE_FILE
    | Access.MAKE_DIR
    | Access.MAKE_REG
    | Access.MAKE_FIFO
    | Access.MAKE_SYM
    | Access.REFER
)
DEVICE = Access.READ_FILE | Access.WRITE_FILE | Access.IOCTL_DEV
_FIRST_DESCRIPTOR = 512
"""Of the rules: those that a candidate is limited to stay free."""
_OF_FILES = (
    Access.EXECUTE | Access.WRITE_FILE | Access.READ_FILE | Access.TRUNCATE | Access.IOCTL_DEV
)


def abi() -> int:
    """The kernel's Landlock version; 0 where it is absent or switched off."""
    return max(0, int(_libc().syscall(_CREATE_RULESET, None, 0, _CREATE_RULESET_VERSION)))


def opened(rules: Mapping[str, Access]) -> dict[int, Access]:
    """The same rules by open descriptors, which many processes can use; they read nothing.

    To look every path up again took 2 ms of each process.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = max(soft, min(hard, _FIRST_DESCRIPTOR + 2 * len(rules)))
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    found = {}
    for path, access in rules.items():
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
        found[fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _FIRST_DESCRIPTOR)] = access
        os.close(fd)
    return found


def restrict(rules: Mapping[int, Access]) -> None:
    """Leave the calling process the given rights beneath the given paths, and nothing else.

    Args:
        rules: From :func:`opened`, of which nothing is left open; a folder's rights hold for all
            beneath it.

    Raises:
        OSError: The kernel refused a step, or a path does not exist.
    """
    version = abi()
    handled = Access((1 << (16 if version >= 5 else 15)) - 1)
    ruleset = _create(version, handled)
    try:
        for fd, access in rules.items():
            _allow(ruleset, fd, access & handled)
        _check(_libc().syscall(_RESTRICT_SELF, ruleset, 0), "landlock_restrict_self")
    finally:
        os.close(ruleset)


def _create(version: int, handled: Access) -> int:
    attributes = struct.pack("Q", handled)
    if version >= 4:
        attributes += struct.pack("Q", 0)  # TCP: seccomp leaves no sockets at all
    if version >= 6:
        attributes += struct.pack("Q", _SCOPE_ABSTRACT_SOCKETS_AND_SIGNALS)
    return _check(
        _libc().syscall(_CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), 0),
        "landlock_create_ruleset",
    )


def _allow(ruleset: int, fd: int, access: Access) -> None:
    if not stat.S_ISDIR(os.fstat(fd).st_mode):
        access &= _OF_FILES
    rule = struct.pack("=Qi", access, fd)
    _check(_libc().syscall(_ADD_RULE, ruleset, _RULE_PATH_BENEATH, rule, 0), "landlock_add_rule")
    os.close(fd)


def _check(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{os.strerror(number)}: {what}")
    return result


@functools.cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)
