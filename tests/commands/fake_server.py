"""A server without models: it answers as told, as slowly as told, and remembers what it was asked."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

LISTING = ("/translate", "/summarize")
"""Routes that answer with a list."""
MODELS = [{"name": "chat", "task": "generate", "state": "ready", "architecture": "Some", "num_parameters": 9}]


@dataclass
class FakeServer:
    """What it says and what it heard."""

    url: str = ""
    models: list[dict[str, Any]] = field(default_factory=lambda: [dict(model) for model in MODELS])
    words: list[str] = field(default_factory=lambda: ["Hel", "lo", "!"])
    """Of every streamed answer."""
    pause_s: float = 0.0
    """Before each word but the first, and before each whole answer."""
    refusals: list[tuple[int, str, str]] = field(default_factory=list)
    """Status, code and message of the next answers, before any good one."""
    refuse_from: int | None = None
    """All answers after so many are refusals."""
    breaks_after: int | None = None
    """A stream ends without its end after so many words."""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    """Of the bodies."""
    keys: list[str | None] = field(default_factory=list)
    num_streams: int = 0
    """That are being answered."""
    most_streams: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    fake: FakeServer

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.fake.keys.append(self.headers.get("Authorization"))
        self._json(200, {"models": self.fake.models} if self.path == "/info" else {})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.fake.bodies.append(body)
        self.fake.paths.append(self.path)
        if self.fake.refuse_from is not None and len(self.fake.bodies) > self.fake.refuse_from:
            self._json(503, {"error": {"message": "The server is full.", "code": "queue_full"}})
        elif self.fake.refusals:
            status, code, message = self.fake.refusals.pop(0)
            self._json(status, {"error": {"message": message, "code": code}})
        elif body.get("stream"):
            self._stream()
        else:
            time.sleep(self.fake.pause_s)
            answer = {"generated_text": f"<{body['inputs']}>"}
            self._json(200, [answer] if self.path in LISTING else answer)

    def _json(self, status: int, value: Any) -> None:
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        if status == 503:
            self.send_header("Retry-After", "0.01")
        self.end_headers()
        self.wfile.write(content)

    def _stream(self) -> None:
        self.send_response(200)
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        with self.fake.lock:
            self.fake.num_streams += 1
            self.fake.most_streams = max(self.fake.most_streams, self.fake.num_streams)
        try:
            # Whoever stops an answer hangs up.
            with contextlib.suppress(OSError):
                self._words()
        finally:
            with self.fake.lock:
                self.fake.num_streams -= 1

    def _words(self) -> None:
        for number, word in enumerate(self.fake.words, start=1):
            if number == self.fake.breaks_after:
                return
            time.sleep(self.fake.pause_s if number > 1 else 0)
            self._event(number, word)

    def _event(self, number: int, word: str) -> None:
        is_last = number == len(self.fake.words)
        timings = {"queue_s": 0.0, "first_token_s": 0.5, "total_s": 0.5 + (number - 1) / 10}
        details = {"finish_reason": "eos_token", "generated_tokens": number, "input_length": 7, "timings": timings}
        token = {"id": 1, "text": word, "logprob": None, "special": False}
        event = {"index": number, "token": token, "details": details if is_last else None}
        self.wfile.write(b": keep-alive\n\ndata: " + json.dumps(event).encode() + b"\n\n")
        self.wfile.flush()


@contextlib.contextmanager
def fake_server(**facts: Any) -> Iterator[FakeServer]:
    fake = FakeServer(**facts)
    handler = type("Handler", (_Handler,), {"fake": fake})
    http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    fake.url = f"http://127.0.0.1:{http.server_address[1]}"
    thread = threading.Thread(target=http.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield fake
    finally:
        http.shutdown()
        http.server_close()
        thread.join()
