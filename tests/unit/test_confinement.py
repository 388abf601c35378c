"""How a process confines itself: system call numbers, the fence of files, the filter of calls."""

from __future__ import annotations

import ctypes
import ctypes.util
import errno
import fcntl
import os
import queue
import re
import resource
import signal
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from archloop.sandbox.confine import identity, landlock, seccomp
from archloop.sandbox.confine.calls import NUMBERS, name_of
from archloop.sandbox.confine.confine import confine
from archloop.sandbox.host.refusals import Refusals, TooManyError

HEADERS = {
    "x86_64": Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
    "aarch64": Path("/usr/include/asm-generic/unistd.h"),
}
ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
PID = 4242
linux = pytest.mark.skipif(sys.platform != "linux", reason="seccomp is Linux's")


@pytest.mark.parametrize("machine", HEADERS)
def test_system_call_numbers_are_those_of_the_headers(machine: str) -> None:
    if not HEADERS[machine].is_file():
        pytest.skip("no Linux headers here")
    found = re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", HEADERS[machine].read_text("utf-8"))
    numbers = {name: int(number) for name, number in found}
    compared = 0
    for name, call in NUMBERS.items():
        if name in numbers:
            assert getattr(call, machine) == numbers[name], name
            compared += 1
    assert compared > 300


@pytest.mark.parametrize("machine", ARCHITECTURES)
def test_system_call_numbers_are_those_of_libseccomp(machine: str) -> None:
    file = ctypes.util.find_library("seccomp")
    if file is None:
        pytest.skip("no libseccomp here")
    resolve = ctypes.CDLL(file).seccomp_syscall_resolve_name_arch
    for name, call in NUMBERS.items():
        found = resolve(ctypes.c_uint32(ARCHITECTURES[machine]), name.encode())
        number = getattr(call, machine)
        if found != -1 and not (found < 0 and number is None):  # -1: newer than the library
            assert found == number, name


@pytest.mark.parametrize("machine", ARCHITECTURES)
def test_no_two_system_calls_share_a_number(machine: str) -> None:
    numbers = [n for call in NUMBERS.values() if (n := getattr(call, machine)) is not None]
    assert len(numbers) == len(set(numbers))
    assert name_of(numbers[7], machine) in NUMBERS
    assert name_of(9999, machine) == "call_9999"


def decide(program: bytes, machine: str, name: str, *arguments: int) -> int:
    """What a filter answers to a call, by the meaning of its instructions."""
    number = getattr(NUMBERS[name], machine)
    given = [n & (1 << 64) - 1 for n in (*arguments, *[0] * 6)[:6]]
    data = struct.pack("=iIQ6Q", number, ARCHITECTURES[machine], 0, *given)
    rules = list(struct.iter_unpack("HBBI", program))
    at = value = 0
    while True:
        code, yes, no, k = rules[at]
        at += 1
        if code == 0x20:
            (value,) = struct.unpack_from("=I", data, k)
        elif code == 0x54:
            value &= k
        elif code == 0x06:
            return int(k)
        else:
            tests = {0x15: value == k, 0x25: value > k, 0x45: value & k != 0}
            at += yes if tests[code] else no


THREAD, FORK = 0x3D0F00, 0x1200011
ALLOWED_CALLS = [
    ("read",),
    ("openat",),
    ("futex",),
    ("clone", THREAD),
    ("kill", PID, 10),
    ("tgkill", PID, PID, 6),
    ("fcntl", 3, 1030, 0),
    ("ioctl", 1, 0x5401),
    ("prctl", 15),
    ("madvise", 0, 4096, 4),
    ("prlimit64", 0, 9, 0, 1 << 40),
    ("prlimit64", PID, 9, 0, 1 << 40),
    ("fadvise64", 3, 0, 0, 2),
]
REFUSED_CALLS = [
    ("clone", FORK),
    ("clone", THREAD | 0x40000000),
    ("clone", 0),
    ("execve",),
    ("socket", 2, 1),
    ("socketpair",),
    ("inotify_init1",),
    ("fanotify_init",),
    ("mincore",),
    ("cachestat",),
    ("preadv2",),
    ("process_vm_readv",),
    ("io_uring_setup",),
    ("memfd_create",),
    ("setresuid",),
    ("seccomp",),
    ("symlinkat",),
    ("mknodat",),
    ("flock", 3, 1),
    ("statfs",),
    ("kill", PID + 1, 0),
    ("kill", -1, 9),
    ("tgkill", PID + 1, PID, 6),
    *(("fcntl", 3, command) for command in (5, 6, 7, 8, 10, 36, 37, 38, 1024, 1026, 1031, 1033)),
    *(("ioctl", 3, command) for command in (0x5412, 0x8901, 0x8902, 0x4600, 0xC0502100, 1)),
    *(("prctl", option) for option in (1, 4, 8, 22, 36, 38)),
    *(("madvise", 0, 4096, advice) for advice in (9, 20, 21, 25, 100)),
    ("prlimit64", 0, 9, 1 << 32, 0),
    ("prlimit64", 0, 9, 1, 0),
    ("prlimit64", PID + 1, 9, 0, 0),
    ("fadvise64", 3, 0, 0, 4),
]


@pytest.mark.parametrize("machine", ARCHITECTURES)
def test_the_filter_allows_what_torch_needs_and_nothing_else(machine: str) -> None:
    program = seccomp.assemble(PID, seccomp.NOTIFY, gpu=False, machine=machine)
    for call in ALLOWED_CALLS:
        assert decide(program, machine, *call) == 0x7FFF0000, call
    for call in REFUSED_CALLS:
        assert decide(program, machine, *call) == seccomp.NOTIFY, call
    assert decide(program, machine, "clone3") == 0x00050000 | errno.ENOSYS
    unmentioned = set(NUMBERS) - seccomp.ALLOWED - set(seccomp.COMMANDS)
    unmentioned -= {"clone", "clone3", "kill", "tgkill", "sched_setaffinity", "prlimit64"}
    for name in unmentioned:
        if getattr(NUMBERS[name], machine) is not None:
            assert decide(program, machine, name) == seccomp.NOTIFY, name
    other = "aarch64" if machine == "x86_64" else "x86_64"
    assert decide(program, other, "read") == 0x80000000, "calls of another architecture"


@pytest.mark.parametrize("machine", ARCHITECTURES)
def test_a_gpu_gets_what_its_driver_needs_besides(machine: str) -> None:
    program = seccomp.assemble(PID, seccomp.NOTIFY, gpu=True, machine=machine)
    driver = [("ioctl", 3, n) for n in (0xC020462A, 0xC00846CE, 0x4B, 0x30000001, 0x30000002)]
    for call in [*ALLOWED_CALLS, *driver, *((name,) for name in seccomp.ALLOWED_ON_A_GPU)]:
        if getattr(NUMBERS[call[0]], machine) is not None:
            assert decide(program, machine, *call) == 0x7FFF0000, call
    still = [c for c in REFUSED_CALLS if c not in [("ioctl", 3, 0x4600), ("ioctl", 3, 1)]]
    for call in still:
        assert decide(program, machine, *call) == seccomp.NOTIFY, call


def install(listener: Callable[[int], None]) -> None:
    seccomp.no_new_privileges()
    fd = seccomp.install()
    assert fd is not None
    listener(fd)


def listened(
    attack: Callable[[], Any],
    *,
    filtered: Callable[[Callable[[int], None]], None] = install,
) -> Refusals:
    """What is refused to a child that filters itself and attacks; it must end with code 0."""
    ours, theirs = socket.socketpair()

    def listener(fd: int) -> None:
        socket.send_fds(theirs, [b"x"], [fd])
        os.close(fd)

    pid = os.fork()
    if not pid:
        try:
            filtered(listener)
            attack()
        except BaseException:  # noqa: BLE001 - this process must not go on as a second pytest
            os._exit(1)
        os._exit(0)
    theirs.close()
    refusals = Refusals()
    try:
        _, fds, _, _ = socket.recv_fds(ours, 1, 1)
        refusals.listen(fds[0])
        while (ended := os.waitpid(pid, os.WNOHANG)) == (0, 0):
            refusals.answer()
            time.sleep(0.001)
    except TooManyError:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        raise
    finally:
        refusals.close()
        ours.close()
    assert os.waitstatus_to_exitcode(ended[1]) == 0
    return refusals


def denied(call: Callable[[], Any]) -> None:
    with pytest.raises(PermissionError):
        call()


@linux
def test_refused_calls_are_noted_once_each_in_order() -> None:
    def attack() -> None:
        for _ in range(3):
            denied(socket.socket)
        denied(os.pipe)
        with open(os.devnull) as file:  # noqa: PTH123
            denied(lambda: fcntl.flock(file, fcntl.LOCK_SH))
            fcntl.fcntl(file, fcntl.F_GETFL)
            denied(lambda: fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB))
        resource.getrlimit(resource.RLIMIT_CPU)
        os.kill(os.getpid(), 0)

    assert listened(attack).names == ("socket", "pipe2", "flock", "fcntl(6)")


@linux
def test_the_filter_holds_for_threads_that_were_there_before() -> None:
    asked, answers = queue.Queue[None](), queue.Queue[bool]()

    def work() -> None:
        asked.get()
        try:
            socket.socket()
        except PermissionError:
            answers.put(True)

    def attack() -> None:
        asked.put(None)
        assert answers.get(timeout=10)

    def filtered(listener: Callable[[int], None]) -> None:
        threading.Thread(target=work, daemon=True).start()
        install(listener)

    assert listened(attack, filtered=filtered).names == ("socket",)


@linux
def test_refused_calls_without_end_are_too_many() -> None:
    def attack() -> None:
        libc = ctypes.CDLL(None)
        while True:
            libc.inotify_init()

    with pytest.raises(TooManyError):
        listened(attack)


def in_a_child(run: Callable[[], Any]) -> None:
    """Run what changes a process for good; the assertions in it must hold."""
    pid = os.fork()
    if not pid:
        try:
            run()
        except BaseException:  # noqa: BLE001 - this process must not go on as a second pytest
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0


@linux
def test_calls_are_refused_where_somebody_else_listens_already() -> None:
    def run() -> None:
        seccomp.no_new_privileges()
        seccomp.enforce(8, struct.pack("HBBI", 0x06, 0, 0, 0x7FFF0000))
        assert seccomp.install() is None
        denied(socket.socket)

    in_a_child(run)


@pytest.mark.parametrize(
    ("uid_map", "span"),
    [
        ("0 0 4294967295", (2_000_000_000, 1 << 22)),
        ("0 100000 65536\n", (32_766, 32_768)),
        ("0 1000 1\n1 100000 65536\n", (32_767, 32_768)),
        ("0 0 1", None),
    ],
)
def test_ids_are_taken_from_what_is_mapped(uid_map: str, span: tuple[int, int] | None) -> None:
    assert identity.span_of(uid_map) == span


root = pytest.mark.skipif(
    isinstance(identity.identities([], "/"), str | None), reason="needs root, with ids to give"
)


@root
@pytest.mark.parametrize("mode", [0o755, 0o700])
def test_a_process_of_another_user_reads_what_it_must_and_owns_its_folder(
    tmp_path: Path, mode: int
) -> None:
    """Also where only root can look: then it keeps the capability for that."""
    for folder in (tmp_path, *tmp_path.parents[:3]):
        folder.chmod(0o755)
    packages, private = tmp_path / "packages", tmp_path / "private"
    for folder in (packages, private):
        folder.mkdir()
    (packages / "module").write_text("x")
    packages.chmod(mode)
    ids = identity.identities([str(packages / "module")], str(private))
    assert isinstance(ids, identity.Identities)
    assert ids.searches is (mode == 0o700)

    def run() -> None:
        identity.become(ids, private)
        own = ids.of(os.getpid())
        assert os.getresuid() == os.getresgid() == (own, own, own)
        assert os.getgroups() == []
        assert (packages / "module").read_text() == "x"
        (private / "new").write_text("x")
        assert private.stat().st_uid == (private / "new").stat().st_uid == own
        denied(lambda: (packages / "module").write_text("y"))
        denied(lambda: os.kill(os.getppid(), 0))
        denied(lambda: os.setuid(0))
        denied(lambda: os.chown(private, 0, 0))

    in_a_child(run)


@root
def test_only_root_has_users_to_give() -> None:
    def run() -> None:
        os.setresuid(65534, 65534, 65534)
        assert identity.identities([], "/") is None

    in_a_child(run)


@pytest.mark.skipif(landlock.abi() < landlock.MIN_ABI, reason="needs Landlock")
@pytest.mark.parametrize("beside", ["", "private", "private/deeper/still"])
def test_a_fence_leaves_a_process_its_own_folder(tmp_path: Path, beside: str) -> None:
    """Wherever what may be read lies: apart from the private folders, among them or above them."""
    private = tmp_path / "private"
    own, other = private / "1", private / "2"
    readable = tmp_path / "readable" if not beside else tmp_path / beside / "readable"
    for folder in (own, other, readable):
        folder.mkdir(parents=True)
    for name in ("a", "b"):
        (readable / name).write_text("x")
    (other / "secret").write_text("x")
    (tmp_path / "secret").write_text("x")
    made = landlock.fence({str(readable / "a"): landlock.READ}, private)
    attempts = [
        (readable / "a", "r", True),
        (own / "new", "w", True),
        (readable / "b", "r", False),
        (readable / "a", "w", False),
        (other / "secret", "r", False),
        (other / "new", "w", False),
        (private / "new", "w", False),
        (tmp_path / "secret", "r", False),
    ]
    pid = os.fork()
    if not pid:
        os._exit(_first_surprise(made, own, attempts))
    _, status = os.waitpid(pid, 0)
    for fd in (made.ruleset, *made.elsewhere):
        os.close(fd)
    code = os.waitstatus_to_exitcode(status)
    assert code == 0, attempts[code - 1] if code <= len(attempts) else "it could not be limited"


@pytest.mark.skipif(landlock.abi() < landlock.MIN_ABI, reason="needs Landlock")
def test_threads_started_inside_the_fence_stay_in_it_and_are_filtered(tmp_path: Path) -> None:
    """As CUDA's are: it starts where files are out of reach, and before the filter."""
    own = tmp_path / "private" / "1"
    own.mkdir(parents=True)
    (tmp_path / "secret").write_text("x")
    found: list[tuple[str, str]] = []

    def attack() -> None:
        assert found == [("denied", "allowed"), ("denied", "denied")]

    def filtered(listener: Callable[[int], None]) -> None:
        made = landlock.fence({}, own.parent)
        found.extend(_attempts_of_a_thread(made, own, tmp_path / "secret", listener))

    refusals = listened(attack, filtered=filtered)
    assert refusals.names == ("socket",)


def _attempts_of_a_thread(
    fence: landlock.Fence, own: Path, secret: Path, listener: Callable[[int], None]
) -> list[tuple[str, str]]:
    """What reading a file and opening a socket come to, before the filter and after it."""
    asked: queue.Queue[None] = queue.Queue()
    answers: queue.Queue[tuple[str, str]] = queue.Queue()

    def attempt(what: Callable[[], Any]) -> str:
        try:
            what().close()
        except PermissionError:
            return "denied"
        return "allowed"

    def work() -> None:
        while True:
            asked.get()
            answers.put((attempt(secret.open), attempt(socket.socket)))

    found: list[tuple[str, str]] = []

    def ask() -> None:
        asked.put(None)
        found.append(answers.get(timeout=10))

    def start() -> None:
        threading.Thread(target=work, daemon=True).start()
        ask()

    fd = confine(own, fence, start)
    assert fd is not None
    listener(fd)
    ask()
    return found


def _first_surprise(
    fence: landlock.Fence, own: Path, attempts: list[tuple[Path, str, bool]]
) -> int:
    """The number of the first attempt that goes another way; 0 if there is none."""
    seccomp.no_new_privileges()
    landlock.restrict(fence, own)
    for number, (path, mode, expected) in enumerate(attempts, 1):
        try:
            path.open(mode).close()
        except PermissionError:
            if expected:
                return number
        else:
            if not expected:
                return number
    return 0
