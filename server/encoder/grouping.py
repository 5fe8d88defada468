"""Which texts may share one padded batch: those that give each of them what it gets alone."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from server.protocol import Batching, Encode


@dataclass(frozen=True)
class Grouping:
    """Texts with equal keys share a batch."""

    batching: Batching
    end_token_id: int | None = None
    """If set, texts with different numbers of this token stay apart: the model pools at it."""
    checked_length: int | None = None
    """Texts longer than this share a batch only with texts of their length; None disables the limit."""

    def key(self, command: Encode) -> Hashable:
        if self.batching == "one by one":
            return id(command)
        length = len(command.token_ids)
        is_unchecked = self.checked_length is not None and length > self.checked_length
        is_apart = is_unchecked or self.batching == "equal lengths"
        num_ends = 0 if self.end_token_id is None else command.token_ids.count(self.end_token_id)
        return length if is_apart else 0, num_ends

    def groups(self, batch: Sequence[Encode]) -> list[list[int]]:
        """Rows of the batch that may share a forward pass, in order of their first row."""
        rows: dict[Hashable, list[int]] = {}
        for row, command in enumerate(batch):
            rows.setdefault(self.key(command), []).append(row)
        return list(rows.values())


PADDED = Grouping("padded")
ONE_BY_ONE = Grouping("one by one")
