"""Questions about texts to the parts of them that answer; a long text is read in windows, each with the question."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding

from server.errors import InvalidParameter, InvalidRequest
from server.protocol import Encode
from server.sentences import sentence
from server.serving.encoder_client import rows
from server.serving.record import RequestRecord
from server.serving.windowed import WindowedEncoder
from server.text.answers import Answer, AnswerRules, Context, WindowLogits, find_answers
from server.text.windows import num_windows, strided_windows

MAX_ANSWERS = 32_768
"""Of all questions of one request."""
USUAL_SEQ_LEN = 384
"""Most models that answer questions were trained with windows of this length."""
USUAL_STRIDE = 128


class Question(NamedTuple):
    """A question and the text that holds its answer."""

    question: str
    context: str


@dataclass(frozen=True, kw_only=True)
class AnswerOptions:
    """What the client asked for."""

    rules: AnswerRules = field(default_factory=AnswerRules)
    max_seq_len: int | None = None
    """Tokens of a window, with question and special tokens; None for the usual length."""
    doc_stride: int | None = None
    """Tokens of the context that neighbouring windows share; None for the usual number."""
    max_question_len: int | None = None
    """A longer question is cut to this many tokens."""


@dataclass(frozen=True)
class _Document:
    question: Question
    encoding: Encoding
    before: Sequence[int]
    """Positions of the tokens that every window begins with."""
    content: range
    """Positions of the context's own tokens. Windows count from its start."""
    after: Sequence[int]
    capacity: int
    """Tokens of the context in a window."""
    stride: int

    @property
    def num_tokens(self) -> int:
        """Of all windows."""
        count = num_windows(len(self.content), self.capacity, self.stride)
        frame = len(self.before) + len(self.after)
        return len(self.content) + (count - 1) * self.stride + count * frame


class ServedQuestionAnswerer(WindowedEncoder):
    """A model with a head for the start and the end of an answer."""

    def describe(self) -> dict[str, Any]:
        seq_len = self._seq_len(AnswerOptions())
        return {
            "default_max_seq_len": seq_len,
            "default_doc_stride": min(seq_len // 2, USUAL_STRIDE),
            "max_inputs": self._max_inputs,
            "max_request_tokens": self._max_tokens,
            "max_answers": MAX_ANSWERS,
        }

    async def answer(
        self, questions: Sequence[Question], options: AnswerOptions, record: RequestRecord
    ) -> list[list[Answer]]:
        """For each question its answers, the best first."""
        seq_len = self._seq_len(options)
        self.check_size(len(questions))
        if len(questions) * options.rules.top_k > MAX_ANSWERS:
            most = MAX_ANSWERS // len(questions)
            raise InvalidParameter("top_k", options.rules.top_k, f"must be 1 to {most} for {len(questions)} questions")
        texts = [text for question in questions for text in question]
        # Once, with the first text: in the thread, and after the queue has been asked.
        check = cache(lambda: self._check_least(*texts))
        documents = await self._tokenize(
            lambda question: self._document(question, options, seq_len, check), questions, sum(map(len, texts))
        )
        self._check_size(
            sum(document.num_tokens for document in documents),
            sentence("Overlapping windows count twice. Send less text, or set a smaller {doc_stride}."),
        )
        plans = [strided_windows(len(document.content), document.capacity, document.stride) for document in documents]
        commands = [
            command
            for document, windows in zip(documents, plans, strict=True)
            for command in self._commands(document, windows, record.request_id)
        ]
        scores = iter(await self._encode(commands, record))
        logits = [[rows(next(scores)) for _ in windows] for windows in plans]
        return await asyncio.to_thread(
            lambda: [_answers(*parts, options.rules) for parts in zip(documents, plans, logits, strict=True)]
        )

    def _seq_len(self, options: AnswerOptions) -> int:
        limit = self.ready.max_model_len
        wanted = options.max_seq_len
        if wanted is not None and wanted > limit:
            rule = f"must be at most {limit}, this model's maximum context length"
            raise InvalidParameter("max_seq_len", wanted, rule)
        return wanted or min(limit, USUAL_SEQ_LEN)

    def _document(
        self, question: Question, options: AnswerOptions, seq_len: int, check: Callable[[], None]
    ) -> _Document:
        check()
        for name, text in question._asdict().items():
            if not text.strip():
                raise InvalidParameter(f"inputs.{name}", text, "must contain more than spaces")
        is_first = self.tokenizer.files.padding_side == "right"
        encoding = self.tokenizer.encode(*(question if is_first else reversed(question)))
        before, content, after = _parts(encoding, is_first, options.max_question_len)
        for name, has_tokens in (("question", _has_question(encoding, is_first)), ("context", len(content) > 0)):
            if not has_tokens:
                raise InvalidParameter(f"inputs.{name}", getattr(question, name), "must have at least one token")
        capacity = seq_len - len(before) - len(after)
        if capacity < 1:
            words = sentence(
                "The question and the special tokens are {num_tokens} tokens, and {max_seq_len} is {limit}: no room is "
                "left for the context. Shorten the question, or set a smaller {max_question_len}.",
                num_tokens=len(before) + len(after),
                limit=seq_len,
            )
            raise InvalidRequest(words, param="inputs.question")
        return _Document(question, encoding, before, content, after, capacity, _stride(options, seq_len, capacity))

    def _commands(self, document: _Document, windows: Sequence[range], request_id: str) -> list[Encode]:
        ids, types = document.encoding.ids, self._type_ids(document.encoding)

        def cut(values: list[int], window: range) -> list[int]:
            start = document.content.start
            middle = values[start + window.start : start + window.stop]
            return [*(values[i] for i in document.before), *middle, *(values[i] for i in document.after)]

        return [
            Encode(request_id, cut(ids, window), None if types is None else cut(types, window)) for window in windows
        ]


def _parts(encoding: Encoding, is_first: bool, max_question_len: int | None) -> tuple[list[int], range, list[int]]:
    """Positions before the context, of the context, and behind it. A question that is too long loses its end."""
    sequence_ids = encoding.sequence_ids
    own = [position for position, sequence in enumerate(sequence_ids) if sequence == int(is_first)]
    asked = [position for position, sequence in enumerate(sequence_ids) if sequence == int(not is_first)]
    left_out = set() if max_question_len is None else set(asked[max_question_len:])
    content = range(own[0], own[-1] + 1) if own else range(len(sequence_ids), len(sequence_ids))
    before = [position for position in range(content.start) if position not in left_out]
    after = [position for position in range(content.stop, len(sequence_ids)) if position not in left_out]
    return before, content, after


def _has_question(encoding: Encoding, is_first: bool) -> bool:
    return int(not is_first) in encoding.sequence_ids


def _stride(options: AnswerOptions, seq_len: int, capacity: int) -> int:
    if options.doc_stride is None:
        usual = min(seq_len // 2, USUAL_STRIDE)
        return usual if usual < capacity else capacity // 2
    if options.doc_stride >= capacity:
        rule = f"must be 0 to {capacity - 1}, less than the {capacity} tokens of the context in a window"
        raise InvalidParameter("doc_stride", options.doc_stride, rule)
    return options.doc_stride


def _answers(
    document: _Document, windows: Sequence[range], logits: Sequence[NDArray[np.float32]], rules: AnswerRules
) -> list[Answer]:
    kept, lead = slice(document.content.start, document.content.stop), len(document.before)
    context = Context(document.question.context, document.encoding.offsets[kept], document.encoding.word_ids[kept])
    begins_with_special = bool(document.encoding.special_tokens_mask[0])
    read = [
        WindowLogits(window, row_T2[lead : lead + len(window)], row_T2[0] if begins_with_special else None)
        for window, row_T2 in zip(windows, logits, strict=True)
    ]
    return find_answers(context, read, rules)
