"""Questions about texts to the parts of them that answer; a long text is read in windows, each with the question."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from server.errors import InvalidParameter, InvalidRequest
from server.protocol import Encode
from server.sentences import sentence
from server.serving.encoder_client import rows
from server.serving.record import RequestRecord
from server.serving.windowed import WindowedEncoder
from server.text.answers import Answer, AnswerRules, find_answers
from server.text.question_windows import USUAL_SEQ_LEN, USUAL_STRIDE, QuestionEncoding, question_encoding, usual_stride
from server.text.windows import num_windows, strided_windows

MAX_ANSWERS = 32_768
"""Of all windows of one request: each may give ``top_k``."""
MAX_ANSWER_TOKENS = 1_048_576
"""Of these answers together, if each is as long as ``max_answer_len`` and its window allow."""


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
    text: str
    tokens: QuestionEncoding
    capacity: int
    """Tokens of the context in a window."""
    stride: int

    @property
    def num_tokens(self) -> int:
        """Of all windows."""
        size = len(self.tokens.content)
        count = num_windows(size, self.capacity, self.stride)
        return size + (count - 1) * self.stride + count * self.tokens.num_frame_tokens

    def windows(self) -> list[range]:
        return strided_windows(len(self.tokens.content), self.capacity, self.stride)


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
            "max_answer_tokens": MAX_ANSWER_TOKENS,
        }

    async def answer(
        self, questions: Sequence[Question], options: AnswerOptions, record: RequestRecord
    ) -> list[list[Answer]]:
        """For each question its answers, the best first."""
        seq_len = self._seq_len(options)
        self.check_size(len(questions))
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
        plans = [document.windows() for document in documents]
        _check_top_k(options.rules, [window for windows in plans for window in windows])
        commands = [
            command
            for document, windows in zip(documents, plans, strict=True)
            for command in self._commands(document.tokens, windows, record.request_id)
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
        question_first = self.tokenizer.files.padding_side == "right"
        encoding = self.tokenizer.encode(*(question if question_first else reversed(question)))
        tokens = question_encoding(encoding, question_first=question_first, max_question_len=options.max_question_len)
        for name, num_tokens in (("question", tokens.num_question_tokens), ("context", len(tokens.content))):
            if not num_tokens:
                raise InvalidParameter(f"inputs.{name}", getattr(question, name), "must have at least one token")
        if not tokens.has_words(question.context):
            rule = "must have at least one token that is more than spaces"
            raise InvalidParameter("inputs.context", question.context, rule)
        capacity = seq_len - tokens.num_frame_tokens
        if capacity < 1:
            words = sentence(
                "The question and the special tokens are {num_tokens} tokens, and {max_seq_len} is {limit}: no room is "
                "left for the context. Shorten the question, or set a smaller {max_question_len}.",
                num_tokens=tokens.num_frame_tokens,
                limit=seq_len,
            )
            raise InvalidRequest(words, param="inputs.question")
        return _Document(question.context, tokens, capacity, _stride(options, seq_len, capacity))

    def _commands(self, tokens: QuestionEncoding, windows: Sequence[range], request_id: str) -> list[Encode]:
        ids, types = tokens.encoding.ids, self._type_ids(tokens.encoding)
        return [
            Encode(request_id, tokens.cut(ids, window), None if types is None else tokens.cut(types, window))
            for window in windows
        ]


def _check_top_k(rules: AnswerRules, windows: Sequence[range]) -> None:
    """One answer is always allowed: its cost grows with the text, as the model's own does."""
    length = min(rules.max_tokens, max(map(len, windows)))
    most = max(1, min(MAX_ANSWERS, MAX_ANSWER_TOKENS // length) // len(windows))
    if rules.top_k > most:
        windows_and_tokens = f"{_counted(len(windows), 'window')} and answers of up to {_counted(length, 'token')}"
        words = f"must be from 1 to {most} for {windows_and_tokens}"
        raise InvalidParameter("top_k", rules.top_k, words)


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _stride(options: AnswerOptions, seq_len: int, capacity: int) -> int:
    if options.doc_stride is None:
        return usual_stride(seq_len, capacity)
    if options.doc_stride >= capacity:
        rule = f"must be 0 to {capacity - 1}, less than the {capacity} tokens of the context in a window"
        raise InvalidParameter("doc_stride", options.doc_stride, rule)
    return options.doc_stride


def _answers(
    document: _Document, windows: Sequence[range], logits: Sequence[NDArray[np.float32]], rules: AnswerRules
) -> list[Answer]:
    read = [document.tokens.logits(window, row_T2) for window, row_T2 in zip(windows, logits, strict=True)]
    return find_answers(document.tokens.context(document.text), read, rules)
