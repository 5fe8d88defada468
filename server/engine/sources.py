"""Source texts of encoder-decoder models: who reads which, in which blocks they lie, and which one is given up next.

A source is encoded once, in one step or in parts of several, and read by all rows of its request: its keys and values
for the decoder's cross-attention take the place of a block for every ``block_size`` of its tokens. When the last
request that reads it has ended it stays *idle*, and serves an equal text, until its blocks are needed.

Knows no tensors.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from hashlib import blake2b


class SourceState:
    """What is held of one text, for all requests that read it."""

    __slots__ = ("block_table", "digest", "is_computed", "key", "num_holders", "num_left", "num_units")

    def __init__(self, digest: bytes, key: int, block_table: Sequence[int], length: int) -> None:
        self.digest = digest
        self.key = key
        """Names it for as long as it holds blocks; no other text ever has the same."""
        self.block_table = block_table
        """Blocks for all of its tokens. `BlockManager` counts who holds them."""
        self.is_computed = False
        """Whether steps have encoded all of it: rows that read it wait until then."""
        self.num_units = 0
        """How far steps have encoded it, as `EncoderPasses` counts."""
        self.num_left = length
        """What is left of it, in tokens that cost as much."""
        self.num_holders = 0
        """Requests that read it now; 0 is idle."""

    @property
    def is_begun(self) -> bool:
        """Whether the runner holds what a part of it has come to."""
        return self.num_units > 0 and not self.is_computed

    def advance(self, num_units: int, num_left: int) -> None:
        """A step has computed its next part."""
        self.num_units, self.num_left = num_units, num_left
        self.is_computed = num_left == 0

    def restart(self, length: int) -> None:
        """All ``length`` tokens are to be encoded again."""
        self.is_computed, self.num_units, self.num_left = False, 0, length


class Source:
    """The text that one request's rows read: one object for all of them."""

    __slots__ = ("digest", "ids", "state")

    def __init__(self, ids: Sequence[int], seed: bytes = b"") -> None:
        """``seed`` differs for requests that may share nothing."""
        self.ids = ids
        self.digest = blake2b(seed + b"".join(id_.to_bytes(4, "little") for id_ in ids), digest_size=32).digest()
        self.state: SourceState | None = None
        """While the request runs."""

    @property
    def held(self) -> SourceState:
        """The state of a request that runs."""
        assert self.state is not None
        return self.state

    @property
    def is_computed(self) -> bool:
        return self.state is not None and self.state.is_computed

    @property
    def num_left(self) -> int:
        """What is to be encoded, in tokens that cost as much."""
        return len(self.ids) if self.state is None else self.state.num_left


def held_source(ids: Sequence[int], key: int = 0, block_table: Sequence[int] = ()) -> Source:
    """A source that no request reads, to try a runner with."""
    source = Source(ids)
    source.state = SourceState(source.digest, key, block_table, len(ids))
    return source


class KnownSources:
    """The states of all texts that hold blocks, by digest."""

    def __init__(self, *, keeps_idle: bool) -> None:
        """``keeps_idle`` lets requests share equal texts, at the same time and later."""
        self._keeps_idle = keeps_idle
        self._states: dict[bytes, SourceState] = {}
        """Those that another request may share."""
        self._idle: OrderedDict[bytes, SourceState] = OrderedDict()
        """Least recently used first."""
        self._lost: list[int] = []
        self._next_key = 0
        self.num_idle_blocks = 0

    @property
    def idle_blocks(self) -> list[int]:
        return [block for state in self._idle.values() for block in state.block_table]

    def find(self, digest: bytes) -> SourceState | None:
        return self._states.get(digest)

    def add(self, source: Source, block_table: Sequence[int]) -> SourceState:
        state = SourceState(source.digest, self._next_key, block_table, len(source.ids))
        self._next_key += 1
        if self._keeps_idle:
            self._states[source.digest] = state
        return state

    def hold(self, state: SourceState) -> None:
        """One more request reads it."""
        state.num_holders += 1
        if self._idle.pop(state.digest, None) is not None:
            self.num_idle_blocks -= len(state.block_table)

    def release(self, state: SourceState) -> Sequence[int]:
        """One request fewer reads it. Returns its blocks if nothing of it is kept."""
        state.num_holders -= 1
        if state.num_holders:
            return ()
        if state.is_computed and self._states.get(state.digest) is state:
            self._idle[state.digest] = state
            self.num_idle_blocks += len(state.block_table)
            return ()
        return self._lose(state)

    def forget(self, state: SourceState) -> None:
        """No other request may share it: what was computed is not finite."""
        if self._states.get(state.digest) is state:
            del self._states[state.digest]

    def give_up(self) -> Sequence[int]:
        """Lose the idle text that was used least recently. Returns its blocks."""
        _, state = self._idle.popitem(last=False)
        self.num_idle_blocks -= len(state.block_table)
        return self._lose(state)

    def take_lost(self) -> list[int]:
        """Keys of texts that were lost since the last call: the runner drops what it holds for them."""
        lost, self._lost = self._lost, []
        return lost

    def _lose(self, state: SourceState) -> Sequence[int]:
        self.forget(state)
        self._lost.append(state.key)
        return state.block_table


def distinct(sources: Iterable[Source | None]) -> list[Source]:
    """Each text that is held once."""
    return list({source.held.key: source for source in sources if source is not None}.values())
