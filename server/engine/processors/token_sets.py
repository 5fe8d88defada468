"""Tokens that are forbidden, allowed or forced, whatever was written before them."""

from __future__ import annotations

from typing import Self

import numpy as np
import torch
from torch import Tensor

from server.engine.batch_inputs import IntArray, on_device
from server.engine.processors.base import LogitsProcessor, Start, allow_only, flat_indices, forbid


class AllowedTokens(LogitsProcessor):
    """Only these tokens and those that end the sequence."""

    MANY = 1000
    """From so many on, the tokens are a mask over the vocabulary: reading each by its index would cost more."""

    def __init__(self, ids: IntArray) -> None:
        self.ids = ids
        self._forbidden_V: Tensor | None = None

    @classmethod
    def for_sequence(cls, start: Start) -> Self | None:
        allowed = start.params.allowed_token_ids
        return None if allowed is None else cls(_unique([*allowed, *start.ending_ids]))

    def accept(self, token_id: int) -> None:
        """The set stays as it is."""

    def fork(self) -> Self:
        return self

    @classmethod
    def apply(cls, logits_SV: Tensor, rows: list[int], processors: list[Self]) -> None:
        few = [(row, p.ids) for row, p in zip(rows, processors, strict=True) if len(p.ids) < cls.MANY]
        if few:
            allow_only(logits_SV, [row for row, _ in few], [ids for _, ids in few])
        for row, processor in zip(rows, processors, strict=True):
            if len(processor.ids) >= cls.MANY:
                logits_SV[row].masked_fill_(processor._mask(logits_SV[row]), -torch.inf)

    def _mask(self, logits_V: Tensor) -> Tensor:
        """The vocabulary's other tokens."""
        if self._forbidden_V is None:
            is_forbidden = np.ones(len(logits_V), dtype=np.bool_)
            is_forbidden[self.ids[self.ids < len(logits_V)]] = False
            self._forbidden_V = on_device(is_forbidden, logits_V.device)
        return self._forbidden_V


class SuppressTokens(LogitsProcessor):
    """None of these tokens."""

    def __init__(self, ids: IntArray) -> None:
        self.ids = ids

    @classmethod
    def for_sequence(cls, start: Start) -> Self | None:
        ids = start.params.suppress_tokens
        return cls(_unique(ids)) if ids else None

    def accept(self, token_id: int) -> None:
        """The set stays as it is."""

    def fork(self) -> Self:
        return self

    @classmethod
    def apply(cls, logits_SV: Tensor, rows: list[int], processors: list[Self]) -> None:
        forbid(logits_SV, rows, [p.ids for p in processors])


class BeginSuppressTokens(LogitsProcessor):
    """None of these tokens as the first new one; after a forced first token, as the one after it."""

    def __init__(self, num_before: int, ids: IntArray) -> None:
        self.num_before = num_before
        self.ids = ids

    @classmethod
    def for_sequence(cls, start: Start) -> Self | None:
        params = start.params
        num_before = int(params.forced_bos_token_id is not None) - len(start.output_ids)
        if num_before < 0 or not params.begin_suppress_tokens:
            return None
        return cls(num_before, _unique(params.begin_suppress_tokens))

    def accept(self, token_id: int) -> None:  # noqa: ARG002
        self.num_before -= 1
        self.is_spent = self.num_before < 0

    @classmethod
    def apply(cls, logits_SV: Tensor, rows: list[int], processors: list[Self]) -> None:
        now = [(row, p.ids) for row, p in zip(rows, processors, strict=True) if p.num_before == 0]
        if now:
            forbid(logits_SV, [row for row, _ in now], [ids for _, ids in now])


class ForcedFirstToken(LogitsProcessor):
    """The first new token is this one."""

    def __init__(self, token_id: int) -> None:
        self.token_id = token_id

    @classmethod
    def for_sequence(cls, start: Start) -> Self | None:
        token_id = start.params.forced_bos_token_id
        return None if token_id is None or len(start.output_ids) else cls(token_id)

    def accept(self, token_id: int) -> None:  # noqa: ARG002
        self.is_spent = True

    @classmethod
    def apply(cls, logits_SV: Tensor, rows: list[int], processors: list[Self]) -> None:
        _force(logits_SV, rows, [np.array([p.token_id]) for p in processors])


class ForcedLastToken(LogitsProcessor):
    """One of these tokens, all alike, where the output reaches its greatest length."""

    def __init__(self, num_before: int, ids: IntArray) -> None:
        self.num_before = num_before
        """New tokens before the forced one."""
        self.ids = ids

    @classmethod
    def for_sequence(cls, start: Start) -> Self | None:
        ids = start.params.forced_eos_token_ids
        num_before = start.max_tokens - 1 - len(start.prompt_ids) - len(start.output_ids)
        return cls(num_before, _unique(ids)) if ids and num_before >= 0 else None

    def accept(self, token_id: int) -> None:  # noqa: ARG002
        self.num_before -= 1
        self.is_spent = self.num_before < 0

    @classmethod
    def apply(cls, logits_SV: Tensor, rows: list[int], processors: list[Self]) -> None:
        last = [(row, p.ids) for row, p in zip(rows, processors, strict=True) if p.num_before == 0]
        if last:
            _force(logits_SV, [row for row, _ in last], [ids for _, ids in last])


def _force(logits_SV: Tensor, rows: list[int], ids: list[IntArray]) -> None:
    """Leave only ``ids``, each with a logit of 0, as in transformers: whatever forbade them before."""
    allow_only(logits_SV, rows, ids)
    vocab_size = logits_SV.shape[1]
    known = [row_ids[row_ids < vocab_size] for row_ids in ids]
    logits_SV.view(-1)[on_device(flat_indices(rows, known, vocab_size), logits_SV.device)] = 0.0


def _unique(ids: tuple[int, ...] | list[int]) -> IntArray:
    return np.array(sorted(set(ids)), dtype=np.int64)
