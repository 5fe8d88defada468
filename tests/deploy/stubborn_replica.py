"""A replica that says it is ready and answers no request, each of its ways in its turn; it keeps what it was sent."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal

Way = Literal["refuses", "fails", "hangs up"]

ANSWERS: dict[Way, tuple[int, bytes]] = {
    "refuses": (503, b'{"error": {"code": "queue_full"}}'),
    "fails": (500, b'{"error": {"code": "internal"}}'),
}


class StubbornReplica(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, way: Way) -> None:
        self.way = way
        self.bodies: list[bytes] = []
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: StubbornReplica

    def do_GET(self) -> None:
        self._answer(200, b"{}")

    def do_POST(self) -> None:
        self.server.bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
        if self.server.way == "hangs up":
            self.close_connection = True
            return
        self._answer(*ANSWERS[self.server.way])

    def _answer(self, status: int, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Quiet."""


@contextmanager
def stubborn_replica(way: Way) -> Iterator[StubbornReplica]:
    with StubbornReplica(way) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join(10)
