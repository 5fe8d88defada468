"""Which waiting requests the next step encodes together; knows lengths and order of arrival, nothing of models."""

from __future__ import annotations

import heapq
from abc import ABC, abstractmethod
from collections.abc import Callable

from server.encoder.grouping import PADDED, Grouping
from server.protocol import Encode

CHEAP_PADDING = 64
"""Places of padding that cost less than a step of its own would."""


class WaitingRequests(ABC):
    """Requests that no step has taken yet.

    A short text waits for no document, however many windows the document has, and whatever has waited longest comes
    next: a request with n others before it is taken after at most 2n + 2 steps. Callers take turns by their tokens.
    """

    def __init__(self, max_batch_tokens: int) -> None:
        self.max_batch_tokens = max_batch_tokens
        """Of the next step; the engine changes it as it learns what steps cost."""
        # In order of arrival: a dict keeps it.
        self._commands: dict[str, Encode] = {}
        self._num_added = 0
        self._by_turn: list[tuple[int, int, Encode]] = []
        """By the tokens that were before each in its caller's own line; some wait no longer."""
        self._turn = 0
        self._ends: dict[str, int] = {}
        """Where each caller's line ends."""

    def __len__(self) -> int:
        return len(self._commands)

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._commands

    def add(self, command: Encode) -> None:
        if not self._commands:
            self._ends.clear()
        if max(len(self._by_turn), len(self._ends)) > 2 * len(self._commands) + 64:
            self._by_turn = [entry for entry in self._by_turn if self._waits(entry[2])]
            heapq.heapify(self._by_turn)
            self._ends = {caller: end for caller, end in self._ends.items() if end > self._turn}
        turn = max(self._turn, self._ends.get(command.caller, 0))
        self._ends[command.caller] = turn + _length(command)
        heapq.heappush(self._by_turn, (turn, self._num_added, command))
        self._num_added += 1
        self._commands[command.request_id] = command

    def _first(self) -> Encode | None:
        """Whose turn it is."""
        while self._by_turn:
            turn, _, command = self._by_turn[0]
            if self._waits(command):
                self._turn = turn
                return command
            heapq.heappop(self._by_turn)
        return None

    def _waits(self, command: Encode) -> bool:
        return self._commands.get(command.request_id) is command

    def abort(self, request_id: str) -> None:
        self._commands.pop(request_id, None)

    @abstractmethod
    def take(self) -> list[Encode]:
        """The next step's requests, at least one; they wait no longer."""


class FlatRequests(WaitingRequests):
    """For steps without padding: lengths need not be alike, and a step costs what its tokens cost.

    The oldest requests get half of every step, or as much as the very oldest needs, and the shortest get the rest.
    What a choice costs does not grow with the number of those that wait.
    """

    def __init__(self, max_batch_tokens: int) -> None:
        super().__init__(max_batch_tokens)
        self._by_length: list[tuple[int, int, Encode]] = []

    def add(self, command: Encode) -> None:
        super().add(command)
        heapq.heappush(self._by_length, (_length(command), self._num_added, command))

    def abort(self, request_id: str) -> None:
        super().abort(request_id)
        self._tidy()

    def take(self) -> list[Encode]:
        batch: list[Encode] = []
        num_tokens = self._move(batch, self._first, 0, self.max_batch_tokens // 2)
        self._move(batch, self._shortest, num_tokens, self.max_batch_tokens)
        self._tidy()
        return batch

    def _move(self, batch: list[Encode], choose: Callable[[], Encode | None], num_tokens: int, limit: int) -> int:
        """Requests into the batch while it stays within the limit; one is taken in any case. Returns its tokens."""
        while (command := choose()) is not None:
            if batch and num_tokens + _length(command) > limit:
                break
            batch.append(command)
            num_tokens += _length(command)
            del self._commands[command.request_id]
        return num_tokens

    def _shortest(self) -> Encode | None:
        while self._by_length:
            command = self._by_length[0][2]
            if self._waits(command):
                return command
            heapq.heappop(self._by_length)
        return None

    def _tidy(self) -> None:
        """Those that wait no longer leave the heap when they come to its top, or here when they are the most."""
        if len(self._by_length) > 2 * len(self._commands) + 64:
            self._by_length = [entry for entry in self._by_length if self._waits(entry[2])]
            heapq.heapify(self._by_length)


class PaddedRequests(WaitingRequests):
    """For padded steps: requests of like length go together, and only those that the grouping lets share a batch.

    Steps take turns: one starts from the shortest request, the next from the oldest.
    """

    def __init__(self, max_batch_tokens: int, grouping: Grouping = PADDED) -> None:
        super().__init__(max_batch_tokens)
        self._key = grouping.key
        self._is_oldest_first = False

    def take(self) -> list[Encode]:
        commands = list(self._commands.values())
        first = self._first()
        assert first is not None, "something waits"
        anchor = first if self._is_oldest_first else min(commands, key=_length)
        self._is_oldest_first = not self._is_oldest_first
        key = self._key(anchor)
        batch = _around(anchor, [c for c in commands if self._key(c) == key], self.max_batch_tokens)
        for command in batch:
            del self._commands[command.request_id]
        return batch


def _around(anchor: Encode, commands: list[Encode], max_tokens: int) -> list[Encode]:
    """The anchor and those nearest to it in length, oldest first, while the padded batch stays small and dense."""
    batch: list[Encode] = []
    longest = num_tokens = 0
    # The sort is stable and the anchor's distance 0, but an equal that is older may stand before it.
    for command in [anchor, *sorted(commands, key=lambda command: abs(_length(command) - _length(anchor)))]:
        if command is anchor and batch:
            continue
        length = _length(command)
        padded = max(longest, length) * (len(batch) + 1)
        if batch and (padded > max_tokens or not _is_dense(padded, num_tokens + length)):
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
