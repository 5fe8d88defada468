"""Many clients of /generate at once, and what each of them got."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import httpx2

from tests.server_process import ServerProcess

TIMEOUT_S = 120.0


@dataclass
class Outcome:
    """One client's view of its request."""

    status: int = 0
    headers: Any = None
    token_ids: list[int] = field(default_factory=list)
    text: str | None = None
    finish_reason: str | None = None
    error_code: str | None = None

    @property
    def is_whole(self) -> bool:
        return self.status == 200 and self.finish_reason is not None and self.error_code is None


def body(text: str, *, stream: bool, max_new_tokens: int, **parameters: Any) -> dict[str, Any]:
    """A request that runs to its full length and tells its token ids."""
    fixed = {"max_new_tokens": max_new_tokens, "ignore_eos": True, "details": True}
    return {"inputs": text, "stream": stream, "parameters": {**fixed, **parameters}}


async def generate(client: httpx2.AsyncClient, request: dict[str, Any], on_event: Callable[[], None] | None) -> Outcome:
    """Send one request and read its answer to the end."""
    outcome = Outcome()
    async with client.stream("POST", "/generate", json=request) as response:
        outcome.status, outcome.headers = response.status_code, response.headers
        if not response.headers["content-type"].startswith("text/event-stream"):
            _read_json(json.loads(await response.aread()), outcome)
            return outcome
        async for line in response.aiter_lines():
            if line.startswith("data:"):
                _read_event(json.loads(line.removeprefix("data:")), outcome)
                if on_event is not None:
                    on_event()
    return outcome


def _read_json(answer: dict[str, Any], outcome: Outcome) -> None:
    if "error" in answer:
        outcome.error_code = answer["error"]["code"]
        return
    outcome.text, details = answer["generated_text"], answer["details"]
    outcome.token_ids = [token["id"] for token in details["tokens"]]
    outcome.finish_reason = details["finish_reason"]


def _read_event(event: dict[str, Any], outcome: Outcome) -> None:
    assert outcome.finish_reason is None, "an event after the final one"
    assert outcome.error_code is None, "an event after the error"
    if "error" in event:
        outcome.error_code = event["error"]["code"]
        return
    outcome.token_ids.append(event["token"]["id"])
    if event.get("details"):
        outcome.text, outcome.finish_reason = event["generated_text"], event["details"]["finish_reason"]


async def generate_all(
    url: str, requests: Iterable[dict[str, Any]], on_event: Callable[[], None] | None = None
) -> list[Outcome]:
    """All at once, each on a connection of its own."""
    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=0)
    async with httpx2.AsyncClient(base_url=url, timeout=TIMEOUT_S, limits=limits) as client:
        return list(await asyncio.gather(*(generate(client, request, on_event) for request in requests)))


def eventually(condition: Callable[[], bool], within_s: float = 20.0) -> bool:
    """Whether the condition came true in time."""
    deadline = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


class Killer:
    """Called with each event of `generate_all`: kills the worker of a model each time that so many have come."""

    def __init__(self, server: ServerProcess, model: str, *marks: int) -> None:
        self.killed: set[int] = set()
        self._server, self._model = server, model
        self._marks = list(marks)
        self._num_events = 0

    def __call__(self) -> None:
        self._num_events += 1
        if not self._marks or self._num_events < self._marks[0]:
            return
        try:
            pid = self._server.worker_pid(self._model)
        except LookupError:
            return
        # Events of the last worker may still come while the next one starts.
        if pid not in self.killed:
            self.killed.add(pid)
            self._marks.pop(0)
            os.kill(pid, signal.SIGKILL)
