"""The adapters that one worker serves beside its model, by digest, the same through all its restarts.

Plain state without waiting but for the first answer: what is sent when is for `worker_client`.
"""

from __future__ import annotations

import asyncio
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import msgspec

from server.adapter_errors import AdapterQuarantined
from server.errors import SluiceError
from server.protocol import AdapterState, LoadAdapter, Residence, SharedAdapter

DEADLY_DEATHS = 2
"""Workers that may die while they read an adapter, or of a request with it alone, until it is quarantined."""


class AdapterVersion:
    """One content of an adapter in a worker. Requests may name it as long as anybody holds this object."""

    def __init__(self, facts: SharedAdapter) -> None:
        self.digest = facts.digest
        self.facts = facts
        self.parts: Sequence[AdapterVersion] = ()
        """The adapters that a sum consists of. It needs their files."""


class NotServed(Exception):
    """Why the worker cannot serve an adapter, as the end of a sentence."""


class Adapters:
    """What the next worker has to know of adapters, and what this one has answered."""

    def __init__(self, on_drop: Callable[[str], None]) -> None:
        """``on_drop`` is called when nobody holds a version any more."""
        self.initial: dict[str, AdapterVersion] = {}
        """By name, those that the first worker was started with and serves. Who serves them takes them."""
        self._on_drop = on_drop
        self._known: dict[str, LoadAdapter] = {}
        self._states: dict[str, Residence] = {}
        self._num_bytes: dict[str, int] = {}
        self._answers: dict[str, asyncio.Future[AdapterVersion]] = {}
        self._versions: weakref.WeakValueDictionary[str, AdapterVersion] = weakref.WeakValueDictionary()
        self._deaths: Counter[str] = Counter()
        """Of workers that read it, since it was last read."""
        self._culprits: Counter[str] = Counter()
        """Requests with it that ended workers, since one was answered."""
        self._quarantined: set[str] = set()
        self._new: tuple[LoadAdapter, ...] = ()
        self._copies: Counter[str] = Counter()
        """Commands by digest, each of which holds a copy of the adapter's files."""

    def begin(self, sources: Sequence[LoadAdapter]) -> None:
        """The first worker gets these with its model."""
        self._new = tuple(sources)
        self._copies.update(source.digest for source in sources)

    @property
    def to_load(self) -> tuple[LoadAdapter, ...]:
        """Commands that the next worker gets with its model."""
        return (*self._new, *(source for source in self._known.values() if source.is_known))

    @property
    def to_send(self) -> list[LoadAdapter]:
        """Commands that a worker gets once it is ready."""
        return [source for source in self._known.values() if not source.is_known]

    @property
    def num_known(self) -> int:
        return len(self._known)

    @property
    def resident(self) -> list[str]:
        """Digests of those that the worker holds in memory."""
        return [digest for digest, state in self._states.items() if state == "resident"]

    @property
    def resident_bytes(self) -> int:
        return sum(self._num_bytes.get(digest, 0) for digest in self.resident)

    def state(self, digest: str) -> str:
        """For people."""
        return "quarantined" if digest in self._quarantined else self._states.get(digest, "on disk")

    def is_quarantined(self, digest: str) -> bool:
        return digest in self._quarantined

    def source(self, digest: str) -> LoadAdapter | None:
        """The command that the worker got for a version."""
        return self._known.get(digest)

    def find(self, digest: str) -> AdapterVersion | None:
        """A version that the worker serves."""
        return None if digest in self._quarantined else self._versions.get(digest)

    def add(self, source: LoadAdapter) -> asyncio.Future[AdapterVersion]:
        """The caller sends the command to the worker. Returns the version, or raises NotServed."""
        self._quarantined.discard(source.digest)
        self._deaths.pop(source.digest, None)
        self._culprits.pop(source.digest, None)
        self._known[source.digest] = source
        self._copies[source.digest] += 1
        if source.digest not in self._answers:
            self._answers[source.digest] = asyncio.get_running_loop().create_future()
        return self._answers[source.digest]

    def hold(self, facts: SharedAdapter) -> AdapterVersion:
        """The version that the worker has answered for, kept as long as the result is."""
        version = self._versions.get(facts.digest)
        if version is None:
            version = self._versions[facts.digest] = AdapterVersion(facts)
            loop = asyncio.get_running_loop()
            # Collected in whatever thread, and at the end of the process too.
            weakref.finalize(version, _call_in, loop, self._drop, facts.digest).atexit = False
        return version

    def _drop(self, digest: str) -> None:
        if digest in self._versions or digest in self._answers:
            return  # loaded again meanwhile
        self._known.pop(digest, None)
        self._states.pop(digest, None)
        self._num_bytes.pop(digest, None)
        self._quarantined.discard(digest)
        self._deaths.pop(digest, None)
        self._culprits.pop(digest, None)
        self._release(digest)

    def _release(self, digest: str) -> None:
        """Nothing here needs the adapter's files any more."""
        for _ in range(self._copies.pop(digest, 0)):
            self._on_drop(digest)

    def on_ready(self, answers: Iterable[SharedAdapter]) -> None:
        """What a worker found of the adapters that it was started with."""
        sources = {source.model.name: source for source in self._new}
        self._new = ()
        for facts in answers:
            if facts.problem is None and (source := sources.get(facts.name)) is not None:
                self._known[source.digest] = msgspec.structs.replace(source, is_known=True)
                self._states[source.digest] = "resident"
                self._num_bytes[source.digest] = facts.num_bytes
                self.initial[facts.name] = self.hold(facts)
        for source in sources.values():
            if source.digest not in self._known:
                self._release(source.digest)

    def on_state(self, reply: AdapterState) -> None:
        """What the worker said of one."""
        digest, facts = reply.digest, reply.facts
        source = self._known.get(digest)
        if source is None:
            return
        self._states[digest] = reply.state
        if reply.state == "resident":
            self._deaths.pop(digest, None)
        if facts is None:
            return
        answer = self._answers.pop(digest, None)
        if facts.problem is not None:
            del self._known[digest], self._states[digest]
            self._release(digest)
            if answer is not None and not answer.done():
                answer.set_exception(NotServed(facts.problem))
            return
        self._known[digest] = msgspec.structs.replace(source, is_known=True)
        self._num_bytes[digest] = facts.num_bytes
        # Held from here on: an older object of the same version may be collected in this moment.
        version = self.hold(facts)
        if answer is not None and not answer.done():
            answer.set_result(version)

    def on_death(self, culprit: str) -> set[str]:
        """The worker died; ``culprit`` is the adapter of a request that did it, or empty. Those quarantined by that."""
        suspects = {digest for digest, state in self._states.items() if state == "loading"}
        self._deaths.update(suspects)
        if culprit:
            suspects.add(culprit)
            self._culprits[culprit] += 1
        self._states = dict.fromkeys(self._states, "on disk")
        found = {digest for digest in suspects if max(self._deaths[digest], self._culprits[digest]) >= DEADLY_DEATHS}
        for digest in found:
            self._quarantined.add(digest)
            self._known.pop(digest, None)
            if (answer := self._answers.pop(digest, None)) is not None and not answer.done():
                answer.set_exception(AdapterQuarantined())
            if digest not in self._versions:
                self._release(digest)
        return found

    def on_finished(self, digest: str) -> None:
        """A request with the adapter was answered in full."""
        self._culprits.pop(digest, None)

    def stop(self, error: SluiceError) -> None:
        """No worker will answer any more."""
        answers, self._answers = self._answers, {}
        for answer in answers.values():
            if not answer.done():
                answer.set_exception(error)


def _call_in(loop: asyncio.AbstractEventLoop, call: Callable[[str], None], digest: str) -> None:
    if not loop.is_closed():
        loop.call_soon_threadsafe(call, digest)
