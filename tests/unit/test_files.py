from __future__ import annotations

import os
import resource
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from archloop.errors import UsageError
from archloop.files import (
    check_new,
    filling,
    naming,
    not_writable,
    read_regular,
    replacing,
    write_text,
)


@contextmanager
def small_files(size: int = 1000) -> Iterator[None]:
    """No file grows beyond ``size`` bytes, as on a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_file_is_written_as_a_whole_or_stays_as_it_was(tmp_path: Path) -> None:
    file = tmp_path / "new" / "file.txt"
    write_text(file, "old")
    with small_files(), pytest.raises(OSError, match=r"File too large: '.*/new/file\.txt'"):
        write_text(file, "x" * 100_000)
    with pytest.raises(ZeroDivisionError), replacing(file) as sink:
        sink.write(f"{1 / 0}")
    assert file.read_text() == "old"
    assert list(file.parent.iterdir()) == [file]


def test_a_folder_is_filled_as_a_whole_or_stays_as_it_was(tmp_path: Path) -> None:
    out = tmp_path / "a" / "out"
    with small_files(), pytest.raises(OSError, match="File too large"), filling(out) as folder:
        write_text(folder / "nn" / "first.py", "1")
        write_text(folder / "nn" / "second.py", "2" * 100_000)
    assert not out.parent.exists()
    out.mkdir(parents=True)
    with filling(out) as folder:
        write_text(folder / "nn" / "first.py", "1")
    assert [p.relative_to(out).as_posix() for p in out.rglob("*")] == ["nn", "nn/first.py"]
    with pytest.raises(UsageError, match="out: holds files already"), filling(out):
        pass
    with pytest.raises(UsageError, match="name a new folder"):
        check_new(out)
    assert (out / "nn" / "first.py").read_text() == "1"


def test_what_a_kill_left_goes_and_older_files_may_be_replaced(tmp_path: Path) -> None:
    write_text(tmp_path / ".part" / "left.txt", "by a kill")
    with filling(tmp_path) as folder:
        write_text(folder / "file.txt", "old")
    with pytest.raises(ZeroDivisionError), filling(tmp_path, replace=True) as folder:
        write_text(folder / "file.txt", f"{1 / 0}")
    assert (tmp_path / "file.txt").read_text() == "old"
    with filling(tmp_path, replace=True) as folder:
        write_text(folder / "file.txt", "new")
    assert (tmp_path / "file.txt").read_text() == "new"
    assert list(tmp_path.iterdir()) == [tmp_path / "file.txt"]


def test_why_a_folder_cannot_be_written(tmp_path: Path) -> None:
    assert not_writable(tmp_path / "new") is None
    assert list((tmp_path / "new").iterdir()) == []
    (tmp_path / "file").touch()
    assert not_writable(tmp_path / "file") == "File exists"
    assert not_writable(tmp_path / "file" / "below") == "Not a directory"
    with small_files():
        assert not_writable(tmp_path, 2000) == "File too large"


def test_a_library_that_could_not_write_names_the_folder(tmp_path: Path) -> None:
    wanted = rf"{tmp_path}: cannot be written: File too large"
    with small_files(), pytest.raises(UsageError, match=wanted), naming(tmp_path):
        raise RuntimeError("basic_ios::clear: iostream error")
    with pytest.raises(RuntimeError, match="of another kind"), naming(tmp_path):
        raise RuntimeError("of another kind")


def test_a_regular_file_is_read_and_a_link_to_one(tmp_path: Path) -> None:
    file, link = tmp_path / "net.py", tmp_path / "link.py"
    file.write_bytes(b"x" * 10)
    link.symlink_to(file)
    assert read_regular(file, 10) == read_regular(link, 10) == b"x" * 10
    with pytest.raises(UsageError, match=r"net\.py: larger than 9 bytes"):
        read_regular(file, 9)


@pytest.mark.parametrize("kind", ["fifo", "device", "socket", "folder", "nothing", "loop"])
def test_what_is_no_regular_file_is_refused_at_once(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "net.py"
    with socket.socket(socket.AF_UNIX) as server:
        if kind == "fifo":
            os.mkfifo(path)
        elif kind == "device":
            path.symlink_to("/dev/zero")
        elif kind == "socket":
            server.bind(str(path))
        elif kind == "folder":
            path.mkdir()
        elif kind == "loop":
            path.symlink_to(path)
        with pytest.raises(UsageError, match=r"net\.py: (not a regular file|cannot be read)"):
            read_regular(path)
