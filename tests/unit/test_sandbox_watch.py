"""What is watched of a running candidate: time, output, files, memory."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from archloop.sandbox import wire
from archloop.sandbox.confine.private_folder import ClosedError, bytes_by_inode, remove_folder
from archloop.sandbox.host.watch import LimitError, Output, Watch
from archloop.types import Outcome


@pytest.mark.skipif(not Path("/proc/self/schedstat").is_file(), reason="needs schedstat")
def test_time_without_a_core_does_not_count(tmp_path: Path) -> None:
    read, write = os.pipe()
    spin = [sys.executable, "-c", "while True: pass"]
    core = str(min(os.sched_getaffinity(0)))
    with (
        subprocess.Popen(["taskset", "-c", core, *spin]) as one,
        subprocess.Popen(["taskset", "-c", core, *spin]) as other,
    ):
        watch = Watch(one.pid, tmp_path, Output(read), 1 << 40, 1 << 40)
        watch.begin(10.0)
        time.sleep(1.0)
        waited = watch.waited()
        watch.begin(0.01)
        again = watch.waited()
        time.sleep(0.3)
        most = watch.waited()
        one.kill()
        other.kill()
    os.close(write)
    assert 0.1 < waited < 1.1
    assert again < waited
    assert most == pytest.approx(0.03), "at most three times the deadline"


def output_of(text: bytes) -> str:
    read, write = os.pipe()
    output = Output(read)
    for start in range(0, len(text), 4096):
        os.write(write, text[start : start + 4096])
        output.read()
    os.close(write)
    output.read()
    assert output.fds == ()
    return output.text()


def test_a_flood_keeps_its_beginning_and_its_end() -> None:
    kept = output_of(b"first\n" + b"x" * 1_000_000 + b"\x1b[31mlast\n")
    assert kept.startswith("first\n")
    assert kept.endswith("[31mlast\n")
    assert len(kept) <= 64 << 10
    assert output_of(b"short") == "short"


def test_a_look_sees_files_and_memory(tmp_path: Path) -> None:
    read, write = os.pipe()
    watch = Watch(os.getpid(), tmp_path, Output(read), 64 << 20, 1 << 20)
    watch()
    held = (tmp_path / "held").open("wb")
    held.write(bytes(2 << 20))
    held.flush()
    (tmp_path / "held").unlink()
    time.sleep(wire.LOOK_SECONDS)
    with pytest.raises(LimitError) as caught:
        watch()
    assert caught.value.outcome is Outcome.SANDBOX_VIOLATION
    held.close()
    keep = np.ones(128 << 20, np.uint8)
    with pytest.raises(LimitError) as caught:
        watch()
    assert caught.value.outcome is Outcome.OUT_OF_MEMORY
    del keep
    os.close(write)


def nested(folder: Path, name: str, times: int) -> int:
    """A descriptor of the innermost of so many folders; paths to it may be too long for a call."""
    fd = os.open(folder, os.O_RDONLY)
    for _ in range(times):
        os.mkdir(name, dir_fd=fd)
        inner = os.open(name, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = inner
    return fd


@pytest.mark.parametrize(("name", "times"), [("n" * 250, 20), ("n", 2500)])
def test_a_folder_too_deep_to_look_into_is_seen_and_removed(
    name: str, times: int, tmp_path: Path
) -> None:
    root = tmp_path / "root"
    root.mkdir()
    fd = nested(root, name, times)
    os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
    os.close(fd)
    with pytest.raises(ClosedError):
        bytes_by_inode(root, 1 << 40)
    remove_folder(root)
    assert not root.exists()


def test_empty_files_count_and_a_folder_is_removed_with_all_that_is_in_it(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    for folder in (root / "a" / "b", root / "0" / "0", outside):
        folder.mkdir(parents=True)
    for n in range(100):
        (root / "a" / f"{n}").touch()
    (outside / "file").touch()
    (root / "a" / "link").symlink_to(outside)
    (root / "a" / "twin").hardlink_to(root / "a" / "0")
    assert sum(bytes_by_inode(root, 1 << 40).values()) == 105 * 4096
    assert 10 <= len(bytes_by_inode(root, 10 * 4096)) <= 11
    remove_folder(root)
    assert not root.exists()
    assert (outside / "file").is_file()


def test_a_folder_closed_to_its_owner_is_seen_and_removed(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "closed" / "inner").mkdir(parents=True)
    (root / "closed").chmod(0o300)
    if os.access(root / "closed", os.R_OK):
        pytest.skip("nothing is closed to root")
    with pytest.raises(ClosedError):
        bytes_by_inode(root, 1 << 40)
    remove_folder(root)
    assert not root.exists()
