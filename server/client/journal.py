"""The running requests of one worker: what was asked, what has been delivered, and who is suspected of killing it.

Plain state without waiting: the asyncio half is in `worker_client`, processes are in `supervisor`.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import msgspec

from server.client.delivery import Delivery
from server.errors import SluiceError
from server.protocol import Encode, FinishReason, Generate, Scores, Tokens

SUSPICIOUS_DEATHS = 2
"""From so many deaths of the worker on, without a sign of life from the request in between, it is sent in trials."""


class News:
    """An event with one task that waits for it, at a third of the cost of asyncio's."""

    __slots__ = ("_is_set", "_waiting")

    def __init__(self) -> None:
        self._is_set = False
        self._waiting: asyncio.Future[None] | None = None

    def is_set(self) -> bool:
        return self._is_set

    def set(self) -> None:
        self._is_set = True
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    def clear(self) -> None:
        self._is_set = False

    async def wait(self) -> None:
        if not self._is_set:
            self._waiting = asyncio.get_running_loop().create_future()
            await self._waiting


@dataclass(eq=False, slots=True)
class Entry:
    """One request until it is finished or forgotten."""

    wire_id: str
    """Its id between front and worker, never used twice: clients may choose alike, and replies may come late."""
    command: Generate | Encode
    outputs: list[Delivery] = field(init=False)
    """One for each sequence that is answered; none for an encoder's request."""
    scores: Scores | None = None
    error: SluiceError | None = None
    unread_since_s: float | None = None
    """Monotonic time of the oldest token that the consumer does not have."""
    news: News = field(default_factory=News)
    sent: bool = False
    """The worker that runs now has it."""
    was_sent: bool = False
    """Some worker has had it."""
    progressed: bool = False
    """The worker that runs now has answered something for it."""
    deaths: int = 0
    """Workers in a row that died with it and without any answer for it."""
    on_start: Callable[[], None] | None = None
    """Called once, after the first step that computed any of it: the end of its time in the queue."""

    def __post_init__(self) -> None:
        params = self.command.params if isinstance(self.command, Generate) else None
        self.outputs = [Delivery(index) for index in range(params.num_return_sequences if params else 0)]

    def mark_started(self) -> None:
        """A step has computed some of it."""
        if self.on_start is not None:
            self.on_start()
            self.on_start = None

    @property
    def begins_anew(self) -> bool:
        """Whether the next worker gets it without what was delivered: live beams are not in the journal."""
        return isinstance(self.command, Generate) and self.command.params.num_beams > 1

    def resumed(self) -> Generate | Encode:
        """The command as the next worker must get it."""
        command = msgspec.structs.replace(self.command, request_id=self.wire_id)
        if isinstance(command, Encode) or self.begins_anew or not any(output.has_begun for output in self.outputs):
            return command
        return msgspec.structs.replace(command, outputs=[output.resumed() for output in self.outputs])

    def lose_worker(self) -> None:
        """The worker that had it, if one did, is dead."""
        self.sent = self.progressed = False
        if self.begins_anew:
            for output in self.outputs:
                output.begin_anew()

    def append(self, tokens: Tokens) -> None:
        """Deliver what the worker computed. Raises `OutputDiverged`."""
        output = self.outputs[tokens.index]
        output.append(tokens)
        # Where something is unread, the consumer has been told.
        if self.unread_since_s is None and output.has_news:
            self._tell()

    def end(self, finish_reason: FinishReason) -> None:
        """End every output that is not finished."""
        for output in self.outputs:
            output.end(finish_reason)
        self._tell()

    def drop(self, indices: Iterable[int]) -> list[int]:
        """Let outputs be whose end the consumer has seen. Those of them that a worker may still go on with."""
        going_on = [index for index in indices if self.outputs[index].finish_reason is None]
        for index in going_on:
            self.outputs[index].drop()
        return going_on

    def _tell(self) -> None:
        if self.unread_since_s is None:
            self.unread_since_s = time.monotonic()
        self.news.set()

    @property
    def is_finished(self) -> bool:
        # Loops, here and below, for generator expressions cost more than all else that is done for a token.
        for output in self.outputs:  # noqa: SIM110
            if output.finish_reason is None:
                return False
        return True

    @property
    def all_taken(self) -> bool:
        for output in self.outputs:  # noqa: SIM110
            if output.has_news:
                return False
        return True

    @property
    def unread_s(self) -> float:
        """For how long the consumer has taken nothing of what is there."""
        return 0.0 if self.unread_since_s is None else time.monotonic() - self.unread_since_s

    def take(self) -> list[Tokens]:
        """All that the consumer has not had yet, as one message for each output that has news."""
        self.unread_since_s = None
        if self.error is None:
            self.news.clear()
        request_id = self.command.request_id
        return [output.take(request_id) for output in self.outputs if output.has_news]


@dataclass(frozen=True, kw_only=True)
class Death:
    """What the journal makes of a worker's death."""

    culprit: Entry | None
    """The request that is proven to kill workers, already removed."""
    was_trial: bool
    """A suspect was in the worker, so that the death tells more about the request than about the worker."""


class Journal:
    """Keeps the order of arrival, and decides which requests the worker may have.

    After one death all go back to the next worker. A request that is twice in a row in a worker that dies, and never
    answers in between, is a suspect: it goes back only after all others have shown life, half of the most suspicious
    at a time. Whoever answers is cleared. The last suspect gets a worker of its own, and if that dies too, it is
    the culprit.
    """

    def __init__(self) -> None:
        self._entries: dict[str, Entry] = {}
        self._unsent: dict[str, Entry] = {}
        """Those that the worker does not have, so that one more request costs the same however many there are."""
        self._may_have_suspects = False
        self._numbers = itertools.count()

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Entry]:
        return iter(list(self._entries.values()))

    @property
    def worker_has_work(self) -> bool:
        return any(entry.sent for entry in self._entries.values())

    def add(self, command: Generate | Encode) -> Entry:
        entry = Entry(f"{command.request_id}#{next(self._numbers)}", command)
        self._entries[entry.wire_id] = self._unsent[entry.wire_id] = entry
        return entry

    def get(self, wire_id: str) -> Entry | None:
        return self._entries.get(wire_id)

    def remove(self, entry: Entry) -> bool:
        """Whether it was there."""
        self._unsent.pop(entry.wire_id, None)
        return self._entries.pop(entry.wire_id, None) is not None

    def take_sendable(self) -> list[Entry]:
        """What the worker may have now, in order, and is taken to have from now on.

        Ask again when a suspect was cleared, or a request has ended or arrived.
        """
        entries: list[Entry] = []
        while stage := self._next_stage():
            for entry in stage:
                entry.sent = entry.was_sent = True
                del self._unsent[entry.wire_id]
            entries += stage
        return entries

    def _next_stage(self) -> list[Entry]:
        unsent = list(self._unsent.values())
        if not self._may_have_suspects:
            return unsent
        suspects = [entry for entry in self._entries.values() if entry.deaths >= SUSPICIOUS_DEATHS]
        if not suspects:
            self._may_have_suspects = False
            return unsent
        most = max(entry.deaths for entry in suspects)
        prime = [entry for entry in suspects if entry.deaths == most]
        if len(prime) == 1 and (prime[0].sent or not self.worker_has_work):
            return [entry for entry in prime if not entry.sent]
        innocents = [entry for entry in unsent if entry.deaths < SUSPICIOUS_DEATHS]
        if innocents or any(entry.sent and entry.deaths for entry in self._entries.values()):
            return innocents
        return prime[: (len(prime) + 1) // 2]

    def mark_alive(self, entry: Entry) -> bool:
        """The worker answered for it. Whether that cleared it of a suspicion."""
        cleared = entry.deaths > 0
        entry.progressed = True
        entry.deaths = 0
        return cleared

    def worker_died(self) -> Death:
        """Count the death against those that were in the worker in silence; all may be sent again."""
        inside = [entry for entry in self._entries.values() if entry.sent]
        silent = [entry for entry in inside if not entry.progressed]
        was_trial = any(entry.deaths >= SUSPICIOUS_DEATHS for entry in silent)
        for entry in silent:
            entry.deaths += 1
        for entry in inside:
            entry.lose_worker()
        self._unsent = dict(self._entries)
        self._may_have_suspects = any(entry.deaths >= SUSPICIOUS_DEATHS for entry in self._entries.values())
        culprit = None
        if inside == silent and len(inside) == 1 and inside[0].deaths >= SUSPICIOUS_DEATHS:
            culprit = inside[0]
            self.remove(culprit)
        return Death(culprit=culprit, was_trial=was_trial)
