"""Messages between the main process, the fork server and the candidate: JSON scalars and raw bytes.

Nothing is unpickled. A frame is four bytes of length and that much JSON; messages of a candidate
are limited in size, and malformed ones are refused.
"""

from __future__ import annotations

import array
import json
import select
import socket
import time
from typing import Any, Protocol

MAX_FRAME = 1 << 20
"""Bytes of the largest JSON frame."""
MAX_FDS = 2
"""File descriptors beside a frame."""
LOOK_SECONDS = 0.25
"""The longest wait between two calls of ``look``."""


class Look(Protocol):
    """Called regularly while waiting for a candidate."""

    def waited(self) -> float:
        """Seconds that the candidate has waited for a CPU core; no deadline counts them."""
        ...

    @property
    def fds(self) -> tuple[int, ...]:
        """File descriptors; when one is ready, the object is called at once."""
        ...

    def __call__(self) -> None:
        """Called regularly; an exception that it raises ends the wait."""
        ...


class WireError(Exception):
    """The other side closed, sent something malformed, or too much."""


class DeadlineError(Exception):
    """Nothing arrived in time."""


def send(sock: socket.socket, message: dict[str, Any], fds: tuple[int, ...] = ()) -> None:
    """Send one JSON frame, with file descriptors beside it.

    Raises:
        WireError: The other side closed.
    """
    data = frame(message)
    try:
        left = data[sock.sendmsg([data], _rights(fds)) :]
        # Sending an empty rest would fail if the other side has read everything and closed.
        if left:
            sock.sendall(left)
    except OSError as error:
        raise WireError(str(error)) from None


def _rights(fds: tuple[int, ...]) -> list[tuple[int, int, array.array[int]]]:
    """The ancillary data of ``sendmsg``."""
    return [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []


def frame(message: dict[str, Any]) -> bytes:
    """The bytes of a message."""
    body = json.dumps(message).encode()
    return len(body).to_bytes(4) + body


def receive(
    sock: socket.socket,
    deadline: float | None = None,
    look: Look | None = None,
) -> dict[str, Any]:
    """One JSON frame.

    Args:
        sock: A connected socket.
        deadline: On the clock of ``time.monotonic``; ``None`` waits for ever.
        look: Called regularly while waiting.

    Raises:
        WireError: Closed or malformed.
        DeadlineError: The deadline passed.
    """
    size = int.from_bytes(receive_bytes(sock, 4, deadline, look))
    if size > MAX_FRAME:
        raise WireError("frame too large")
    return _decode(receive_bytes(sock, size, deadline, look))


def _decode(body: bytes) -> dict[str, Any]:
    try:
        message = json.loads(body)
    except (ValueError, RecursionError):
        raise WireError("not JSON") from None
    if not isinstance(message, dict):
        raise WireError("not a JSON object")
    return message


def receive_bytes(
    sock: socket.socket,
    size: int,
    deadline: float | None = None,
    look: Look | None = None,
) -> bytes:
    """Receive exactly ``size`` bytes; otherwise like :func:`receive`."""
    data = bytearray()
    while len(data) < size:
        _wait(sock, select.POLLIN, deadline, look)
        try:
            part = sock.recv(min(size - len(data), 1 << 20))
        except OSError as error:
            raise WireError(str(error)) from None
        if not part:
            raise WireError("closed")
        data += part
    return bytes(data)


def send_bytes(
    sock: socket.socket,
    data: bytes,
    deadline: float,
    look: Look | None = None,
    fds: tuple[int, ...] = (),
) -> None:
    """Send all of ``data`` to a candidate, which may not read it; errors as in :func:`receive`."""
    left, beside = memoryview(data), _rights(fds)
    while left:
        _wait(sock, select.POLLOUT, deadline, look)
        try:
            left = left[sock.sendmsg([left], beside, socket.MSG_DONTWAIT) :]
        except BlockingIOError:
            continue
        except OSError as error:
            raise WireError(str(error)) from None
        beside = []


def _wait(sock: socket.socket, event: int, deadline: float | None, look: Look | None) -> None:
    """Wait until the socket is ready, with ``poll``, as ``select`` fails above descriptor 1023."""
    if deadline is None:
        return
    if sock.fileno() < 0:
        raise WireError("closed")
    while True:
        if look is not None:
            look()
        left = deadline - time.monotonic()
        if left <= 0 and look is not None:
            left += look.waited()
        if left <= 0:
            raise DeadlineError
        poller = select.poll()
        poller.register(sock, event)
        for fd in () if look is None else look.fds:
            poller.register(fd, select.POLLIN)
        ready = poller.poll(1000 * (left if look is None else min(left, LOOK_SECONDS)))
        if sock.fileno() in {fd for fd, _ in ready}:
            return


def receive_with_fds(
    sock: socket.socket, count: int | None = None
) -> tuple[dict[str, Any], list[int]]:
    """One JSON frame and the file descriptors sent beside it.

    Args:
        sock: A connected socket.
        count: How many there must be; ``None`` takes any number up to :data:`MAX_FDS`.

    Raises:
        WireError: Closed, malformed, or with another number of descriptors.
    """
    try:
        head, fds, _, _ = socket.recv_fds(sock, 4, MAX_FDS)
    except OSError as error:
        raise WireError(str(error)) from None
    if not head:
        raise WireError("closed")
    head += receive_bytes(sock, 4 - len(head))
    message = _decode(receive_bytes(sock, int.from_bytes(head)))
    if count is not None and len(fds) != count:
        raise WireError(f"{len(fds)} file descriptors; expected {count}")
    return message, fds
