"""Blocks of the KV cache: who holds which, and which can serve another sequence. Knows no tensors.

A block is free, held (reference count above 0) or *cached*: held by nobody, still addressed by its hash, and taken
for new use when no free block is left; `CachedBlocks` says which. A hash covers a block's tokens and all before
them, from `Context.cache_seed` and the sequence's ``deciding_length`` on. It is published only after the block's last
token has been computed.

A fork holds its parent's blocks: the reference counts rise and nothing is copied. Who is about to write into a block
that others hold gets a copy of it first; the pairs are collected for the step and copied before it is computed.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from hashlib import blake2b

import numpy as np

from server.engine.cached_blocks import CachedBlocks
from server.engine.sequence import Sequence
from server.engine.sources import KnownSources, Source, distinct


class BlockManager:
    """The only one who changes reference counts, block tables and hashes."""

    def __init__(
        self,
        num_blocks: int,
        block_size: int,
        *,
        prefix_cache: bool,
        reuse_multiple: int = 1,
        keeps_sources: bool = False,
    ) -> None:
        """``reuse_multiple``: only so many blocks of a prompt together are kept for reuse; 1 keeps any, outputs too.

        ``keeps_sources`` lets requests with equal source texts share what the encoder made of them.
        """
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.prefix_cache = prefix_cache
        self._reuse_multiple = reuse_multiple
        self._ref_counts = [0] * num_blocks
        self._secret = secrets.token_bytes(32)
        """Nobody outside the process can compute a block's hash, and so none can be made to collide."""
        self._hashes: list[bytes | None] = [None] * num_blocks
        self._tenants = [""] * num_blocks
        """Who published each block that has a hash."""
        self._by_hash: dict[bytes, int] = {}
        self._free = list(range(num_blocks - 1, -1, -1))
        self._cached = CachedBlocks()
        """Blocks of reference count 0 that have a hash."""
        self._copies: dict[int, int] = {}
        """Blocks to be filled before the next forward pass, and the blocks whose content they get."""
        self._sources = KnownSources(keeps_idle=keeps_sources)

    @property
    def num_available(self) -> int:
        """Blocks that can be given out: free, only cached, or of a source that nobody reads."""
        return len(self._free) + len(self._cached) + self._sources.num_idle_blocks

    @property
    def num_used(self) -> int:
        return self.num_blocks - self.num_available

    def blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_size)

    def decide(self, sequence: Sequence, deciding_length: int) -> None:
        """Set the length that decides the rotary factors of a sequence that holds nothing."""
        assert sequence.num_blocks == 0, "what is computed has the factors of another length"
        if sequence.deciding_length != deciding_length:
            sequence.deciding_length = deciding_length
            sequence.block_hashes.clear()

    def admit(self, sequence: Sequence, num_spare: int) -> bool:
        """Give a sequence that holds nothing the blocks of its known tokens, reusing computed ones.

        Sets ``num_computed_tokens`` to what was reused. False, and nothing changed, if fewer than ``num_spare``
        blocks would remain.
        """
        self._cached.touch(sequence.tenant)
        hits = self._find(sequence)
        num_blocks = self.blocks_for(sequence.num_tokens)
        num_idle_hits = sum(self._ref_counts[block] == 0 for block in hits)
        if num_blocks - len(hits) + num_idle_hits + num_spare > self.num_available:
            return False
        for block in hits:
            self._cached.remove(block)
            self._ref_counts[block] += 1
        sequence.block_table[: len(hits)] = hits
        sequence.num_blocks = sequence.num_published_blocks = len(hits)
        sequence.num_computed_tokens = len(hits) * self.block_size
        self._extend(sequence, num_blocks)
        return True

    def hold_source(self, source: Source, num_spare: int) -> bool:
        """Give a request that begins the blocks of its source text, those of an equal one where there is one.

        False, and nothing changed, if fewer than ``num_spare`` blocks would remain.
        """
        state = self._sources.find(source.digest)
        if self.num_source_blocks(source) + num_spare > self.num_available:
            return False
        if state is None:
            table = [self._take() for _ in range(self.blocks_for(len(source.ids)))]
            state = self._sources.add(source, table)
        for block in state.block_table:
            self._ref_counts[block] = 1
        self._sources.hold(state)
        source.state = state
        return True

    def num_source_blocks(self, source: Source | None) -> int:
        """Blocks that `hold_source` would take of those that are available."""
        if source is None:
            return 0
        state = self._sources.find(source.digest)
        return 0 if state is not None and state.num_holders else self.blocks_for(len(source.ids))

    def release_source(self, source: Source) -> None:
        """The request reads it no more; one that holds nothing is no error."""
        state, source.state = source.state, None
        if state is None:
            return
        blocks = self._sources.release(state)
        if not state.num_holders:
            for block in state.block_table:
                self._ref_counts[block] = 0
        self._free += blocks

    def discard_source(self, source: Source) -> list[int]:
        """Take back a source's blocks and stop sharing them. Returns the blocks that no other request holds."""
        state = source.held
        self._sources.forget(state)
        # Another request that reads it has it encoded again, and fails by itself.
        state.restart(len(source.ids))
        self.release_source(source)
        return [] if state.num_holders else list(state.block_table)

    def take_lost_sources(self) -> list[int]:
        """Keys of sources that hold blocks no more."""
        return self._sources.take_lost()

    def grow(self, sequence: Sequence, num_tokens: int) -> bool:
        """Make the table cover ``num_tokens``, and what comes after the computed ones the sequence's own to write.

        False, and nothing changed, if there are not enough blocks.
        """
        # Only the block of the next token can be one that is shared: forks and rewinds leave none after it.
        place = sequence.num_computed_tokens // self.block_size
        block = int(sequence.block_table[place]) if place < sequence.num_blocks else None
        num_more = self.blocks_for(num_tokens) - sequence.num_blocks
        if num_more <= 0 and block is not None and self._ref_counts[block] == 1 and self._hashes[block] is None:
            return True  # nearly always, for a row that grows by a token
        num_more = max(0, num_more)
        is_shared = block is not None and self._ref_counts[block] > 1
        if num_more + is_shared > self.num_available:
            return False
        if block is not None:
            if is_shared:
                sequence.block_table[place] = self._copy(block)
            elif self._hashes[block] is not None:
                self._forget(block)
        if num_more:
            self._extend(sequence, sequence.num_blocks + num_more)
        return True

    def lend(self, most: int) -> list[int]:
        """Up to ``most`` blocks that no sequence holds, for a moment: `take_back` ends it."""
        return [self._take() for _ in range(min(most, self.num_available))]

    def take_back(self, blocks: Iterable[int]) -> None:
        for block in blocks:
            self._give_back(block)

    def take_copies(self) -> list[tuple[int, int]]:
        """``(source, destination)`` pairs to be copied, all at once, before anything is written."""
        copies = [(source, destination) for destination, source in self._copies.items()]
        self._copies.clear()
        return copies

    def ask_again(self, copies: Iterable[tuple[int, int]]) -> None:
        """``copies`` were taken, and the step that was to use them failed."""
        self._copies.update((destination, source) for source, destination in copies)

    def fork(self, parent: Sequence, child: Sequence, num_tokens: int) -> None:
        """``child``, which holds nothing, goes on from the first ``num_tokens`` that ``parent`` has computed."""
        num_blocks = self.blocks_for(num_tokens)
        child.block_table[:num_blocks] = parent.block_table[:num_blocks]
        for block in parent.block_table[:num_blocks].tolist():
            self._ref_counts[block] += 1
        child.num_blocks = num_blocks
        child.num_published_blocks = min(parent.num_published_blocks, num_tokens // self.block_size)
        num_known = len(child.block_hashes)
        child.block_hashes += parent.block_hashes[num_known : child.num_published_blocks]
        child.num_computed_tokens = num_tokens

    def rewind(self, sequence: Sequence, num_tokens: int) -> None:
        """Count only the first ``num_tokens`` as computed, after the sequence went back to fewer tokens."""
        del sequence.block_hashes[sequence.num_tokens // self.block_size :]
        num_blocks = self.blocks_for(num_tokens)
        for block in sequence.block_table[num_blocks : sequence.num_blocks][::-1].tolist():
            self._give_back(block)
        sequence.num_blocks = min(num_blocks, sequence.num_blocks)
        sequence.num_computed_tokens = min(num_tokens, sequence.num_computed_tokens)
        sequence.num_published_blocks = min(sequence.num_published_blocks, num_tokens // self.block_size)

    def publish_all(self, sequences: Iterable[Sequence]) -> None:
        """`publish` those with a full block that it has not seen: of rows that grow by a token, few."""
        for sequence in sequences:
            if sequence.num_computed_tokens >= (sequence.num_published_blocks + 1) * self.block_size:
                self.publish(sequence)

    def publish(self, sequence: Sequence) -> None:
        """Let full blocks whose tokens are computed by now serve other sequences."""
        num_full = self._num_reusable(sequence)
        if not self.prefix_cache or num_full <= sequence.num_published_blocks:
            return
        self._hash_up_to(sequence, num_full)
        for i in range(sequence.num_published_blocks, num_full):
            # Another sequence may have computed the same tokens meanwhile: its block serves, this one stays private.
            if sequence.block_hashes[i] not in self._by_hash:
                block = int(sequence.block_table[i])
                self._hashes[block] = sequence.block_hashes[i]
                self._by_hash[sequence.block_hashes[i]] = block
                self._tenants[block] = sequence.tenant
        sequence.num_published_blocks = num_full

    def free(self, sequence: Sequence) -> None:
        """Take all blocks back. Those with a hash stay addressable until they are needed."""
        # From the end: the beginning of a prompt is what others share, so it is evicted last.
        for block in sequence.block_table[: sequence.num_blocks][::-1].tolist():
            self._give_back(block)
        sequence.num_blocks = sequence.num_published_blocks = sequence.num_computed_tokens = 0

    def discard(self, sequence: Sequence) -> list[int]:
        """Take all blocks back and forget their content. Returns those that nobody else holds."""
        blocks: list[int] = sequence.block_table[: sequence.num_blocks].tolist()
        for block in blocks:
            self._forget(block)
        self.free(sequence)
        return [block for block in blocks if self._ref_counts[block] == 0]

    def check(self, sequences: Iterable[Sequence], sources: Iterable[Source] = ()) -> None:
        """Raise unless counts, tables and hashes agree; these are all that hold blocks. For tests."""
        counts = [0] * self.num_blocks
        for source in distinct(sources):
            for block in source.held.block_table:
                counts[block] += 1
        contents: dict[int, bytes] = {}
        for sequence in sequences:
            table = sequence.block_table[: sequence.num_blocks].tolist()
            _require(len(set(table)) == len(table), f"{sequence.request_id} holds a block twice")
            _require(
                sequence.num_published_blocks * self.block_size <= sequence.num_computed_tokens,
                f"{sequence.request_id} published a block too early",
            )
            _require(
                sequence.num_computed_tokens <= sequence.num_blocks * self.block_size,
                f"{sequence.request_id} has computed tokens outside its blocks",
            )
            for i, block in enumerate(table):
                counts[block] += 1
                stop = min(sequence.num_computed_tokens, (i + 1) * self.block_size)
                shorter, longer = sorted((contents.get(block, b""), sequence.token_ids[:stop].tobytes()), key=len)
                _require(longer.startswith(shorter), "a block is shared by sequences with different tokens")
                contents[block] = longer
                if self._hashes[block] is not None and i < sequence.num_published_blocks:
                    _require(self._hashes[block] == sequence.block_hashes[i], "a block has another block's hash")
        _require(counts == self._ref_counts, "reference counts differ from the block tables")
        # In calls that go over all blocks in C: tests check after every step.
        idle = np.flatnonzero(np.asarray(counts) == 0).tolist()
        _require(
            sorted([*self._free, *self._cached, *self._sources.idle_blocks]) == idle,
            "free and cached blocks are not the idle ones",
        )
        _require(
            len(self._by_hash) == self.num_blocks - self._hashes.count(None)
            and all(self._hashes[block] == digest for digest, block in self._by_hash.items()),
            "two records of the hashes differ",
        )
        hashed = set(self._by_hash.values())
        _require(hashed.issuperset(self._cached), "a cached block has no hash")
        _require(hashed.isdisjoint(self._free), "a free block has a hash")

    def _find(self, sequence: Sequence) -> list[int]:
        """Computed blocks that hold the sequence's beginning."""
        if not self.prefix_cache or not sequence.reuses_prefix:
            return []
        # The last known token is recomputed even when all of it is cached: its logits choose the next token.
        num_full = (sequence.num_tokens - 1) // self.block_size
        if self._reuse_multiple > 1:
            # An output may stand in another's prompt, where it was computed in other parts.
            num_full = min(num_full, sequence.num_prompt_tokens // self.block_size)
        hits: list[int] = []
        for i in range(num_full):
            self._hash_up_to(sequence, i + 1)
            block = self._by_hash.get(sequence.block_hashes[i])
            if block is None:
                break
            hits.append(block)
        return hits[: len(hits) // self._reuse_multiple * self._reuse_multiple]

    def _num_reusable(self, sequence: Sequence) -> int:
        """Leading blocks that are computed and may serve others."""
        multiple = self._reuse_multiple
        if multiple == 1:
            return sequence.num_computed_tokens // self.block_size
        num_tokens = min(sequence.num_computed_tokens, sequence.num_prompt_tokens)
        return num_tokens // (self.block_size * multiple) * multiple

    def _hash_up_to(self, sequence: Sequence, num_blocks: int) -> None:
        hashes, size = sequence.block_hashes, self.block_size
        for i in range(len(hashes), num_blocks):
            previous = hashes[-1] if hashes else _chain_start(sequence)
            tokens = sequence.token_ids[i * size : (i + 1) * size]
            hashes.append(blake2b(previous + tokens.tobytes(), digest_size=16, key=self._secret).digest())

    def _extend(self, sequence: Sequence, num_blocks: int) -> None:
        for i in range(sequence.num_blocks, num_blocks):
            sequence.block_table[i] = self._take()
        sequence.num_blocks = max(sequence.num_blocks, num_blocks)

    def _take(self) -> int:
        if self._free:
            block = self._free.pop()
        elif len(self._cached):
            block = self._cached.pop()
            self._forget(block)
        else:
            self._free += self._sources.give_up()
            block = self._free.pop()
        self._ref_counts[block] = 1
        # Its last owner may have asked for a copy and been preempted in the same step.
        self._copies.pop(block, None)
        return block

    def _copy(self, block: int) -> int:
        """A block of one's own with the content of a shared one."""
        copy = self._take()
        self._copies[copy] = block
        self._ref_counts[block] -= 1
        return copy

    def _give_back(self, block: int) -> None:
        self._ref_counts[block] -= 1
        if self._ref_counts[block] == 0:
            if self._hashes[block] is None:
                self._free.append(block)
            else:
                self._cached.add(block, self._tenants[block])

    def _forget(self, block: int) -> None:
        digest = self._hashes[block]
        if digest is not None:
            del self._by_hash[digest]
            self._hashes[block] = None


def _chain_start(sequence: Sequence) -> bytes:
    """Keys under different rotary factors are different content."""
    if not sequence.deciding_length:
        return sequence.context.cache_seed
    return blake2b(b"%b:%d" % (sequence.context.cache_seed, sequence.deciding_length), digest_size=16).digest()


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise AssertionError(message)
