"""Some rows of a batch, as an index that a GPU reads without making the host wait."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from server.engine.batch_inputs import on_device


@dataclass(frozen=True, slots=True, eq=False)
class RowIndex:
    """Distinct rows in rising order. Indexing by a list copies it to the GPU and waits; this index lies there."""

    rows: Sequence[int]
    _index_K: Tensor | None
    """int64; None if the rows are the whole batch."""

    @classmethod
    def of(cls, rows: Sequence[int], num_rows: int, device: torch.device) -> RowIndex:
        """``num_rows`` is the size of the batch."""
        if len(rows) == num_rows:
            return cls(rows, None)
        return cls(rows, on_device(np.array(rows, dtype=np.int64), device))

    @property
    def is_whole(self) -> bool:
        """Whether the rows are the whole batch: `take` returns its tensor itself then."""
        return self._index_K is None

    def take(self, values_S: Tensor) -> Tensor:
        """These rows of a batch's values."""
        return values_S if self._index_K is None else values_S.index_select(0, self._index_K)

    def put(self, target_S: Tensor, values_K: Tensor) -> None:
        """Write these rows of a batch's values, in the target's dtype."""
        if self._index_K is None:
            target_S.copy_(values_K)
        else:
            target_S.index_copy_(0, self._index_K, values_K.to(target_S.dtype))
