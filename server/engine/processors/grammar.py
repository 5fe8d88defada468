"""Only tokens that keep the output within its grammar.

Dimension key
    S  rows: sequences that choose a token
    R  rows of S that have a grammar
    V  vocabulary size
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from typing import Self

import numpy as np
import torch
from llguidance import LLMatcher
from torch import Tensor

from server.engine.batch_inputs import IntArray, on_device
from server.engine.grammar import Grammar, MaskArray, Masks
from server.engine.processors.base import LogitsProcessor, Start


class GrammarMask(LogitsProcessor):
    """Forbid every token after which the output could no longer become a text of the grammar.

    A token that ends the sequence is allowed where the text is complete. A stop token that has text of its own is
    allowed where the grammar allows its text, and ends the sequence there: as a stop string does.

    A forced first token is not part of the text: the grammar begins after it.
    """

    def __init__(self, grammar: Grammar, matcher: LLMatcher, end_ids: IntArray, num_before: int = 0) -> None:
        self._grammar = grammar
        self._num_before = num_before
        """New tokens before the text begins."""
        self._matcher = matcher
        self._end_ids = end_ids
        self._pending: tuple[Future[Masks], int] | None = None
        """A mask that is being computed, and its row: until it is there, nobody else may touch the matcher."""
        self._allowed_W: MaskArray | None = None
        self._may_end = False

    @classmethod
    def for_sequence(cls, start: Start) -> Self | None:
        if start.grammar is None:
            return None
        end_ids = set(start.params.end_token_ids)
        if start.vocabulary is not None:
            end_ids |= {id_ for id_ in start.params.stop_token_ids if not start.vocabulary.token_bytes(id_)}
        num_before = int(start.params.forced_bos_token_id is not None)
        made = cls(start.grammar, start.grammar.matcher(), np.array(sorted(end_ids), dtype=np.int64), num_before)
        for token_id in start.output_ids.tolist():
            made.accept(token_id)
        return made

    def accept(self, token_id: int) -> None:
        self._wait()
        if self._num_before:
            self._num_before -= 1
            return
        self._allowed_W = None
        if token_id in self._end_ids:
            return
        self._matcher.consume_token(token_id)
        self.ends_sequence = self._has_ended(self._matcher)

    def ends_with(self, token_id: int) -> bool:
        self._wait()
        if len(self._end_ids) or self._num_before:
            return False
        matcher = self._matcher.deep_copy()
        return matcher.consume_token(token_id) and self._has_ended(matcher)

    def _has_ended(self, matcher: LLMatcher) -> bool:
        """Whether only an end token could follow, and there is none."""
        return not len(self._end_ids) and matcher.is_stopped() and matcher.is_accepting()

    def fork(self) -> Self:
        self._wait()
        copy: Self = type(self)(self._grammar, self._matcher.deep_copy(), self._end_ids, self._num_before)
        copy._allowed_W, copy._may_end = self._allowed_W, self._may_end
        copy.ends_sequence = self.ends_sequence
        return copy

    @classmethod
    def prepare(cls, processors: Iterable[LogitsProcessor]) -> None:
        """Begin to compute the masks of all grammars among the processors, for the `apply` that comes next."""
        waiting = _without_mask([processor for processor in processors if isinstance(processor, GrammarMask)])
        if waiting:
            future = waiting[0]._grammar.filler.start([processor._matcher for processor in waiting])
            for row, processor in enumerate(waiting):
                processor._pending = (future, row)

    @classmethod
    def apply(cls, logits_SV: Tensor, rows: list[int], processors: list[Self]) -> None:
        if len(begun := [i for i, processor in enumerate(processors) if not processor._num_before]) < len(processors):
            rows, processors = [rows[i] for i in begun], [processors[i] for i in begun]
        if not processors:
            return
        for processor in processors:
            processor._wait()
        if missing := _without_mask(processors):
            masks = missing[0]._grammar.filler.fill([processor._matcher for processor in missing])
            for row, without_mask in enumerate(missing):
                without_mask._take(masks, row)
        forbidden_RV = on_device(_forbidden(processors, logits_SV.shape[1]), logits_SV.device)
        for first, last, row in _runs(rows):
            logits_SV[row : row + last - first].masked_fill_(forbidden_RV[first:last], -torch.inf)

    def _wait(self) -> None:
        if self._pending is not None:
            future, row = self._pending
            self._pending = None
            self._take(future.result(), row)

    def _take(self, masks: Masks, row: int) -> None:
        self._allowed_W = masks.allowed_RW[row]
        self._may_end = masks.may_end_R[row]
        if self._matcher.is_error():
            self.problem = _explain(self._matcher)


def _explain(matcher: LLMatcher) -> str:
    """What became of a grammar that was fine at its beginning."""
    # Too many ways to go on at once have no reason of their own.
    if matcher.stop_reason() in ("ParserTooComplex", "LexerTooComplex") or "Current row has" in matcher.get_error():
        return "The grammar became too complex to follow. Make it smaller, or its repetitions shorter."
    return "The model's tokens cannot write what the grammar wants next."


def _without_mask(processors: Iterable[GrammarMask]) -> list[GrammarMask]:
    return [processor for processor in processors if processor._allowed_W is None and processor._pending is None]


def _forbidden(processors: Sequence[GrammarMask], vocab_size: int) -> np.ndarray[tuple[int, int], np.dtype[np.bool_]]:
    """True at each row's forbidden tokens. A grammar in an error allows none."""
    allowed_RW = np.stack([processor._allowed_W for processor in processors if processor._allowed_W is not None])
    forbidden_RV = np.unpackbits(~allowed_RW, axis=1, count=vocab_size, bitorder="little").view(np.bool_)
    for row, processor in enumerate(processors):
        forbidden_RV[row, processor._end_ids] = not processor._may_end
        if processor.problem is not None:
            forbidden_RV[row] = True
    return forbidden_RV


def _runs(rows: list[int]) -> Iterable[tuple[int, int, int]]:
    """Stretches ``[first, last)`` of ``rows`` that are one after the other, and the row each begins with.

    >>> list(_runs([2, 3, 4, 7]))
    [(0, 3, 2), (3, 4, 7)]
    """
    first = 0
    for i in range(1, len(rows) + 1):
        if i == len(rows) or rows[i] != rows[i - 1] + 1:
            yield first, i, rows[first]
            first = i
