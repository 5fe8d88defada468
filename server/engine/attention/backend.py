"""The one interface between executors and attention kernels.

Dimension key
    T       new tokens in the step
    Hq, H   query heads, key/value heads
    Dk, Dv  width of a key, of a value
    P, R    positions of the model, rotated pairs of a head
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from server.engine.batch_inputs import BatchInputs, IntArray
from server.modules.attention import HeadNorm, LayerSpec, Rotary
from server.native import reference


class SourceRow(NamedTuple):
    """A source, whose keys and values lie in blocks of its own, and the tokens of a step that belong to it."""

    num_tokens: int
    """Tokens of the step that see the source; or, where it is written, tokens of its own."""
    num_source: int
    """Its tokens, at least 1."""
    block_table: Sequence[int] | IntArray
    first: int = 0
    """Where it is written: the place in the source of the first of the tokens."""


class AttentionBackend(ABC):
    """Holds the cache of keys and values in a layout of its own and attends over it.

    Once a step `begin`, then once per layer `attend`, in the model's order of calls. What a back end can do beyond that
    is stated in its `is_row_invariant`, `can_chain` and `can_record`; callers read these and never the class or name.
    """

    name: str
    kv_cache_bytes: int
    specs: tuple[LayerSpec, ...]
    dtype: torch.dtype
    """Of queries, keys and values."""

    is_row_invariant = False
    """Whether a row's result is bitwise the same whatever other rows share the step and however prompts are cut."""

    can_chain = False
    """Whether `packed_call` and `step_address` serve a chain of kernels (`server.native.chain`)."""

    can_cross = False
    """Whether `write_source` and `attend_source` serve decoders that attend to an encoder's results."""

    can_record = False
    """Whether `begin_static` and `spare_block` serve steps that are recorded once and replayed."""

    step_address: int
    """Where a chain finds what `begin` has planned. Only with `can_chain`."""

    cross_address: int
    """The same of `begin_cross`. Only with `can_chain` and `can_cross`."""

    spare_block: int
    """A block that belongs to no sequence, for the padding of recorded steps. Only with `can_record`."""

    @abstractmethod
    def begin(self, inputs: BatchInputs) -> None:
        """Plan a step: everything that is the same for all layers."""

    @abstractmethod
    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, sinks: Tensor | None) -> Tensor:
        """Write the new keys and values, then attend.

        ``query`` is ``[1, Hq, T, Dk]``, ``key`` ``[1, H, T, Dk]``, ``value`` ``[1, H, T, Dv]``; the result is
        ``[1, T, Hq, Dv]``.
        """

    def attend_packed(
        self,
        layer: int,
        qkv_TX: Tensor,
        positions_T: Tensor,
        *,
        rotary: Rotary | None,
        head_norm: HeadNorm | None,
        sinks: Tensor | None = None,
    ) -> Tensor:
        """Attend from the product of the three projections: norm, rotate, write, attend.

        ``qkv_TX`` is ``[T, Hq * Dk + H * Dk + H * Dv]``, queries, keys, values; the result is ``[T, Hq * Dv]``.
        """
        spec = self.specs[layer]
        num_tokens = qkv_TX.shape[0]
        query, key, value = spec.split(qkv_TX)
        if head_norm is not None:
            query = reference.rms_norm(query, head_norm.query_weight_D, head_norm.eps)
            key = reference.rms_norm(key, head_norm.key_weight_D, head_norm.eps)
        if rotary is not None:
            cos_TR, sin_TR = rotary.cos_PR[positions_T], rotary.sin_PR[positions_T]
            query, key = reference.rotate(query, cos_TR, sin_TR), reference.rotate(key, cos_TR, sin_TR)
        query, key, value = (x.transpose(0, 1)[None] for x in (query, key, value))
        return self.attend(layer, query, key, value, sinks).reshape(num_tokens, -1)

    def packed_call(self, layer: int, width: int, rotary: Rotary | None, head_norm: HeadNorm | None) -> tuple[int, int]:
        """For a chain of kernels: addresses of the layer and of its call, valid as long as this is.

        ``width`` is that of a token's queries, keys and values together. Only with `can_chain`.
        """
        raise NotImplementedError(f"attention {self.name} is no kernel of a chain")

    def begin_sources(self, sources: Sequence[SourceRow]) -> None:
        """Plan the writing of sources or parts of them, whose tokens lie end to end. Only with `can_cross`."""
        raise NotImplementedError(f"attention {self.name} has no sources")

    def write_source(self, layer: int, kv_SX: Tensor) -> None:
        """Write the sources' keys and values, ``[S, H * Dk + H * Dv]``, into the layer's pool.

        Only with `can_cross`.
        """
        raise NotImplementedError(f"attention {self.name} has no sources")

    def failed_sources(self) -> list[int]:
        """Sources, by index, with keys or values that were not finite in a layer so far. Only with `can_cross`."""
        raise NotImplementedError(f"attention {self.name} has no sources")

    def begin_cross(self, rows: Sequence[SourceRow]) -> None:
        """Name the source of each row of the step, in the order of its tokens. Only with `can_cross`."""
        raise NotImplementedError(f"attention {self.name} has no sources")

    def attend_source(self, layer: int, query_TX: Tensor) -> Tensor:
        """Each token over all of its row's source: ``[T, Hq * Dk]`` to ``[T, Hq * Dv]``. Only with `can_cross`.

        Heads and scaling are those of the layer's spec; its window, softcap and bias do not apply.
        """
        raise NotImplementedError(f"attention {self.name} has no sources")

    def cross_call(self, layer: int) -> tuple[int, int]:
        """As `packed_call`, of `attend_source`. Only with `can_chain` and `can_cross`."""
        raise NotImplementedError(f"attention {self.name} has no sources")

    def begin_static(self, inputs: BatchInputs, width: int) -> None:
        """Plan a step of single tokens in the tensors of every such step with as many rows and this table width.

        Only with `can_record`.
        """
        raise NotImplementedError(f"steps with attention {self.name} cannot be recorded")

    @abstractmethod
    def failed_rows(self) -> list[int]:
        """Rows of the step, by index, with new keys or values that are not finite in a layer so far.

        A row that asks for logits may be missing: these are not finite either.
        """

    @abstractmethod
    def copy_blocks(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Copy whole blocks, ``(source, destination)``, in every layer."""

    @abstractmethod
    def clear_blocks(self, blocks: Sequence[int]) -> None:
        """Set whole blocks to zero in every layer."""
