"""Texts and pairs to labels and scores."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from server.errors import ConflictingParameters, InvalidParameter, PromptTooLong
from server.protocol import Encode
from server.serving.encoder_client import ServedEncoder, rows
from server.serving.record import RequestRecord
from server.text.entities import softmax
from server.text.truncation import kept_positions

Function = Literal["sigmoid", "softmax", "none"]


class TextPair(NamedTuple):
    """A text, or two to be judged together."""

    text: str
    pair: str | None = None


class LabelScore(NamedTuple):
    """A label and its score: a probability, or the model's own number where no function is applied."""

    label: str
    score: float


@dataclass(frozen=True, kw_only=True)
class ClassifyOptions:
    """What the client asked for."""

    function: Function | None = None
    """None takes the one that fits the model's problem type."""
    top_k: int | None = None
    """Most labels in an answer; None for all."""
    threshold: float | None = None
    """Labels below it are left out."""
    truncate: bool = False
    """Cut an input that is longer than the model takes, instead of refusing it."""


class ServedClassifier(ServedEncoder):
    """A sequence classifier."""

    def describe(self) -> dict[str, Any]:
        return {
            "labels": self.ready.labels,
            "problem_type": self.ready.problem_type,
            "function_to_apply": self._default_function,
            "max_input_tokens": self.ready.max_model_len,
            "max_inputs": self._max_inputs,
        }

    async def classify(
        self, inputs: Sequence[TextPair], options: ClassifyOptions, record: RequestRecord
    ) -> list[list[LabelScore]]:
        """For each input its labels, the highest score first."""
        function = self._checked_function(options)
        commands = await self._tokenize(lambda pair: self._command(pair, options.truncate, record.request_id), inputs)
        scores = await self._encode(commands, record)
        return [self._ranked(_apply(function, rows(score)), options) for score in scores]

    async def label_scores(self, texts: Sequence[str], label: str, record: RequestRecord) -> list[float]:
        """One label's score for each text, cut where the model takes no more; the least for a text of no tokens.

        The texts are part of a request that another model has admitted, and are not refused. Equal ones have one score.
        """
        pairs = [TextPair(text) for text in dict.fromkeys(texts) if text]
        commands = await asyncio.to_thread(lambda: [self._command(pair, True, record.request_id) for pair in pairs])
        filled = {pair.text: command for pair, command in zip(pairs, commands, strict=True) if command.token_ids}
        replies = await self._encode(list(filled.values()), record, is_part=True) if filled else []
        place, function = self.ready.labels.index(label), self._default_function
        scores = {text: float(_apply(function, rows(r))[place]) for text, r in zip(filled, replies, strict=True)}
        return [scores.get(text, -math.inf) for text in texts]

    @property
    def _default_function(self) -> Function:
        if self.ready.problem_type == "regression":
            return "none"
        if self.ready.problem_type == "multi_label_classification" or len(self.ready.labels) == 1:
            return "sigmoid"
        return "softmax"

    def _checked_function(self, options: ClassifyOptions) -> Function:
        function = options.function or self._default_function
        if function == "softmax" and len(self.ready.labels) == 1:
            raise InvalidParameter(
                "function_to_apply", function, "makes every score 1 for a model of one label; use sigmoid or none"
            )
        if options.threshold is not None and function != "none" and not 0 <= options.threshold <= 1:
            raise ConflictingParameters(
                "threshold", "function_to_apply", f"{function} gives scores from 0 to 1, threshold is outside"
            )
        return function

    def _command(self, pair: TextPair, truncate: bool, request_id: str) -> Encode:
        encoding = self.tokenizer.encode(pair.text, pair.pair)
        num_tokens, limit = len(encoding.ids), self.ready.max_model_len
        if num_tokens <= limit:
            return Encode(request_id, encoding.ids, encoding.type_ids)
        if not truncate:
            raise PromptTooLong(num_tokens, limit, "Shorten it, or set truncate to true to have its end cut off.")
        kept = kept_positions(encoding.sequence_ids, limit)
        ids, type_ids = encoding.ids, encoding.type_ids
        return Encode(request_id, [ids[i] for i in kept], [type_ids[i] for i in kept])

    def _ranked(self, scores_L: NDArray[np.float32], options: ClassifyOptions) -> list[LabelScore]:
        pairs = zip(self.ready.labels, scores_L.tolist(), strict=True)
        ranked = sorted((LabelScore(*pair) for pair in pairs), key=lambda pair: pair.score, reverse=True)
        if options.threshold is not None:
            ranked = [pair for pair in ranked if pair.score >= options.threshold]
        return ranked[: options.top_k]


def _apply(function: Function, logits_L: NDArray[np.float32]) -> NDArray[np.float32]:
    if function == "softmax":
        return softmax(logits_L)
    if function == "sigmoid":
        # exp of a very negative logit's opposite is infinite, and 1 / infinity is the right answer, 0.
        with np.errstate(over="ignore"):
            return np.asarray(1.0 / (1.0 + np.exp(-logits_L)), dtype=np.float32)
    return logits_L
