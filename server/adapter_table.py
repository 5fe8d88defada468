"""Adapters of an engine: which are known, which are held, and which is being read. Knows no files.

What is held stays within a limit of bytes, beside the one that is being read. Those used last are kept, and one that a
request has is never given up. Reading is slow and goes on in a thread; all methods are for the engine's.
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Callable, Collection
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import torch

from server.modules.adapted import NotShared
from server.protocol import AdapterState, LoadAdapter, Residence, SharedAdapter

SWITCH_INTERVAL_S = 0.0002
LONGEST_WAIT_S = 0.01
"""What an engine that has nothing else to do waits at a time: a new request is seen no later."""


class Held(Protocol):
    """What an engine computes an adapter with."""

    @property
    def num_bytes(self) -> int: ...


HeldT = TypeVar("HeldT", bound=Held)


@dataclass(frozen=True)
class ReadAdapter(Generic[HeldT]):
    """An adapter packed for the engine, and what the front must know of it."""

    adapter: HeldT
    facts: SharedAdapter


Read = Callable[[LoadAdapter], ReadAdapter[HeldT]]
"""Raises `NotShared` for an adapter that the engine cannot serve. Called in a thread, once at a time."""


class AdapterTable(Generic[HeldT]):
    """All that requests of one engine may name, by digest."""

    def __init__(self, read: Read[HeldT] | None = None, *, max_bytes: int = 0) -> None:
        """Without ``read``, every adapter is refused."""
        self._read = read
        self._max_bytes = max_bytes
        self._known: dict[str, LoadAdapter] = {}
        self._held: OrderedDict[str, HeldT] = OrderedDict()
        """The one used last at the end."""
        self._unanswered: set[str] = set()
        """Commands whose facts have not been sent."""
        self._wanted: list[str] = []
        """To be read, in order; the first is being read, or waits for room."""
        self._reading: Future[ReadAdapter[HeldT]] | None = None
        self._is_announced = False
        """Whether the front has been sent which one is read next."""
        self._new: ReadAdapter[HeldT] | None = None
        """Read, and not yet held."""
        self._waits_for_room = False
        self._states: list[AdapterState] = []
        self._pool: ThreadPoolExecutor | None = None
        self.problems: dict[str, str] = {}
        """Why those that were read in vain cannot be had; for `AdapterQueue`, which empties it."""

    def __contains__(self, digest: object) -> bool:
        return digest in self._known

    @property
    def has_work(self) -> bool:
        return bool(self._wanted or self._states)

    @property
    def num_bytes(self) -> int:
        """Of those that are held."""
        return sum(adapter.num_bytes for adapter in self._held.values())

    @property
    def waits_for_room(self) -> bool:
        """Whether one that a request needs was read, and those in use leave no room for it."""
        return self._waits_for_room

    def add(self, source: LoadAdapter) -> None:
        """Know an adapter, and read it unless it was known to an earlier worker. `take_states` answers."""
        self._known[source.digest] = source
        if not source.is_known:
            self._unanswered.add(source.digest)
            self._want(source.digest)

    def put(self, source: LoadAdapter, adapter: HeldT) -> None:
        """Know and hold one that was read and tried already, while no request has any."""
        self._known[source.digest] = source
        if self._make_room(adapter.num_bytes, ()):
            self._held[source.digest] = adapter

    def drop(self, digest: str) -> None:
        """Forget an adapter. Requests that have it keep it."""
        self._known.pop(digest, None)
        self._held.pop(digest, None)
        self._unanswered.discard(digest)
        if digest in self._wanted[1:]:
            self._wanted.remove(digest)

    def get(self, digest: str) -> HeldT | None:
        """A known adapter, counted as used; None while it is absent, and then it is read."""
        adapter = self._held.get(digest)
        if adapter is None:
            self._want(digest)
        else:
            self._held.move_to_end(digest)
        return adapter

    def is_held(self, digest: str) -> bool:
        return digest in self._held

    def take_states(self) -> list[AdapterState]:
        """What has changed since the last call."""
        states, self._states = self._states, []
        return states

    def advance(
        self, in_use: Callable[[], Collection[HeldT]], awaited: Collection[str], attempt: Callable[[HeldT], bool],
        *, is_idle: bool,
    ) -> None:  # fmt: skip
        """Go on with what is wanted.

        ``in_use`` are those that requests have, ``awaited`` those that requests wait for. ``attempt`` tries a new one
        in a step: False if that has to wait, and it raises `NotShared`. ``is_idle`` waits a moment for the thread.
        """
        if self._reading is not None:
            if is_idle:
                wait([self._reading], LONGEST_WAIT_S)
            if not self._reading.done():
                return
            self._finish_reading(self._reading)
        if self._new is not None:
            self._settle(self._new, in_use, awaited, attempt)
        if self._wanted and self._reading is None and self._new is None:
            self._start_reading()

    def _want(self, digest: str) -> None:
        if digest not in self._wanted:
            self._wanted.append(digest)
            # That of an earlier time, which nobody waited for.
            self.problems.pop(digest, None)

    def _start_reading(self) -> None:
        source = self._known.get(self._wanted[0])
        if source is None:
            self._wanted.pop(0)
            return
        if not self._is_announced:
            # The front hears of it first, and so knows which adapter it was if reading ends the process.
            self._is_announced = True
            self._tell(source.digest, "loading")
            return
        self._is_announced = False
        if self._pool is None:
            self._pool = ThreadPoolExecutor(1, "adapters", initializer=_give_way)
        self._reading = self._pool.submit(self._read_in_thread, source)

    def _read_in_thread(self, source: LoadAdapter) -> ReadAdapter[HeldT]:
        if self._read is None:
            raise NotShared("models of this kind do not share their workers")
        return self._read(source)

    def _finish_reading(self, future: Future[ReadAdapter[HeldT]]) -> None:
        self._reading = None
        try:
            new = future.result()
        except NotShared as problem:
            self._refuse(str(problem))
            return
        if new.adapter.num_bytes > self._max_bytes:
            self._refuse(too_large(new.adapter, self._max_bytes))
        elif self._wanted[0] not in self._known:
            self._wanted.pop(0)
        else:
            self._new = new

    def _settle(
        self, new: ReadAdapter[HeldT], in_use: Callable[[], Collection[HeldT]], awaited: Collection[str],
        attempt: Callable[[HeldT], bool],
    ) -> None:  # fmt: skip
        digest = self._wanted[0]
        try:
            if digest in self._unanswered and not attempt(new.adapter):
                return
        except NotShared as problem:
            self._refuse(str(problem))
            return
        facts = new.facts if digest in self._unanswered else None
        self._unanswered.discard(digest)
        is_first_try, self._waits_for_room = not self._waits_for_room, False
        if digest not in self._known:
            pass
        elif self._make_room(new.adapter.num_bytes, in_use()):
            self._held[digest] = new.adapter
            self._tell(digest, "resident", facts)
        elif digest in awaited:
            self._waits_for_room = True
            if is_first_try:
                self._tell(digest, "on disk", facts)
            return
        else:
            self._tell(digest, "on disk", facts)
        self._new = None
        self._wanted.pop(0)

    def _make_room(self, num_bytes: int, in_use: Collection[HeldT]) -> bool:
        """Give up those used longest ago; False, and nothing changed, where those in use leave too little."""
        used = {id(adapter) for adapter in in_use}
        missing = self.num_bytes + num_bytes - self._max_bytes
        given_up = []
        for digest, adapter in self._held.items():
            if missing <= 0:
                break
            if id(adapter) not in used:
                given_up.append(digest)
                missing -= adapter.num_bytes
        if missing > 0:
            return False
        for digest in given_up:
            del self._held[digest]
            self._tell(digest, "on disk")
        return True

    def _refuse(self, problem: str) -> None:
        """The one that is being read cannot be had. One that was never served is forgotten."""
        self._new = None
        digest = self._wanted.pop(0)
        source = self._known.get(digest)
        if source is None:
            return
        self.problems[digest] = problem
        facts = None
        if digest in self._unanswered:
            self.drop(digest)
            facts = SharedAdapter(name=source.model.name, digest=digest, problem=problem)
        self._tell(digest, "on disk", facts)

    def _tell(self, digest: str, state: Residence, facts: SharedAdapter | None = None) -> None:
        self._states.append(AdapterState(digest, state, facts))


def _give_way() -> None:
    """In the thread: steps go on meanwhile."""
    torch.set_num_threads(1)
    # A step takes the interpreter's lock back from this thread dozens of times, and waits so long each time.
    sys.setswitchinterval(SWITCH_INTERVAL_S)


def too_large(adapter: Held, max_bytes: int) -> str:
    return f"it takes {adapter.num_bytes} bytes and max_adapter_gib allows {max_bytes}"
