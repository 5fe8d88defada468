"""Labelled tokens to entities with character offsets; knows nothing of models, windows or HTTP.

Five strategies are those of transformers' token classification pipeline, result for result. ``joined``, the
default, is ours: see `server.text.joined`.

Dimension key
    T  tokens of one text, special tokens left out
    L  labels
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

import numpy as np
from numpy.typing import NDArray

PipelineStrategy = Literal["none", "simple", "first", "average", "max"]
PIPELINE_STRATEGIES: tuple[PipelineStrategy, ...] = get_args(PipelineStrategy)
Strategy = Literal["joined", PipelineStrategy]


@dataclass(frozen=True, kw_only=True)
class TokenRules:
    """What the pipeline's strategies ask of a tokenizer."""

    joins: Callable[[list[str]], str]
    """Tokens, as the vocabulary writes them, to text."""
    unk_id: int | None
    marks_continuation: bool
    """Whether a piece inside a word is written differently, as in WordPiece's ``##ing``."""


@dataclass(frozen=True, kw_only=True)
class TaggedText:
    """One text's tokens and how likely each label is at each."""

    text: str
    token_ids: Sequence[int]
    tokens: Sequence[str]
    """As the vocabulary writes them."""
    offsets: Sequence[tuple[int, int]]
    """Characters of ``text``; end exclusive."""
    word_ids: Sequence[int | None]
    """The tokenizer's own words: a run without spaces, or one punctuation mark, or one Chinese character, or more."""
    positions: Sequence[int]
    """Places in the encoding with its special tokens."""
    labels: Sequence[str]
    probabilities_TL: NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Entity:
    """A labelled span of a text."""

    label: str
    """Without its B- or I-, but for strategy ``none``."""
    score: float
    word: str
    start: int
    end: int
    index: int | None = None
    """The token's place in the encoding; only for strategy ``none``, whose entities are tokens."""


@dataclass(frozen=True)
class _Word:
    """A token, or tokens agreed on one label."""

    label: str
    score: np.float32
    word: str
    start: int
    end: int


@dataclass(frozen=True)
class _Piece:
    probabilities_L: NDArray[np.float32]
    word: str
    start: int
    end: int
    continues: bool


def pipeline_entities(tagged: TaggedText, strategy: PipelineStrategy, rules: TokenRules) -> list[Entity]:
    """What transformers' pipeline makes of every token, ``O`` included, under one of its strategies."""
    pieces = _pieces(tagged, rules)
    if strategy in ("none", "simple"):
        words = [_single(piece, tagged.labels) for piece in pieces]
    else:
        words = [_agree(run, strategy, tagged.labels, rules) for run in _word_runs(pieces)]
    if strategy == "none":
        return [_token_entity(word, index) for word, index in zip(words, tagged.positions, strict=True)]
    return [_group(run, rules) for run in _label_runs(words)]


def softmax(logits_TL: NDArray[np.float32]) -> NDArray[np.float32]:
    """Row by row, in float32 and in the order of operations of transformers' pipelines."""
    exponentials = np.exp(logits_TL - logits_TL.max(axis=-1, keepdims=True))
    return cast("NDArray[np.float32]", exponentials / exponentials.sum(axis=-1, keepdims=True))


def _pieces(tagged: TaggedText, rules: TokenRules) -> list[_Piece]:
    rows = zip(tagged.token_ids, tagged.tokens, tagged.offsets, tagged.probabilities_TL, strict=True)
    return [_piece(tagged.text, rules, *row) for row in rows]


def _piece(
    text: str, rules: TokenRules, token_id: int, token: str, offsets: tuple[int, int], probabilities_L: Any
) -> _Piece:
    start, end = offsets
    if token_id == rules.unk_id:
        return _Piece(probabilities_L, text[start:end], start, end, continues=False)
    if rules.marks_continuation:
        continues = len(token) != end - start
    else:
        # The slice is one character long, not two, where the token begins the text after a space.
        continues = start > 0 and " " not in text[start - 1 : start + 1]
    return _Piece(probabilities_L, token, start, end, continues)


def _single(piece: _Piece, labels: Sequence[str]) -> _Word:
    best = int(piece.probabilities_L.argmax())
    return _Word(labels[best], piece.probabilities_L[best], piece.word, piece.start, piece.end)


def _word_runs(pieces: Sequence[_Piece]) -> list[list[_Piece]]:
    runs: list[list[_Piece]] = []
    for piece in pieces:
        if runs and piece.continues:
            runs[-1].append(piece)
        else:
            runs.append([piece])
    return runs


def _agree(run: Sequence[_Piece], strategy: PipelineStrategy, labels: Sequence[str], rules: TokenRules) -> _Word:
    """One label for a word's pieces: the first one's, the surest one's, or that of their mean."""
    if strategy == "first":
        probabilities_L = run[0].probabilities_L
    elif strategy == "max":
        probabilities_L = max(run, key=lambda piece: float(piece.probabilities_L.max())).probabilities_L
    else:
        probabilities_L = np.mean(np.stack([piece.probabilities_L for piece in run]), axis=0)
    best = int(probabilities_L.argmax())
    word = rules.joins([piece.word for piece in run])
    return _Word(labels[best], probabilities_L[best], word, run[0].start, run[-1].end)


def _label_runs(words: Sequence[_Word]) -> list[list[_Word]]:
    """Neighbours of one type, whatever lies between them; a B- begins a new run."""
    runs: list[list[_Word]] = []
    for word in words:
        prefix, tag = _prefix_and_tag(word.label)
        if runs and prefix != "B" and _prefix_and_tag(runs[-1][-1].label)[1] == tag:
            runs[-1].append(word)
        else:
            runs.append([word])
    return runs


def _prefix_and_tag(label: str) -> tuple[str, str]:
    return (label[0], label[2:]) if label.startswith(("B-", "I-")) else ("I", label)


def _group(run: Sequence[_Word], rules: TokenRules) -> Entity:
    return Entity(
        label=run[0].label.split("-", 1)[-1],
        score=float(np.mean([word.score for word in run])),
        word=rules.joins([word.word for word in run]),
        start=run[0].start,
        end=run[-1].end,
    )


def _token_entity(word: _Word, index: int) -> Entity:
    return Entity(
        label=word.label, score=float(word.score), word=word.word, start=word.start, end=word.end, index=index
    )
