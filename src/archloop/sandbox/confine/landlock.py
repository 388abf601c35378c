"""Landlock by its three system calls: irreversibly limits the files that a process may reach.

The system calls are used directly, because listing and reading are granted separately. Kernels from
Linux 6.2 are supported (ABI 3, the first that controls truncation); Ubuntu 24.04 has ABI 4.
"""

from __future__ import annotations

import ctypes
import functools
import os
import stat
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntFlag
from pathlib import Path

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
_OF_FILES = (
    Access.EXECUTE | Access.WRITE_FILE | Access.READ_FILE | Access.TRUNCATE | Access.IOCTL_DEV
)


@functools.cache
def abi() -> int:
    """The kernel's Landlock version; 0 where it is absent or switched off."""
    return max(0, int(_libc().syscall(_CREATE_RULESET, None, 0, _CREATE_RULESET_VERSION)))


@dataclass(frozen=True)
class Fence:
    """Rules shared by many processes, prepared once: adding some 300 rules took 3 ms per process.

    Landlock cannot add a rule to a ruleset that is in force, but a process may be under two
    rulesets; then both must allow an access. The first is the same for all processes: all readable
    paths, and the parent of the private folders. The second allows only the process's own private
    folder below that parent, and does not restrict other paths.
    """

    ruleset: int
    """Descriptor of the first ruleset."""
    elsewhere: dict[int, Access]
    """Descriptors and rights of the second ruleset: the highest folders above each readable path
    that do not contain the private folders."""


def fence(rules: Mapping[str, Access], private: Path) -> Fence:
    """Open the descriptors that :func:`restrict` needs; they stay open.

    Args:
        rules: Rights by path; those of a folder hold for everything below it.
        private: The parent of the private folders.

    Raises:
        OSError: The kernel refused a step, or a path does not exist.
    """
    private = private.resolve()
    ruleset = _create()
    for path, access in {**rules, str(private): WRITE}.items():
        _allow(ruleset, os.open(path, os.O_PATH | os.O_CLOEXEC), access)
    elsewhere: dict[Path, Access] = {}
    for path, access in rules.items():
        top, most = _highest_without(private, Path(path).resolve(), access)
        elsewhere[top] = elsewhere.get(top, Access(0)) | most
    opened = {os.open(p, os.O_PATH | os.O_CLOEXEC): access for p, access in elsewhere.items()}
    return Fence(ruleset, opened)


def _highest_without(private: Path, path: Path, access: Access) -> tuple[Path, Access]:
    """The highest folder above ``path`` that does not contain ``private``, with all rights.

    If one of the two contains the other, ``path`` itself with its own rights.
    """
    for folder in (*reversed(path.parents), path):
        if not private.is_relative_to(folder) and not folder.is_relative_to(private):
            return folder, _handled()
    return path, access


def restrict(fence: Fence, own: Path) -> None:
    """Restrict the calling process to the shared rules and its own private folder.

    Args:
        fence: The shared rules; their descriptors are closed.
        own: The process's private folder.

    Raises:
        OSError: The kernel refused a step.
    """
    second = _create()
    for fd, access in fence.elsewhere.items():
        _allow(second, fd, access)
    _allow(second, os.open(own, os.O_PATH | os.O_CLOEXEC), WRITE)
    for ruleset in (fence.ruleset, second):
        _check(_libc().syscall(_RESTRICT_SELF, ruleset, 0), "landlock_restrict_self")
        os.close(ruleset)


def _handled() -> Access:
    """The access rights that this kernel controls."""
    return Access((1 << (16 if abi() >= 5 else 15)) - 1)


def _create() -> int:
    version = abi()
    attributes = struct.pack("Q", _handled())
    if version >= 4:
        attributes += struct.pack("Q", 0)  # TCP: seccomp leaves no sockets at all
    if version >= 6:
        attributes += struct.pack("Q", _SCOPE_ABSTRACT_SOCKETS_AND_SIGNALS)
    return _check(
        _libc().syscall(_CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), 0),
        "landlock_create_ruleset",
    )


def _allow(ruleset: int, fd: int, access: Access) -> None:
    """Grant rights below an open path, whose descriptor is closed."""
    access &= _handled() if stat.S_ISDIR(os.fstat(fd).st_mode) else _handled() & _OF_FILES
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
