"""The one interface between executors and attention kernels.

Dimension key: T new tokens in the step, Hq query heads, H key/value heads.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import Tensor

from server.engine.batch_inputs import BatchInputs


class AttentionBackend(ABC):
    """Holds the cache of keys and values in a layout of its own and attends over it.

    Once a step `begin`, then once per layer `attend`, in the model's order of calls.
    """

    name: str
    kv_cache_bytes: int

    @abstractmethod
    def begin(self, inputs: BatchInputs) -> None:
        """Plan a step: everything that is the same for all layers."""

    @abstractmethod
    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, sinks: Tensor | None) -> Tensor:
        """Write the new keys and values, then attend.

        ``query`` is ``[1, Hq, T, Dk]``, ``key`` ``[1, H, T, Dk]``, ``value`` ``[1, H, T, Dv]``; the result is
        ``[1, T, Hq, Dv]``.
        """

    @abstractmethod
    def copy_blocks(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Copy whole blocks, ``(source, destination)``, in every layer."""

    @abstractmethod
    def clear_blocks(self, blocks: Sequence[int]) -> None:
        """Set whole blocks to zero in every layer."""
