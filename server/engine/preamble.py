"""An adapter's virtual tokens, which stand before every prompt: prompt tuning, P-tuning and prefix tuning.

To the scheduler and the prefix cache they are tokens like others, with ids below 0: they are computed once, and found
again by the requests that follow. Nothing that looks at a request's text sees them.

Dimension key
    N       virtual tokens
    D       width of the hidden states
    H       key/value heads
    Dk, Dv  width of a key, of a value
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from torch import Tensor

from server.native.adapted import Deltas


class KeysValues(NamedTuple):
    """Of one layer, as attention reads them: after norms and rotary factors."""

    keys_HND: Tensor
    values_HND: Tensor


@dataclass(frozen=True, eq=False, kw_only=True)
class Preamble:
    """Either what stands in place of the tokens' embeddings, or their keys and values in every layer."""

    num_tokens: int
    """N"""
    embeddings_ND: Tensor | None = None
    """As the model's own come from its table, in its dtype."""
    layers: Sequence[KeysValues] = ()

    @property
    def num_bytes(self) -> int:
        tensors = [tensor for layer in self.layers for tensor in layer]
        if self.embeddings_ND is not None:
            tensors.append(self.embeddings_ND)
        return sum(tensor.numel() * tensor.itemsize for tensor in tensors)

    def embeddings(self, start: int, stop: int) -> Tensor | None:
        """``[N, D]`` of tokens ``start`` to ``stop - 1`` of a sequence; None where they have none of the adapter's."""
        rows_ND = None if self.embeddings_ND is None else self.embeddings_ND[start:stop]
        return None if rows_ND is None or not len(rows_ND) else rows_ND

    @property
    def ids(self) -> npt.NDArray[np.int64]:
        """What stands for them in a sequence: -1, -2, ..."""
        return -1 - np.arange(self.num_tokens, dtype=np.int64)


FittedAdapter = Deltas | Preamble
"""An adapter as a runner computes it: changes of products, or virtual tokens."""
