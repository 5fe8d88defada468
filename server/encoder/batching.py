"""Which waiting requests the next step encodes together; knows lengths and order of arrival, nothing of models."""

from __future__ import annotations

import heapq
from abc import ABC, abstractmethod

from server.protocol import Encode

CHEAP_PADDING = 64
"""Places of padding that cost less than a step of its own would."""


class WaitingRequests(ABC):
    """Requests that no step has taken yet.

    Steps take turns: one starts from the shortest request, the next from the oldest. So a short text waits for no
    document, however many windows the document has, and every second step works on whatever has waited longest:
    a request with n others before it is taken after at most 2n + 2 steps.
    """

    def __init__(self, max_batch_tokens: int) -> None:
        self._max_batch_tokens = max_batch_tokens
        # In order of arrival: a dict keeps it.
        self._commands: dict[str, Encode] = {}
        self._is_oldest_first = False

    def __len__(self) -> int:
        return len(self._commands)

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._commands

    def add(self, command: Encode) -> None:
        self._commands[command.request_id] = command

    def abort(self, request_id: str) -> None:
        self._commands.pop(request_id, None)

    def take(self) -> list[Encode]:
        """The next step's requests, at least one; they wait no longer."""
        batch = self._choose(self._is_oldest_first)
        self._is_oldest_first = not self._is_oldest_first
        for command in batch:
            del self._commands[command.request_id]
        return batch

    @abstractmethod
    def _choose(self, is_oldest_first: bool) -> list[Encode]:
        """The shortest or the oldest request, and what runs well beside it."""


class FlatRequests(WaitingRequests):
    """For steps without padding: lengths need not be alike, and a step costs what its tokens cost.

    What a choice costs does not grow with the number of those that wait.
    """

    def __init__(self, max_batch_tokens: int) -> None:
        super().__init__(max_batch_tokens)
        self._num_added = 0
        self._by_length: list[tuple[int, int, Encode]] = []

    def add(self, command: Encode) -> None:
        super().add(command)
        heapq.heappush(self._by_length, (_length(command), self._num_added, command))
        self._num_added += 1

    def abort(self, request_id: str) -> None:
        super().abort(request_id)
        # Those that wait no longer are dropped when their turn comes, or here when they are the most.
        if len(self._by_length) > 2 * len(self._commands) + 64:
            self._by_length = [entry for entry in self._by_length if self._waits(entry[2])]
            heapq.heapify(self._by_length)

    def _choose(self, is_oldest_first: bool) -> list[Encode]:
        batch: list[Encode] = []
        room = self._max_batch_tokens
        oldest = iter(self._commands.values())
        while (command := next(oldest, None) if is_oldest_first else self._shortest()) is not None:
            room -= _length(command)
            if batch and room < 0:
                break
            batch.append(command)
            if not is_oldest_first:
                heapq.heappop(self._by_length)
        return batch

    def _shortest(self) -> Encode | None:
        """Stays in the heap; those before it that wait no longer leave it."""
        while self._by_length:
            command = self._by_length[0][2]
            if self._waits(command):
                return command
            heapq.heappop(self._by_length)
        return None

    def _waits(self, command: Encode) -> bool:
        return self._commands.get(command.request_id) is command


class PaddedRequests(WaitingRequests):
    """For padded steps: requests of like length go together, ``max_rows`` at most."""

    def __init__(self, max_batch_tokens: int, max_rows: int | None = None) -> None:
        super().__init__(max_batch_tokens)
        self._max_rows = max_rows

    def _choose(self, is_oldest_first: bool) -> list[Encode]:
        commands = list(self._commands.values())
        anchor = commands[0] if is_oldest_first else min(commands, key=_length)
        return _around(anchor, commands, self._max_batch_tokens, self._max_rows or len(commands))


def _around(anchor: Encode, commands: list[Encode], max_tokens: int, max_rows: int) -> list[Encode]:
    """The anchor and those nearest to it in length, oldest first, while the padded batch stays small and dense."""
    batch: list[Encode] = []
    longest = num_tokens = 0
    # The sort is stable and the anchor's distance 0, but an equal that is older may stand before it.
    for command in [anchor, *sorted(commands, key=lambda command: abs(_length(command) - _length(anchor)))]:
        if command is anchor and batch:
            continue
        length = _length(command)
        padded = max(longest, length) * (len(batch) + 1)
        if batch and (padded > max_tokens or len(batch) == max_rows or not _is_dense(padded, num_tokens + length)):
            break
        batch.append(command)
        longest = max(longest, length)
        num_tokens += length
    return batch


def _is_dense(padded: int, num_tokens: int) -> bool:
    """At most a quarter of the places is padding, or less of it than a step costs."""
    return 4 * (padded - num_tokens) <= padded or padded - num_tokens <= CHEAP_PADDING


def _length(command: Encode) -> int:
    return len(command.token_ids)
