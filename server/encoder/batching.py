"""Which waiting requests the next step encodes together; knows lengths and order of arrival, nothing of models."""

from __future__ import annotations

from server.protocol import Encode

CHEAP_PADDING = 64
"""Places of padding that cost less than a step of its own would."""


class WaitingRequests:
    """Requests that no step has taken yet.

    Steps take turns: one starts from the shortest request, the next from the oldest. So a short text waits for no
    document, however many windows the document has, and every second step works on whatever has waited longest:
    a request with n others before it is taken after at most 2n + 2 steps.
    """

    def __init__(self, max_batch_tokens: int, max_rows: int | None = None) -> None:
        self._max_batch_tokens = max_batch_tokens
        self._max_rows = max_rows
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
        commands = list(self._commands.values())
        anchor = commands[0] if self._is_oldest_first else min(commands, key=_length)
        self._is_oldest_first = not self._is_oldest_first
        batch = _around(anchor, commands, self._max_batch_tokens, self._max_rows or len(commands))
        for command in batch:
            del self._commands[command.request_id]
        return batch


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
