"""What one HTTP request was and how it ended: one log line and one set of observations, never a client's text."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field
from typing import Any

from server import metrics
from server.sentences import Reader

log = logging.getLogger("sluice.request")

CLIENT_LEFT = 499
NO_MODEL = "none"
"""Label of requests that ended before their model was known."""


@dataclass(slots=True, kw_only=True)
class RequestRecord:
    """Filled by the handlers as they learn it; read once, when the answer is complete or the client left."""

    request_id: str
    """The server's own: the only one that may be a key."""
    public_id: str
    """What the client is shown: its own id if it sent a sound one, else ``request_id``."""
    key_id: str | None = None
    """Which API key it came with."""
    route: str
    """The path of a route of ours, or ``unknown``: never a client's text."""
    task: str | None = None
    model: str | None = None
    """Name of the served model: set it only after the registry knew it."""
    status: int | None = None
    """Set by the middleware."""
    error_code: str | None = None
    """Set by the error handlers; from inside a stream, by its writer."""
    finish_reason: str | None = None
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    queue_s: float | None = None
    ttft_s: float | None = None
    num_inputs: int = 1
    reader: Reader = field(default_factory=Reader)
    """What an error is written for; set before anything of the body can be refused under another name."""
    ignored_fields: str = ""
    """Names of the body's fields that were left out, as a header tells them: ASCII. Never logged."""
    streamed: bool = False
    client_gone: bool = False
    """Set by the middleware: the client left before its answer was complete."""
    started_s: float = field(default_factory=time.perf_counter)

    def time_left_s(self, *limits_s: float | None) -> float | None:
        """Of the smallest limit since the request's arrival; None without any. Zero is no limit."""
        limits = [limit for limit in limits_s if limit]
        return min(limits) - (time.perf_counter() - self.started_s) if limits else None

    def note_start(self) -> None:
        """A step computed some of the request, for the first time: it has left the queue."""
        if self.queue_s is None:
            self.queue_s = time.perf_counter() - self.started_s

    def report(self) -> None:
        """Log the request and feed the metrics. Called once."""
        total_s = time.perf_counter() - self.started_s
        status = CLIENT_LEFT if self.client_gone else (self.status or 500)
        self._observe(status, total_s)
        log.info("request finished", extra={"fields": self._fields(status, total_s)})

    def _observe(self, status: int, total_s: float) -> None:
        model, task = metrics.label_of(self.model or NO_MODEL), self.task or NO_MODEL
        status_class = str(CLIENT_LEFT) if status == CLIENT_LEFT else f"{status // 100}xx"
        metrics.observe_request(
            model,
            task,
            status=status_class,
            finish_reason=self.finish_reason or NO_MODEL,
            total_s=total_s,
            queue_s=self.queue_s,
        )
        if self.error_code is not None:
            metrics.record_rejection(model, self.error_code)
        elif status_class == "2xx":
            metrics.observe_tokens(model, task, self.prompt_tokens, self.output_tokens)

    def _fields(self, status: int, total_s: float) -> dict[str, Any]:
        fields: dict[str, Any] = {
            "request_id": self.request_id,
            "client_request_id": self.public_id if self.public_id != self.request_id else None,
            "key": self.key_id,
            "route": self.route,
            "model": self.model,
            "status": status,
            "error": self.error_code,
            "finish_reason": self.finish_reason,
            "num_inputs": self.num_inputs,
            "prompt_tokens": self.prompt_tokens,
            "cached_tokens": self.cached_tokens,
            "output_tokens": self.output_tokens,
            "queue_ms": _milliseconds(self.queue_s),
            "ttft_ms": _milliseconds(self.ttft_s),
            "total_ms": _milliseconds(total_s),
            "streamed": self.streamed,
            "client_gone": self.client_gone,
        }
        return {name: value for name, value in fields.items() if value is not None}


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 1)
