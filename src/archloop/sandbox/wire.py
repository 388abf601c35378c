"""Messages between the main process, the fork server and the candidate: JSON scalars and raw bytes.

Nothing is unpickled. A frame is four bytes of length and that much JSON; what comes from a
candidate is bounded, and anything malformed counts as no message at all.
"""

from __future__ import annotations

import array
import json
import select
import socket
import time
from collections.abc import Callable
from typing import Any

MAX_FRAME = 1 << 20
"""Bytes of the largest JSON frame."""
LOOK_SECONDS = 0.25
"""The longest wait between two calls of ``look``."""


class WireError(Exception):
    """The other side closed, sent something malformed, or too much."""


class DeadlineError(Exception):
    """Nothing arrived in time."""


def send(sock: socket.socket, message: dict[str, Any], fds: tuple[int, ...] = ()) -> None:
    """Send one JSON frame, with file descriptors beside it.

    Raises:
        WireError: The other side closed.
    """
    body = json.dumps(message).encode()
    frame = len(body).to_bytes(4) + body
    try:
        if fds:
            rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))
            sent = sock.sendmsg([frame], [rights])
            frame = frame[sent:]
        sock.sendall(frame)
    except OSError as error:
        raise WireError(str(error)) from None


def receive(
    sock: socket.socket,
    deadline: float | None = None,
    look: Callable[[], None] | None = None,
) -> dict[str, Any]:
    """One JSON frame.

    Args:
        sock: A connected socket.
        deadline: On the clock of ``time.monotonic``; ``None`` waits for ever.
        look: Called now and then while waiting; what it raises ends the wait.

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
    look: Callable[[], None] | None = None,
) -> bytes:
    """Exactly ``size`` bytes; as :func:`receive`."""
    data = bytearray()
    while len(data) < size:
        _wait(sock, deadline, look)
        try:
            part = sock.recv(min(size - len(data), 1 << 20))
        except OSError as error:
            raise WireError(str(error)) from None
        if not part:
            raise WireError("closed")
        data += part
    return bytes(data)


def _wait(sock: socket.socket, deadline: float | None, look: Callable[[], None] | None) -> None:
    """Until there is something to read; ``poll``, as ``select`` fails above descriptor 1023."""
    if deadline is None:
        return
    if sock.fileno() < 0:
        raise WireError("closed")
    poller = select.poll()
    poller.register(sock, select.POLLIN)
    while True:
        if look is not None:
            look()
        left = deadline - time.monotonic()
        if left <= 0:
            raise DeadlineError
        if poller.poll(1000 * (left if look is None else min(left, LOOK_SECONDS))):
            return


def receive_with_fd(sock: socket.socket) -> tuple[dict[str, Any], int | None]:
    """One JSON frame and the file descriptor sent beside it, if any.

    Raises:
        WireError: Closed or malformed.
    """
    try:
        head, fds, _, _ = socket.recv_fds(sock, 4, 1)
    except OSError as error:
        raise WireError(str(error)) from None
    if not head:
        raise WireError("closed")
    head += receive_bytes(sock, 4 - len(head))
    return _decode(receive_bytes(sock, int.from_bytes(head))), fds[0] if fds else None
