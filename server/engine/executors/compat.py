"""transformers' own forward pass and caches, one sequence after the other: slow, and right where nothing else is."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import Cache, DynamicLayer

from server.engine.batch_inputs import Row
from server.engine.executors.lengthwise import Lengthwise, Span, spans_step
from server.engine.executors.virtual import behind_given, given_embeddings, model_input, num_given, padded
from server.engine.model_runner import ModelRunner
from server.module_state import ModuleState
from server.modules.adapted import numbered, whole_parts
from server.native.adapted import AdaptedRows, Runs, adapting
from server.native.linear import held_bytes


class CompatRunner(ModelRunner):
    """Holds one `DynamicCache` per sequence. Blocks only count memory: their content cannot be shared or copied.

    A fork gets a clone of its parent's cache, or the cache itself where the parent ends first, though the blocks that
    both hold are counted once.
    """

    name = "compat"
    can_reuse_blocks = False

    def __init__(
        self,
        module: PreTrainedModel,
        *,
        num_blocks: int,
        block_size: int,
        block_bytes: int,
        vocab_size: int,
        resumes_token_by_token: bool = False,
        lengthwise: Lengthwise | None = None,
        restores: bool = False,
    ) -> None:
        """``lengthwise`` is what the module's rotary parts ask, where they follow from sequences' lengths.

        ``restores`` undoes what each forward pass changes in the module, so that the next sequence finds it as loaded.
        """
        self._state = ModuleState(module) if restores else None
        self._module = module
        self._resumes_token_by_token = resumes_token_by_token
        self._lengthwise = lengthwise
        self.length_rule = None if lengthwise is None else lengthwise.rule
        self._caches: dict[int, Any] = {}
        self._unmade: dict[int, int] = {}
        """Forks without a cache of their own yet, and the sequences whose caches they begin with."""
        self._lengths: dict[int, int] = {}
        self._parameters = inspect.signature(module.forward).parameters
        self.attention = str(module.config._attn_implementation)
        self.device = module.device
        self.dtype = module.dtype
        self.vocab_size = vocab_size
        self.block_size = block_size
        self.num_blocks = num_blocks
        self.kv_cache_bytes = num_blocks * block_bytes
        self.weight_bytes = held_bytes(module)
        self.parts = numbered(whole_parts(module))

    @property
    def num_held(self) -> int:
        """Sequences with a cache."""
        return len(self._caches)

    def cache_bytes(self) -> int:
        """Bytes of all tensors that the caches hold now."""
        return sum(map(tensor_bytes, map(self._of_row, self._caches.values())))

    def forward(self, rows: Sequence[Row]) -> Tensor:
        self._make_forks()
        # What a cache holds shows in the last token's logits, which are computed where none are wanted, too.
        logits = [self._advance(row) for row in rows]
        parts = zip(rows, logits, strict=True)
        self.failed_rows = [
            i for i, (row, part) in enumerate(parts) if row.num_logits == 0 and not bool(part.isfinite().all())
        ]
        return torch.cat([part[len(part) - row.num_logits :] for row, part in zip(rows, logits, strict=True)])

    @torch.inference_mode()
    def measure_block(self) -> int:
        """Bytes that a sequence of one block holds in the model's own cache."""
        ids = [1] * self.block_size
        self.forward([Row(key=0, token_ids=ids, num_computed=0, block_table=[0])])
        size = max(1, self.cache_bytes())
        self.release(0)
        return size

    def release(self, key: int) -> None:
        cache = self._caches.pop(key, None)
        self._lengths.pop(key, None)
        self._unmade.pop(key, None)
        heirs = [child for child, parent in self._unmade.items() if parent == key]
        if heirs:
            # One of them takes it over, the others copy that one's.
            assert cache is not None
            first, *others = heirs
            del self._unmade[first]
            self._caches[first] = cache
            self._unmade.update(dict.fromkeys(others, first))

    def fork(self, parent_key: int, child_key: int) -> None:
        # Copied in the next forward pass, where running out of memory is no misfortune.
        self._unmade[child_key] = self._unmade.get(parent_key, parent_key)
        self._lengths[child_key] = self._lengths[parent_key]

    def _make_forks(self) -> None:
        for child, parent in list(self._unmade.items()):
            self._caches[child] = self._copy(self._caches[parent])
            del self._unmade[child]

    def rewind(self, key: int, num_tokens: int) -> int:
        self._make_forks()
        num_left_out = self._lengths[key] - num_tokens
        cache = self._caches[key]
        # A sliding window has dropped what it would need again, and a recurrent state knows no way back.
        if num_tokens == 0 or any(type(layer) is not DynamicLayer for layer in self._of_row(cache).layers):
            self.release(key)
            return 0
        cache.crop(-num_left_out)
        self._lengths[key] = num_tokens
        return num_tokens

    def copy_blocks(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Blocks hold nothing here; a fork has a cache of its own."""

    def clear_blocks(self, blocks: Sequence[int]) -> None:
        """Blocks hold nothing here; a sequence's cache goes with `release`."""

    def _advance(self, row: Row) -> Tensor:
        """Compute one row's tokens; float32 logits ``[num_logits, V]`` of the last ones, of one at least."""
        if row.num_computed == 0:
            self._caches[row.key] = self._new_cache(row)
        assert row.num_computed == (self._lengths.get(row.key, 0) if row.num_computed else 0)
        if num_given(row):
            return self._advance_behind_given(row)
        num_logits = max(1, row.num_logits)
        ids = [int(token) for token in row.token_ids]
        self._lengths[row.key] = row.num_computed + len(ids)
        size = 1 if self._takes_single_tokens(row) else len(ids)
        cache = self._caches[row.key]
        parts = [
            self._compute(cache, row, slice(i, min(i + size, len(ids))), min(size, num_logits))
            for i in range(0, len(ids), size)
        ]
        return torch.cat(parts)[-num_logits:]

    def _advance_behind_given(self, row: Row) -> Tensor:
        """Keys and values of virtual tokens go into the cache as they are; the tokens have no logits: zeros."""
        assert row.context.preamble is not None
        left, cache = behind_given(row), self._of_row(self._caches[row.key])
        for layer, tensors in enumerate(row.context.preamble.layers):
            keys, values = (tensor[None, :, row.num_computed : left.num_computed] for tensor in tensors)
            cache.update(keys, values, layer)
        self._lengths[row.key] = left.num_computed
        logits = self._advance(left) if len(left.token_ids) else torch.zeros(0, self.vocab_size, device=self.device)
        return padded(logits, max(1, row.num_logits))

    def _takes_single_tokens(self, row: Row) -> bool:
        return row.num_computed > 0 and self._resumes_token_by_token

    def _new_cache(self, _row: Row) -> Any:
        return DynamicCache(config=self._module.config)

    def _copy(self, cache: Any) -> Any:
        """For a fork."""
        return copy.deepcopy(cache)

    def _of_row(self, cache: Any) -> Cache:
        """The part that the row's own tokens write."""
        whole: Cache = cache
        return whole

    def _compute(self, cache: Any, row: Row, part: slice, num_logits: int) -> Tensor:
        """``part`` of the row's tokens, behind what the cache holds."""
        ids = [int(token) for token in row.token_ids[part]]
        start, stop = row.num_computed + part.start, row.num_computed + part.stop
        first = start + row.position_offset
        inputs: dict[str, Any] = {
            "position_ids": torch.arange(first, first + len(ids), device=self.device)[None],
            "past_key_values": cache,
            "cache_params": cache,
            "logits_to_keep": num_logits,
        }
        if "cache_params" not in self._parameters:
            # Where positions come from attention biases, they are counted in the mask.
            inputs["attention_mask"] = torch.ones(1, stop, dtype=torch.int64, device=self.device)
        known = {name: value for name, value in inputs.items() if name in self._parameters}
        given = given_embeddings(row, part)
        ids_T = torch.tensor(ids, device=self.device)
        if self._state is not None:
            self._state.restore()
        with (
            spans_step(self._lengthwise, lambda: [Span(first, len(ids), row.deciding_length)]),
            adapting(_adapted(row, len(ids), num_logits)),
        ):
            tokens = model_input(self._module, ids_T.clamp(min=0) if given else ids_T, given)
            logits: Tensor = self._module(**tokens, use_cache=True, **known).logits
        return logits[0, -num_logits:].float()


def _adapted(row: Row, *counts: int) -> dict[int, Runs] | None:
    """The row's adapter for products of any of these numbers of tokens."""
    deltas = row.context.adapter
    return None if deltas is None else {count: Runs([AdaptedRows(0, count, deltas)]) for count in counts}


def tensor_bytes(cache: Cache) -> int:
    """Of all layers."""
    tensors = (value for layer in cache.layers for value in vars(layer).values() if isinstance(value, Tensor))
    return sum(tensor.numel() * tensor.itemsize for tensor in tensors)
