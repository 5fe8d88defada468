"""A question and a text as a model reads them: the text in windows, each with the whole question around it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding

from server.text.answers import Context, WindowLogits

USUAL_SEQ_LEN = 384
"""Most models that answer questions were trained with windows of this length."""
USUAL_STRIDE = 128

T = TypeVar("T")


@dataclass(frozen=True)
class QuestionEncoding:
    """The tokens of a question and a context; positions are those in ``encoding``."""

    encoding: Encoding
    before: Sequence[int]
    """Positions of the tokens that every window begins with."""
    content: range
    """Positions of the context's own tokens. Windows count from its start."""
    after: Sequence[int]
    num_question_tokens: int

    @property
    def num_frame_tokens(self) -> int:
        """Tokens of every window that are not of the context."""
        return len(self.before) + len(self.after)

    def cut(self, values: Sequence[T], window: range) -> list[T]:
        """Of one value for each token, those of a window."""
        start = self.content.start
        middle = values[start + window.start : start + window.stop]
        return [*(values[i] for i in self.before), *middle, *(values[i] for i in self.after)]

    def context(self, text: str) -> Context:
        """The context's own tokens."""
        kept = slice(self.content.start, self.content.stop)
        return Context(text, self.encoding.offsets[kept], self.encoding.word_ids[kept])

    def has_words(self, text: str) -> bool:
        """Whether a token of the context ``text`` is more than spaces: without one there is no answer."""
        offsets = self.encoding.offsets[self.content.start : self.content.stop]
        return any(not text[start:end].isspace() for start, end in offsets if start < end)

    @property
    def begins_with_special(self) -> bool:
        """Whether the first token stands for no answer."""
        return bool(self.encoding.special_tokens_mask[0])

    def logits(self, window: range, row_T2: NDArray[np.float32]) -> WindowLogits:
        """``row_T2`` has all tokens of the window."""
        lead = len(self.before)
        of_no_answer = row_T2[0] if self.begins_with_special else None
        return WindowLogits(window, row_T2[lead : lead + len(window)], of_no_answer)


def question_encoding(
    encoding: Encoding, *, question_first: bool, max_question_len: int | None = None
) -> QuestionEncoding:
    """Of a pair of question and context, in this order or the other. A question that is too long loses its end."""
    sequence_ids = encoding.sequence_ids
    own = [position for position, sequence in enumerate(sequence_ids) if sequence == int(question_first)]
    asked = [position for position, sequence in enumerate(sequence_ids) if sequence == int(not question_first)]
    left_out = set() if max_question_len is None else set(asked[max_question_len:])
    content = range(own[0], own[-1] + 1) if own else range(len(sequence_ids), len(sequence_ids))
    before = [position for position in range(content.start) if position not in left_out]
    after = [position for position in range(content.stop, len(sequence_ids)) if position not in left_out]
    return QuestionEncoding(encoding, before, content, after, len(asked) - len(left_out))


def usual_stride(seq_len: int, capacity: int) -> int:
    """Tokens that windows of ``seq_len`` share, where ``capacity`` of them are of the context."""
    usual = min(seq_len // 2, USUAL_STRIDE)
    return usual if usual < capacity else capacity // 2
