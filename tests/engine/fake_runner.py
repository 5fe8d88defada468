"""A runner whose logits are a hash of the tokens that it finds in the cache, so that every mix-up changes tokens.

It stores each new token and its position in the slots that it is given, as a model stores keys and values, and reads
the whole prefix back through the block table. A wrong slot, a stale block, a wrong position or a block that is shared
and overwritten gives other logits than a lone run. With a rule for lengths, keys of two kinds in one row are an error.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

import numpy as np
import torch

from server.engine import batch_inputs
from server.engine.batch_inputs import Row
from server.engine.lengths import LengthRule
from server.engine.model_runner import ModelRunner

VOCAB_SIZE = 61
POISON = 60
"""A prefix with this token in it gives NaN."""


class FakeRunner(ModelRunner):
    name = "fake"
    attention = "none"
    device = torch.device("cpu")
    dtype = torch.float32
    vocab_size = VOCAB_SIZE
    kv_cache_bytes = 0

    def __init__(
        self,
        num_blocks: int = 64,
        block_size: int = 4,
        *,
        can_reuse_blocks: bool = True,
        length_rule: LengthRule | None = None,
    ) -> None:
        self.length_rule = length_rule
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.can_reuse_blocks = can_reuse_blocks
        self.slots = np.full((num_blocks * block_size, 2), -1, dtype=np.int64)
        self.deciding_lengths = np.zeros(num_blocks * block_size, dtype=np.int64)
        self.live: dict[int, int] = {}
        self.scored: set[int] = set()
        """Keys of rows whose first tokens all had logits: a prompt that is scored, or one of a single token."""
        self.num_computed = 0
        self.batches: list[list[Row]] = []

    def forward(self, rows: Sequence[Row]) -> torch.Tensor:
        inputs = batch_inputs.build(rows, self.block_size, self.device)
        slots = inputs.slots_T.numpy()
        assert len(set(slots.tolist())) == len(slots), "two tokens share a slot"
        self.slots[slots, 0] = inputs.token_ids_T.numpy()
        self.slots[slots, 1] = inputs.position_ids_T.numpy()
        self.deciding_lengths[slots] = np.repeat(
            [row.deciding_length for row in rows], [len(r.token_ids) for r in rows]
        )
        self.num_computed += len(slots)
        self.batches.append(list(rows))
        logits = [torch.empty(0, self.vocab_size)]
        failed = []
        for i, row in enumerate(rows):
            stop = row.num_computed + len(row.token_ids)
            # A key that comes back after its blocks were given up would find another sequence's state.
            assert row.key not in self.live or self.live[row.key] == row.num_computed
            self.live[row.key] = stop
            if row.num_computed == 0 and row.num_logits == len(row.token_ids):
                self.scored.add(row.key)
            self._check_lengths(row, stop)
            prefix = self._prefix(row, stop)
            logits += [self.logits_of(prefix[: len(prefix) - j])[None] for j in reversed(range(row.num_logits))]
            if row.num_logits == 0 and not self.logits_of(prefix).isfinite().all():
                failed.append(i)
        self.failed_rows = failed
        return torch.cat(logits)

    def fork(self, parent_key: int, child_key: int) -> None:
        assert child_key not in self.live
        if not self.can_reuse_blocks:
            self.live[child_key] = self.live[parent_key]

    def rewind(self, key: int, num_tokens: int) -> int:
        """A runner that shares no blocks cannot go back either: it begins anew."""
        self.live[key] = num_tokens if self.can_reuse_blocks else 0
        return self.live[key]

    def release(self, key: int) -> None:
        self.live.pop(key, None)

    def copy_blocks(self, pairs: Sequence[tuple[int, int]]) -> None:
        sources, destinations = np.array(pairs).T
        for kept in (self.slots, self.deciding_lengths):
            blocks = kept.reshape(self.num_blocks, self.block_size, -1)
            blocks[destinations] = blocks[sources]

    def clear_blocks(self, blocks: Sequence[int]) -> None:
        for block in blocks:
            self.slots[block * self.block_size : (block + 1) * self.block_size] = -1

    @staticmethod
    def logits_of(prefix: np.ndarray) -> torch.Tensor:
        """Logits after ``prefix``, rows of (token, position)."""
        if (prefix[:, 0] == POISON).any():
            return torch.full((VOCAB_SIZE,), torch.nan)
        seed = int.from_bytes(blake2b(prefix.tobytes(), digest_size=8).digest(), "little")
        logits = np.random.default_rng(seed).normal(scale=2.0, size=VOCAB_SIZE)
        logits[POISON] = -1e9
        return torch.from_numpy(logits).float()

    def _check_lengths(self, row: Row, stop: int) -> None:
        """All keys of a row are of one kind, and of the kind that each length with logits asks for."""
        assert (self.deciding_lengths[self._slots(row, stop)] == row.deciding_length).all()
        if self.length_rule is None or self.length_rule.is_by_prompt:
            return
        for length in range(stop - row.num_logits + 1, stop + 1):
            # All parts of a scored prompt have the factors of the whole, which may be longer than what is here by now.
            if row.deciding_length == 0 or row.key not in self.scored:
                assert self.length_rule.deciding_length(0, length) == row.deciding_length

    def _slots(self, row: Row, stop: int) -> list[int]:
        return [row.block_table[i // self.block_size] * self.block_size + i % self.block_size for i in range(stop)]

    def _prefix(self, row: Row, stop: int) -> np.ndarray:
        return self.slots[self._slots(row, stop)]
