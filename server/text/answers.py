"""Start and end logits of a context's tokens to answers: the best spans of each window, as parts of the text.

1. In each window, softmax over the context's tokens and the special token before them gives the probability that the
   answer starts, and ends, at a token. The special token stands for "no answer here".
2. A span's score is the product of both. Spans have at most ``max_tokens`` tokens.
3. A span becomes a part of the text: whole words, where wanted, in scripts that put spaces between words; never spaces
   at its ends, and always the marks that stand on its last character.
4. Spans of a window with the same text are one answer, whose score is their sum. Of the same answer in several
   windows the better one counts: windows overlap, and their probabilities are not of one whole.

Dimension key
    T  tokens of the context
    C  those of one window
    W  lengths of a span
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from server.text.edges import Edges
from server.text.scripts import UNSPACED

_UNSPACED = re.compile(f"[{UNSPACED}]")

_BLOCK = 1 << 20
"""Spans that are looked at together, so that a long answer in a long window takes little memory."""

Floats = NDArray[np.float64]


class Answer(NamedTuple):
    """A part of the context, ``text[start:end]``. The empty one says that the context has no answer."""

    answer: str
    score: float
    start: int
    end: int


@dataclass(frozen=True)
class Places:
    """Of each token of a context."""

    starts_T: NDArray[np.int64]
    """Where an answer starts that begins with the token."""
    ends_T: NDArray[np.int64]
    is_solid_T: NDArray[np.bool_]
    """Whether the token is more than spaces."""


@dataclass(frozen=True)
class Context:
    """A text and its tokens; offsets count characters of the text as given."""

    text: str
    offsets: Sequence[tuple[int, int]]
    word_ids: Sequence[int | None]
    """A word is what the tokenizer takes for one; None where it does not say."""

    def places(self, *, whole_words: bool) -> Places:
        """Where the tokens stand, or the words around them."""
        offsets_T2 = np.array(self.offsets, dtype=np.int64)
        if whole_words:
            offsets_T2 = self._of_words(offsets_T2)
        starts_T, ends_T = offsets_T2.T
        edges = Edges(self.text)
        return Places(edges.starts(starts_T), edges.ends(ends_T), ~edges.are_blank(starts_T, ends_T))

    def _of_words(self, offsets_T2: NDArray[np.int64]) -> NDArray[np.int64]:
        """Of the word around each token; of the token alone in scripts without spaces."""
        ids_T = np.array([-1 if word is None else word for word in self.word_ids])
        is_cut = np.concatenate([[True], ids_T[1:] != ids_T[:-1], [True]])
        places = np.arange(len(ids_T))
        firsts_T = np.maximum.accumulate(np.where(is_cut[:-1], places, 0))
        lasts_T = np.minimum.accumulate(np.where(is_cut[1:], places, len(places))[::-1])[::-1]
        words_T2 = np.stack([offsets_T2[firsts_T, 0], offsets_T2[lasts_T, 1]], axis=1)
        unspaced = np.array([match.start() for match in _UNSPACED.finditer(self.text)])
        has_unspaced_T = np.diff(np.searchsorted(unspaced, words_T2), axis=1)[:, 0] > 0
        return np.where(((ids_T >= 0) & ~has_unspaced_T)[:, None], words_T2, offsets_T2)


@dataclass(frozen=True)
class WindowLogits:
    """What the model said of one window."""

    tokens: range
    """Of the context's tokens."""
    of_tokens_C2: NDArray[np.float32]
    of_no_answer_2: NDArray[np.float32] | None
    """Of the special token before everything; None where the tokenizer puts none there."""


@dataclass(frozen=True, kw_only=True)
class AnswerRules:
    """Which answers are wanted."""

    top_k: int = 1
    max_tokens: int = 15
    whole_words: bool = True
    may_be_impossible: bool = False
    """Whether "no answer" is one of the answers."""


def find_answers(context: Context, windows: Sequence[WindowLogits], rules: AnswerRules) -> list[Answer]:
    """At most ``top_k`` answers, the best first."""
    best: dict[str, Answer] = {}
    no_answer = 1.0
    # Several spans may become one answer, once they are whole words.
    num_spans = 2 * rules.top_k + 10 if rules.whole_words else rules.top_k
    places = context.places(whole_words=rules.whole_words)

    # A word may be as long as the text, and be an answer of every window.
    @lru_cache(maxsize=num_spans)
    def written(start: int, end: int) -> tuple[str, str]:
        return context.text[start:end], context.text[start:end].lower()

    for window in windows:
        probabilities_C2, nothing_2 = _probabilities(window)
        no_answer = min(no_answer, float(nothing_2[0] * nothing_2[1]))
        solid_C = places.is_solid_T[window.tokens.start : window.tokens.stop]
        spans = best_spans(probabilities_C2, solid_C, max_tokens=rules.max_tokens, num_spans=num_spans)
        for key, answer in _in_window(written, places, window, spans).items():
            if key not in best or answer.score > best[key].score:
                best[key] = answer
        # Scores only grow: what is not among the best now needs a better score from a later window.
        kept = set(sorted(best, key=lambda key: -best[key].score)[: rules.top_k])
        best = {key: answer for key, answer in best.items() if key in kept}
    answers = list(best.values())
    if rules.may_be_impossible:
        answers.append(Answer("", no_answer, 0, 0))
    return sorted(answers, key=lambda answer: -answer.score)[: rules.top_k]


def _probabilities(window: WindowLogits) -> tuple[Floats, Floats]:
    """Of each token that it is where the answer starts and ends; and of the special token."""
    logits, nothing = window.of_tokens_C2.astype(np.float64), window.of_no_answer_2
    if nothing is not None:
        logits = np.concatenate([nothing[None].astype(np.float64), logits])
    exponentials = np.exp(logits - logits.max(axis=0))
    probabilities = exponentials / exponentials.sum(axis=0)
    return (probabilities, np.zeros(2)) if nothing is None else (probabilities[1:], probabilities[0])


def best_spans(
    probabilities_C2: Floats, solid_C: NDArray[np.bool_], *, max_tokens: int, num_spans: int
) -> list[tuple[int, int, float]]:
    """First token, last token and score of the best spans in which some token is solid: more than spaces.

    >>> sure = np.array([[0.1, 0.0], [0.5, 0.5], [0.1, 0.5]])
    >>> best_spans(sure, np.array([True, True, True]), max_tokens=2, num_spans=2)
    [(1, 1, 0.25), (1, 2, 0.25)]
    """
    num_tokens = len(probabilities_C2)
    width = min(max_tokens, num_tokens)
    places = np.where(solid_C, np.arange(num_tokens), num_tokens)
    next_solid_C = np.minimum.accumulate(places[::-1])[::-1]
    found: list[tuple[int, int, float]] = []
    for first in range(0, num_tokens, max(1, _BLOCK // width)):
        starts = np.arange(first, min(num_tokens, first + max(1, _BLOCK // width)))
        ends_CW = starts[:, None] + np.arange(width)
        is_span_CW = (ends_CW < num_tokens) & (ends_CW >= next_solid_C[starts, None])
        ends_CW = np.minimum(ends_CW, num_tokens - 1)
        scores_CW = np.where(is_span_CW, probabilities_C2[starts, None, 0] * probabilities_C2[ends_CW, 1], -1.0)
        rows, columns = np.unravel_index(_largest(scores_CW.ravel(), num_spans), scores_CW.shape)
        columns_of_spans = (starts[rows], ends_CW[rows, columns], scores_CW[rows, columns])
        spans = zip(*(column.tolist() for column in columns_of_spans), strict=True)
        found += [span for span in spans if span[2] >= 0]
    return sorted(found, key=lambda span: (-span[2], span[0], span[1]))[:num_spans]


def _largest(values: Floats, count: int) -> NDArray[np.intp]:
    """Places of the largest values, in no order."""
    return np.argpartition(values, -count)[-count:] if count < len(values) else np.arange(len(values))


def _in_window(
    written: Callable[[int, int], tuple[str, str]],
    places: Places,
    window: WindowLogits,
    spans: Sequence[tuple[int, int, float]],
) -> dict[str, Answer]:
    """By text without case, the answers that the spans make; where the best span of each is.

    ``written`` gives the text between two places, as it is and without case.
    """
    answers: dict[str, Answer] = {}
    for first, last, score in spans:
        start, end = int(places.starts_T[window.tokens[first]]), int(places.ends_T[window.tokens[last]])
        answer, key = written(start, end)
        known = answers.get(key)
        answers[key] = Answer(answer, score, start, end) if known is None else known._replace(score=known.score + score)
    return answers
