"""A small HTTP server that answers chat completions as a test tells it."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Reply:
    """An answer; ``body`` is JSON."""

    body: Any
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    delay: float = 0.0


def chat(
    text: str | None, *, prompt_tokens: int = 10, tokens: int = 5, reason: str = "stop", **more: Any
) -> Reply:
    """A chat completion."""
    message = {"role": "assistant", "content": text, "refusal": None} | more.pop("message", {})
    usage = {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": tokens,
        "total_tokens": prompt_tokens + tokens,
    }
    return Reply(
        {
            "id": "1",
            "object": "chat.completion",
            "created": 1,
            "model": "m",
            "choices": [{"index": 0, "message": message, "finish_reason": reason}],
            "usage": usage,
        }
        | more.pop("body", {}),
        **more,
    )


class ScriptedServer:
    """What was asked, and how many requests were under way at the same time."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.times: list[float] = []
        self.most_at_once = 0
        self._open, self._lock = 0, threading.Lock()

    def enter(self, body: dict[str, Any], headers: dict[str, str]) -> int:
        """A request comes; its number, from 0."""
        with self._lock:
            self.bodies.append(body)
            self.headers.append({name.lower(): value for name, value in headers.items()})
            self.times.append(time.monotonic())
            self._open += 1
            self.most_at_once = max(self.most_at_once, self._open)
            return len(self.bodies) - 1

    def leave(self) -> None:
        """It has been answered."""
        with self._lock:
            self._open -= 1


@contextmanager
def scripted(answer: Callable[[int, dict[str, Any]], Reply]) -> Iterator[ScriptedServer]:
    """Serve ``answer(number of the request, its body)`` on a free port of this machine."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            number = server.enter(body, dict(self.headers))
            try:
                self._send(answer(number, body))
            finally:
                server.leave()

        def do_GET(self) -> None:
            self._send(Reply({"data": [{"id": "m"}]}))

        def _send(self, reply: Reply) -> None:
            time.sleep(reply.delay)
            data = json.dumps(reply.body).encode()
            self.send_response(reply.status)
            for name, value in {"content-type": "application/json", **reply.headers}.items():
                self.send_header(name, value)
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: object) -> None:
            pass

        def handle(self) -> None:
            with suppress(ConnectionError):  # of a client that gave up
                super().handle()

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    server = ScriptedServer(f"http://127.0.0.1:{http.server_address[1]}/v1")
    thread = threading.Thread(target=http.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
        thread.join()
