"""Texts and pairs to labels and scores."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from server.errors import ConflictingParameters, InvalidParameter
from server.protocol import Encode
from server.sentences import sentence
from server.serving import text_threads
from server.serving.encoder_client import ServedEncoder, rows
from server.serving.record import RequestRecord
from server.text.entities import softmax
from server.text.label_roles import entailment_label, relevance_label
from server.text.truncation import Truncation

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
    truncation: Truncation | None = None
    """How an input that is longer than the model takes is cut; None refuses it."""


class ServedClassifier(ServedEncoder):
    """A sequence classifier."""

    def describe(self) -> dict[str, Any]:
        return {
            "labels": self.ready.labels,
            "problem_type": self.ready.problem_type,
            "function_to_apply": self.default_function,
            "relevance_label": relevance_label(self.ready.labels),
            "entailment_label": entailment_label(self.ready.labels),
            "max_input_tokens": self.ready.max_model_len,
            "max_inputs": self._max_inputs,
        }

    async def classify(
        self, inputs: Sequence[TextPair], options: ClassifyOptions, record: RequestRecord
    ) -> list[list[LabelScore]]:
        """For each input its labels, the highest score first."""
        function = self._checked_function(options)
        logits = await self.logits(inputs, options.truncation, record)
        return [self._ranked(apply_function(function, logits_L), options) for logits_L in logits]

    async def logits(
        self, inputs: Sequence[TextPair], truncation: Truncation | None, record: RequestRecord
    ) -> list[NDArray[np.float32]]:
        """For each input the model's own numbers, ``[L]``, in the order of its labels."""
        commands = await self._tokenize(
            lambda pair: self._command(pair, truncation, record.request_id), inputs, _num_characters(inputs)
        )
        return [rows(scores) for scores in await self._encode(commands, record)]

    async def scores(
        self, inputs: Sequence[TextPair], truncation: Truncation | None, record: RequestRecord, *, is_raw: bool = False
    ) -> list[NDArray[np.float32]]:
        """For each input the scores, ``[L]``, in the order of the labels; raw ones are logits."""
        function: Function = "none" if is_raw else self.default_function
        return [apply_function(function, logits_L) for logits_L in await self.logits(inputs, truncation, record)]

    async def label_scores(self, texts: Sequence[str], label: str, record: RequestRecord) -> list[float]:
        """One label's score for each text, cut where the model takes no more; the least for a text of no tokens.

        The texts are part of a request that another model has admitted, and are not refused. Equal ones have one score.
        """
        pairs = [TextPair(text) for text in dict.fromkeys(texts) if text]
        commands = await text_threads.each(
            lambda pair: self._command(pair, Truncation(), record.request_id), pairs, _num_characters(pairs)
        )
        filled = {pair.text: command for pair, command in zip(pairs, commands, strict=True) if command.token_ids}
        replies = await self._encode(list(filled.values()), record, is_part=True) if filled else []
        place, function = self.ready.labels.index(label), self.default_function
        scores = {
            text: float(apply_function(function, rows(r))[place]) for text, r in zip(filled, replies, strict=True)
        }
        return [scores.get(text, -math.inf) for text in texts]

    @property
    def default_function(self) -> Function:
        """The one that fits the model's problem type."""
        if self.ready.problem_type == "regression":
            return "none"
        if self.ready.problem_type == "multi_label_classification" or len(self.ready.labels) == 1:
            return "sigmoid"
        return "softmax"

    def _checked_function(self, options: ClassifyOptions) -> Function:
        function = options.function or self.default_function
        if function == "softmax" and len(self.ready.labels) == 1:
            raise InvalidParameter(
                "function_to_apply", function, "gives a score of 1 for a model with one label; use sigmoid or none"
            )
        if options.threshold is not None and function != "none" and not 0 <= options.threshold <= 1:
            reason = sentence("{function} gives scores from 0 to 1, and {threshold} is outside", function=function)
            is_sent = options.function is not None
            raise ConflictingParameters("threshold", "function_to_apply", reason, is_second_sent=is_sent)
        return function

    def _command(self, pair: TextPair, truncation: Truncation | None, request_id: str) -> Encode:
        if truncation is None:
            self._check_least(pair.text, pair.pair or "")
        return self._fitted(self.tokenizer.encode(pair.text, pair.pair), truncation, request_id)

    def _ranked(self, scores_L: NDArray[np.float32], options: ClassifyOptions) -> list[LabelScore]:
        pairs = zip(self.ready.labels, scores_L.tolist(), strict=True)
        ranked = sorted((LabelScore(*pair) for pair in pairs), key=lambda pair: pair.score, reverse=True)
        if options.threshold is not None:
            ranked = [pair for pair in ranked if pair.score >= options.threshold]
        return ranked[: options.top_k]


def _num_characters(pairs: Sequence[TextPair]) -> int:
    return sum(len(pair.text) + len(pair.pair or "") for pair in pairs)


def apply_function(function: Function, logits_L: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scores of logits."""
    if function == "softmax":
        return softmax(logits_L)
    if function == "sigmoid":
        # exp of a very negative logit's opposite is infinite, and 1 / infinity is the right answer, 0.
        with np.errstate(over="ignore"):
            return np.asarray(1.0 / (1.0 + np.exp(-logits_L)), dtype=np.float32)
    return logits_L
