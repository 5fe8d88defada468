"""Which adapter each waiting request has, and requests that wait until theirs is held. Knows no batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from server.adapter_table import AdapterTable
from server.encoder.mixed import EncoderAdapter
from server.errors import SluiceError
from server.protocol import AdapterState, Encode, Failed, LoadAdapter, UnloadAdapter

Attempt = Callable[[EncoderAdapter], bool]
"""Tries a new adapter in a step: raises `NotShared` where it fails."""


class AdapterQueue:
    """Between the requests of an encoder's engine and its table of adapters.

    While an adapter waits for room, later requests with adapters wait behind those that it is for: else those in use
    would be used for ever.
    """

    def __init__(self, table: AdapterTable[EncoderAdapter], attempt: Attempt) -> None:
        self._table, self._attempt = table, attempt
        self._absent: dict[str, Encode] = {}
        self._held: dict[str, EncoderAdapter] = {}

    def __len__(self) -> int:
        return len(self._absent)

    def __contains__(self, request_id: object) -> bool:
        return request_id in self._absent

    @property
    def has_work(self) -> bool:
        return bool(self._absent or self._table.has_work)

    def knows(self, digest: str) -> bool:
        """Whether requests may name it."""
        return digest in self._table

    def change(self, command: LoadAdapter | UnloadAdapter) -> None:
        """Know another adapter, or forget one, which requests that have it keep."""
        if isinstance(command, LoadAdapter):
            self._table.add(command)
        else:
            self._table.drop(command.digest)

    def hold_or_add(self, command: Encode) -> bool:
        """Whether the request can run; else it waits here until `take_ready` returns it."""
        if not command.adapter:
            return True
        adapter = self._table.get(command.adapter)
        if adapter is None or self._table.waits_for_room:
            self._absent[command.request_id] = command
            return False
        self._held[command.request_id] = adapter
        return True

    def forget(self, request_id: str) -> None:
        """A request has been aborted; an unknown id is no error."""
        self._absent.pop(request_id, None)
        self._held.pop(request_id, None)

    def take_held(self, batch: Sequence[Encode]) -> dict[str, EncoderAdapter]:
        """The adapters of requests that run now, by request."""
        found = ((command.request_id, self._held.pop(command.request_id, None)) for command in batch)
        return {request_id: adapter for request_id, adapter in found if adapter is not None}

    def take_ready(self, *, is_idle: bool) -> tuple[list[Encode], list[Failed]]:
        """Go on with what is wanted. Requests that can run, in the order of arrival, and those that cannot."""
        awaited = {command.adapter for command in self._absent.values()}
        self._table.advance(lambda: list(self._held.values()), awaited, self._attempt, is_idle=is_idle)
        problems, self._table.problems = self._table.problems, {}
        failed = [
            Failed(command.request_id, SluiceError.code, f"The adapter cannot be loaded: {problem}.")
            for command in self._absent.values()
            if (problem := self._problem(command, problems)) is not None
        ]
        for reply in failed:
            del self._absent[reply.request_id]
        waiting, self._absent = self._absent, {}
        return [command for command in waiting.values() if self.hold_or_add(command)], failed

    def take_states(self) -> Iterable[AdapterState]:
        """What has changed since the last call."""
        return self._table.take_states()

    def _problem(self, command: Encode, problems: dict[str, str]) -> str | None:
        unloaded = None if command.adapter in self._table else "it was unloaded"
        return problems.get(command.adapter, unloaded)
