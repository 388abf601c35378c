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
from typing import Any

MAX_FRAME = 1 << 20
"""Bytes of the largest JSON frame: a source of 64 kB with room for escapes."""


class WireError(Exception):
    """The other side closed, sent something malformed, or too much."""


class DeadlineError(Exception):
    """Nothing arrived in time."""


def send(sock: socket.socket, message: dict[str, Any], fds: tuple[int, ...] = ()) -> None:
    """Send one JSON frame, with file descriptors beside it."""
    body = json.dumps(message).encode()
    frame = len(body).to_bytes(4) + body
    if fds:
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))
        sent = sock.sendmsg([frame], [rights])
        frame = frame[sent:]
    if frame:
        sock.sendall(frame)


def receive(sock: socket.socket, deadline: float | None = None) -> dict[str, Any]:
    """One JSON frame.

    Args:
        sock: A connected socket.
        deadline: On the clock of ``time.monotonic``; ``None`` waits for ever.

    Raises:
        WireError: Closed or malformed.
        DeadlineError: The deadline passed.
    """
    size = int.from_bytes(receive_bytes(sock, 4, deadline))
    if size > MAX_FRAME:
        raise WireError("frame too large")
    try:
        message = json.loads(receive_bytes(sock, size, deadline))
    except ValueError:
        raise WireError("not JSON") from None
    if not isinstance(message, dict):
        raise WireError("not a JSON object")
    return message


def receive_bytes(sock: socket.socket, size: int, deadline: float | None = None) -> bytes:
    """Exactly ``size`` bytes; raises as :func:`receive`."""
    data = bytearray()
    while len(data) < size:
        if deadline is not None:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([sock], [], [], left)[0]:
                raise DeadlineError
        try:
            part = sock.recv(min(size - len(data), 1 << 20))
        except OSError as error:
            raise WireError(str(error)) from None
        if not part:
            raise WireError("closed")
        data += part
    return bytes(data)


def receive_with_fd(sock: socket.socket) -> tuple[dict[str, Any], int | None]:
    """One JSON frame and the file descriptor sent beside it, if any.

    Raises:
        WireError: Closed or malformed.
    """
    head, fds, _, _ = socket.recv_fds(sock, 4, 1)
    if len(head) < 4:
        head += receive_bytes(sock, 4 - len(head)) if head else b""
    if not head:
        raise WireError("closed")
    message = json.loads(receive_bytes(sock, int.from_bytes(head)))
    return message, fds[0] if fds else None
