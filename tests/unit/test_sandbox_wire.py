"""Messages between the processes of the sandbox, and the memory they share."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from archloop.config import SandboxConfig
from archloop.sandbox import wire
from archloop.sandbox.candidate import harness
from archloop.sandbox.host.conversation import Conversation, FailedError
from archloop.sandbox.host.server import Child, empty_memory, shared_memory
from archloop.sandbox.host.watch import Output
from archloop.text import MAX_ERROR, one_line
from archloop.types import Outcome


def frame(body: bytes, size: int | None = None) -> bytes:
    return (len(body) if size is None else size).to_bytes(4) + body


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"\0\0",
        frame(b"{", 100),
        frame(b"not json"),
        frame(b"[1]"),
        frame(b"[" * 100_000),
        frame(b"\xff\xfe"),
        frame(b'{"n": ' + b"9" * 5000 + b"}"),
        frame(b"", wire.MAX_FRAME + 1),
    ],
)
def test_anything_malformed_is_no_message(sent: bytes) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(sent)
        theirs.shutdown(socket.SHUT_WR)
        with pytest.raises(wire.WireError):
            wire.receive(ours, time.monotonic() + 5)


def test_a_slow_frame_arrives_whole_and_looks_are_taken_meanwhile() -> None:
    ours, theirs = socket.socketpair()
    looks: list[float] = []

    class Look:
        fds: tuple[int, ...] = ()

        def __call__(self) -> None:
            looks.append(1)

        def waited(self) -> float:
            return 0.0

    data = frame(json.dumps({"stage": "done"}).encode())

    def trickle() -> None:
        for byte in data:
            theirs.sendall(bytes([byte]))
            time.sleep(0.03)

    with ours, theirs:
        thread = threading.Thread(target=trickle)
        thread.start()
        message = wire.receive(ours, time.monotonic() + 30, Look())
        thread.join()
    assert message == {"stage": "done"}
    assert len(looks) >= len(data) - 4


def test_a_closed_receiver_is_a_wire_error() -> None:
    ours, theirs = socket.socketpair()
    theirs.close()
    with ours, pytest.raises(wire.WireError):
        wire.send(ours, {"stage": "done"})


def test_the_last_words_of_a_process_are_read_after_it_is_gone(tmp_path: Path) -> None:
    """A fake of one moment: it fails and ends while the main process does something else."""
    ours, theirs = socket.socketpair()
    read, write = os.pipe()
    os.close(write)
    child = Child(os.getpid(), -1, ours, tmp_path, Output(read))
    conversation = Conversation(SandboxConfig(), cast("Any", None), child, {})
    wire.send(theirs, {"stage": "failed", "outcome": "train_error", "error": "ValueError: bad"})
    theirs.close()
    conversation.send_bytes(wire.frame({"total": 3}), 1.0, "feeding")
    conversation.send_bytes(b"images", 5, "prediction")
    with pytest.raises(FailedError, match="ValueError: bad"):
        conversation.expect("trained", 5, "the epoch")
    conversation.send_bytes(wire.frame({"total": 3}), 1.0, "feeding")
    with pytest.raises(wire.WireError, match="closed"):
        conversation.expect("trained", 5, "the epoch")
    child.close()


def test_error_lines_are_bounded_and_printable() -> None:
    text = one_line("a\x1b[31m\n\u202eb\ud800" + "c" * 1000)
    assert text.isprintable()
    assert len(text) == MAX_ERROR


def test_a_message_with_descriptors_to_a_process_that_does_not_read_ends_at_its_deadline() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, pytest.raises(wire.DeadlineError):
        wire.send_bytes(ours, bytes(4 << 20), time.monotonic() + 0.2, None, (0,))


def test_what_cannot_be_reported_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    ours, theirs = socket.socketpair()
    theirs.close()
    with ours:
        harness._report(ours, Outcome.TRAIN_ERROR, "ValueError: bad")
    assert capsys.readouterr().err == "not reported: train_error: ValueError: bad\n"


def test_shared_memory_can_be_read_and_not_written() -> None:
    array = np.arange(12, dtype=np.int64).reshape(3, 4)
    fd = shared_memory(array)
    assert np.array_equal(np.frombuffer(os.pread(fd, 96, 0), np.int64), array.ravel())
    with pytest.raises(OSError, match=r"not permitted|Bad file descriptor"):
        os.pwrite(fd, b"x", 0)
    os.close(fd)


def test_shared_memory_keeps_its_size() -> None:
    fd = empty_memory(4096)
    for size in (0, 8192):
        with pytest.raises(OSError, match="not permitted"):
            os.ftruncate(fd, size)
    os.close(fd)
