"""When requests must have ended, and which of them are due. Knows neither blocks nor tokens."""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Iterator


class Deadlines:
    """Request ids by the time at which they are due. One that has ended meanwhile comes up all the same."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._heap: list[tuple[float, str]] = []

    def add(self, request_id: str, deadline_s: float) -> None:
        """``deadline_s`` is a time of the clock."""
        heapq.heappush(self._heap, (deadline_s, request_id))

    def due(self) -> Iterator[str]:
        """The ids whose time is over, once each."""
        while self._heap and self._heap[0][0] <= self._clock():
            yield heapq.heappop(self._heap)[1]
