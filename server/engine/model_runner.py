"""The one interface between scheduling and the model: rows in, logits out.

Dimension key: R rows of logits of a step, V vocabulary size.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from server.engine.batch_inputs import Row
from server.engine.encoding import WHOLE, EncoderPasses, SourcePart
from server.engine.lengths import LengthRule
from server.modules.adapted import Part, Table


class ModelRunner(ABC):
    """Holds a decoder and its KV cache; knows nothing of requests, sampling or scheduling.

    What it can do is fixed when it is made; what it measured (``num_blocks``) is read from it.
    """

    name: str
    """``fused``, ``generic`` or ``compat``."""
    attention: str
    """Name of the attention back end."""
    device: torch.device
    dtype: torch.dtype
    vocab_size: int
    """V"""
    block_size: int
    num_blocks: int
    """Blocks of the cache, numbered from 0."""
    kv_cache_bytes: int
    weight_bytes: int
    """Of the weights as they are held: packed, and quantised where they are."""
    can_reuse_blocks: bool
    """Whether a block's content may serve another sequence with the same beginning (prefix cache, forks)."""

    is_row_invariant = False
    """Whether a token's logits are bitwise the same whatever else is computed in the step, before it and with it."""

    length_rule: LengthRule | None = None
    """How a sequence's length decides its rotary factors; None where they are the same for every sequence."""

    quantization_kl: float | None = None
    """What quantised weights lose, in nats; None where they are not quantised."""

    kv_cache_kl: float | None = None
    """What a quantised cache loses, in nats; None where it is not quantised."""

    parts: Mapping[str, Part | Table] = {}
    """The linear layers that adapters can change, by their names in the module; empty where none can be."""

    kv_shapes: Sequence[tuple[int, int, int]] | None = None
    """Of each layer: heads of keys and values, width of a key, of a value. None where layers check what they get."""

    source_vocab_size = 0
    """Of encoder-decoder models: a legal token id of a source is below it. 0 for models without an encoder."""

    encoder_passes: EncoderPasses = WHOLE
    """How an encoder-decoder's `encode` may be cut."""

    @abstractmethod
    def forward(self, rows: Sequence[Row]) -> Tensor:
        """Compute the rows' tokens, write their keys and values, return float32 logits ``[R, V]``.

        R counts ``num_logits`` rows for each of ``rows``, in order: those after its last tokens. If any of a row's new
        tokens gave keys or values that are not finite, they are not finite either, or `failed_rows` has the row.

        Where a row's ``context`` has a source that is not computed, all of it is encoded first, once for all rows. If
        what a source became is not finite, neither are the logits of rows that read it.
        """

    def encode(self, parts: Sequence[SourcePart]) -> None:
        """Compute the next parts of sources. Of what is not all, the runner holds what it has come to.

        If it fails, `release_source` drops that, and the sources begin anew.
        """
        raise NotImplementedError(f"the {self.name} executor has no encoder")

    failed_rows: Sequence[int] = ()
    """Of the rows of the last `forward` that asked for no logits: those with keys or values that are not finite."""

    @abstractmethod
    def release(self, key: int) -> None:
        """The sequence ``key`` gave its blocks back: drop whatever else is held for it. Unknown keys are no error."""

    @abstractmethod
    def fork(self, parent_key: int, child_key: int) -> None:
        """The sequence ``child_key`` begins with all that ``parent_key`` has computed; its blocks are shared."""

    def release_source(self, key: int) -> None:  # noqa: B027
        """Drop what is held outside blocks for the source with this `SourceState.key`. Unknown keys are no error."""

    def rewind(self, key: int, num_tokens: int) -> int:  # noqa: ARG002
        """Forget what the sequence ``key`` computed after its first ``num_tokens``. Returns how many are left."""
        return num_tokens

    @abstractmethod
    def copy_blocks(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Copy whole blocks, ``(source, destination)``, in every layer: copy-on-write of a shared block."""

    @abstractmethod
    def clear_blocks(self, blocks: Sequence[int]) -> None:
        """Set whole blocks to zero in every layer: what a failed sequence left in them is not finite.

        A masked position still multiplies its value by zero, and zero times NaN is NaN.
        """
