"""A client for a server on this machine, with the standard library alone."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Client:
    port: int

    def post(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        """Status and JSON."""
        connection, answer = self._ask("POST", path, body)
        with_body = answer.read()
        connection.close()
        return answer.status, json.loads(with_body)

    def get(self, path: str) -> tuple[int, bytes]:
        connection, answer = self._ask("GET", path)
        body = answer.read()
        connection.close()
        return answer.status, body

    def events(self, path: str, body: dict[str, Any]) -> Iterator[str]:
        """The data of each event of a stream. Raises ConnectionError for another status than 200."""
        connection, answer = self._ask("POST", path, body)
        try:
            if answer.status != 200:
                raise ConnectionError(f"{answer.status}: {answer.read()[:300]!r}")
            for line in answer:
                if line.startswith(b"data:"):
                    yield line[5:].strip().decode()
        finally:
            connection.close()

    def _ask(
        self, method: str, path: str, body: dict[str, Any] | None = None
    ) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=TIMEOUT_S)
        content = None if body is None else json.dumps(body)
        connection.request(method, path, content, {"Content-Type": "application/json"} if content else {})
        return connection, connection.getresponse()


@dataclass
class Load:
    """What the clients of a closed loop saw."""

    num_tokens: int = 0
    first_s: list[float] = field(default_factory=list)
    gaps_s: list[float] = field(default_factory=list)
    """Of each answer: its mean time between tokens."""
    errors: list[str] = field(default_factory=list)


def closed_loop(client: Client, num_clients: int, seconds: float, body: Callable[[int], dict[str, Any]]) -> Load:
    """``num_clients`` threads, each of which streams one chat after another until the time is over."""
    load, lock, stop_s = Load(), threading.Lock(), time.perf_counter() + seconds

    def serve_one(number: int) -> None:
        while time.perf_counter() < stop_s:
            try:
                chat = _stream(client, body(number), stop_s)
            except (OSError, http.client.HTTPException, ValueError) as error:
                with lock:
                    load.errors.append(f"{type(error).__name__}: {error}")
                return
            with lock:
                chat.add_to(load)

    threads = [threading.Thread(target=serve_one, args=[number]) for number in range(num_clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return load


@dataclass
class _Chat:
    """One streamed answer, as far as it was read."""

    sent_s: float
    first_s: float | None = None
    last_s: float = 0.0
    num_first: int = 0
    """Tokens that came with the first event."""
    num_tokens: int = 0

    def add_to(self, load: Load) -> None:
        load.num_tokens += self.num_tokens
        if self.first_s is not None:
            load.first_s.append(self.first_s - self.sent_s)
            if self.num_tokens > self.num_first:
                load.gaps_s.append((self.last_s - self.first_s) / (self.num_tokens - self.num_first))


def _stream(client: Client, body: dict[str, Any], stop_s: float) -> _Chat:
    """An event may carry several tokens: their number is the server's."""
    chat = _Chat(sent_s=time.perf_counter())
    for data in client.events("/v1/chat/completions", body):
        now_s = time.perf_counter()
        if now_s > stop_s:
            break
        usage = None if data == "[DONE]" else json.loads(data).get("usage")
        if usage and usage["completion_tokens"] > chat.num_tokens:
            chat.num_tokens, chat.last_s = usage["completion_tokens"], now_s
            if chat.first_s is None:
                chat.first_s, chat.num_first = now_s, chat.num_tokens
    return chat


def percentile(values: list[float], share: float) -> float | None:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))] if values else None
