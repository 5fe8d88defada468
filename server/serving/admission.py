"""How much work one model takes on, in requests and in tokens; beyond it a refusal that says when to come back.

One caller alone may fill the queue. A caller below its share is still admitted then, into a reserve.
"""

from __future__ import annotations

import math
import random
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from server import caller, metrics
from server.availability_errors import Draining, QueueFull, RateLimited
from server.errors import SluiceError

RATE_HORIZON_S = 30.0
"""How far back the measured drain rate remembers."""
MIN_RETRY_S = 1.0
MAX_RETRY_S = 60.0
JITTER = 0.2
RESERVED_PART = 0.25
"""Of the limits, what callers below their share may add to a full queue."""


class Admission:
    """Counts the requests and tokens of work that were admitted and are not finished.

    An empty queue takes any request, however large: its size was checked against the model's own limits.
    """

    def __init__(self, model: str, max_requests: int, max_tokens: int) -> None:
        self.model = model
        self.max_requests = max_requests
        self.max_tokens = max_tokens
        self.num_requests = 0
        self.num_tokens = 0
        self._requests: Counter[str] = Counter()
        self._tokens: Counter[str] = Counter()
        """By caller, for as long as it has unfinished requests."""
        self.draining = False
        """Set once, when the server begins to stop: new work is refused."""
        self._drained_tokens = 0.0
        self._busy_s = 0.0
        self._mark_s = time.monotonic()

    @property
    def fullness(self) -> float:
        """Share of the limits that is taken; above 1 where one large request alone fills the queue."""
        return max(self.num_requests / self.max_requests, self.num_tokens / self.max_tokens)

    def check(self) -> None:
        """Refuse early, before any work is done for the request."""
        self._check(num_tokens=1, num_requests=1)

    @contextmanager
    def admit(self, num_tokens: int, num_requests: int = 1, *, is_part: bool = False) -> Iterator[None]:
        """Hold a place for the request until the block is left.

        ``is_part`` of a request that another model admitted: it is counted and never refused, for what has been done
        for the request would be lost.
        """
        name = caller.current().id
        if not is_part:
            self._check(num_tokens, num_requests)
        self._tick()
        self._change(name, num_requests, num_tokens)
        try:
            yield
        finally:
            self._tick()
            self._drained_tokens += num_tokens
            self._change(name, -num_requests, -num_tokens)

    def _check(self, num_tokens: int, num_requests: int) -> None:
        if self.draining:
            raise Draining("The server is stopping. Try again.", retry_after_s=MIN_RETRY_S)
        if self.num_requests == 0:
            return
        if not self._fits(num_requests, self.num_requests, self._requests, self.max_requests):
            reason = f"{self.num_requests} of at most {self.max_requests} requests are in progress"
            raise self._refusal("requests", self._requests, self.max_requests, reason)
        if not self._fits(num_tokens, self.num_tokens, self._tokens, self.max_tokens):
            reason = (
                f"{self.num_tokens} of at most {self.max_tokens} tokens are in progress; this request has {num_tokens}"
            )
            raise self._refusal("tokens", self._tokens, self.max_tokens, reason)

    def _fits(self, num_more: int, num_all: int, by_caller: Counter[str], limit: int) -> bool:
        """Whether so many more requests or tokens of the current caller may join all that are unfinished."""
        if num_all + num_more <= limit:
            return True
        num_own = by_caller[caller.current().id]
        is_below = num_own == 0 or num_own + num_more <= limit // self._num_callers
        return is_below and num_all + num_more <= limit + max(1, int(RESERVED_PART * limit))

    @property
    def _num_callers(self) -> int:
        """Those with unfinished requests, and the current one."""
        return len(self._requests.keys() | {caller.current().id})

    def _refusal(self, unit: str, by_caller: Counter[str], limit: int, reason: str) -> SluiceError:
        """The caller's own fault if it has its share while others have work too."""
        num_own = by_caller[caller.current().id]
        if self._num_callers > 1 and num_own >= limit // self._num_callers:
            seconds = self.retry_after_s()
            message = f"{num_own} of your {unit} are in progress, which is your share of the queue."
            return RateLimited(f"{message} Try again in {seconds} s.", retry_after_s=seconds)
        return self._queue_full(reason)

    def _queue_full(self, reason: str) -> QueueFull:
        seconds = self.retry_after_s()
        return QueueFull(f"The queue is full: {reason}. Try again in {seconds} s.", retry_after_s=seconds)

    def retry_after_s(self) -> int:
        """When the work now in the queue should be done, from the rate at which work has lately ended.

        Spread by a fifth either way, so that those who were refused together do not come back together.
        """
        self._tick()
        # Before anything has ended: at least as long again as the queue has been busy.
        expected_s = self.num_tokens * self._busy_s / self._drained_tokens if self._drained_tokens else self._busy_s
        jittered_s = expected_s * random.uniform(1 - JITTER, 1 + JITTER)
        return math.ceil(min(max(jittered_s, MIN_RETRY_S), MAX_RETRY_S))

    def _tick(self) -> None:
        """Let the measured past fade, and count the time since the last change if there was work in it."""
        now_s = time.monotonic()
        elapsed_s, self._mark_s = now_s - self._mark_s, now_s
        if self.num_requests == 0:
            return
        fade = math.exp(-elapsed_s / RATE_HORIZON_S)
        self._drained_tokens *= fade
        self._busy_s = self._busy_s * fade + elapsed_s

    def _change(self, name: str, num_requests: int, num_tokens: int) -> None:
        self.num_requests += num_requests
        self.num_tokens += num_tokens
        self._requests[name] += num_requests
        self._tokens[name] += num_tokens
        if not self._requests[name]:
            del self._requests[name], self._tokens[name]
        metrics.set_admitted(self.model, self.num_requests, self.num_tokens)
