"""Texts with masks to the words that fit there."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

from server.errors import InvalidParameter, InvalidRequest
from server.length_errors import InputTooLong
from server.protocol import Encode, MaskQuery, Scores
from server.sentences import sentence
from server.serving.encoder_client import ServedEncoder, rows
from server.serving.record import RequestRecord

DEFAULT_TOP_K = 5
MAX_CANDIDATES = 32_768
"""Of all masks of one request: each is answered with its whole text."""


class Filling(NamedTuple):
    """One candidate for one mask; the names are those of the answer."""

    score: float
    token: int
    token_str: str
    sequence: str
    """The text with this mask filled; other masks stay."""


@dataclass(frozen=True, kw_only=True)
class FillOptions:
    """What the client asked for."""

    top_k: int = DEFAULT_TOP_K
    targets: Sequence[str] | None = None
    """Rank only these tokens; their scores stay what they are among all."""


class ServedMaskFiller(ServedEncoder):
    """A masked language model."""

    _shorten = "Shorten it."

    def describe(self) -> dict[str, Any]:
        return {
            "mask_token": self.ready.tokenizer.mask_token,
            "max_input_tokens": self.ready.max_model_len,
            "max_inputs": self._max_inputs,
        }

    async def fill(
        self, texts: Sequence[str], options: FillOptions, record: RequestRecord
    ) -> list[list[list[Filling]]]:
        """For each text and each of its masks the best candidates, the highest score first."""
        if not 1 <= options.top_k <= self.ready.vocab_size:
            raise InvalidParameter("top_k", options.top_k, f"must be 1 to {self.ready.vocab_size}")
        # Once, with the first text: in the thread, and after the queue has been asked.
        target_ids = cache(lambda: self._target_ids(options.targets))
        commands = await self._tokenize(
            lambda text: self._command(text, options.top_k, target_ids(), record.request_id),
            texts,
            sum(map(len, texts)) + sum(map(len, options.targets or ())),
        )
        self._check_size(commands)
        scores = await self._encode(commands, record)
        return await asyncio.to_thread(lambda: [self._fillings(*pair) for pair in zip(commands, scores, strict=True)])

    def _command(self, text: str, top_k: int, target_ids: list[int] | None, request_id: str) -> Encode:
        self._check_least(text)
        encoding = self.tokenizer.encode(text)
        ids, limit = encoding.ids, self.ready.max_model_len
        if len(ids) > limit:
            raise InputTooLong(len(ids), limit, self._shorten)
        mask_id = self.tokenizer.files.mask_token_id
        positions = [position for position, id_ in enumerate(ids) if id_ == mask_id]
        if not positions:
            raise InvalidParameter("inputs", text, f"must contain the mask token {self.tokenizer.files.mask_token}")
        return Encode(request_id, ids, self._type_ids(encoding), MaskQuery(positions, top_k, target_ids))

    def _check_size(self, commands: Sequence[Encode]) -> None:
        queries = [command.mask for command in commands if command.mask is not None]
        num_masks = sum(len(query.positions) for query in queries)
        num_candidates = num_masks * min(queries[0].top_k, len(queries[0].target_ids or range(self.ready.vocab_size)))
        if num_candidates > MAX_CANDIDATES:
            words = sentence(
                "The inputs have {masks} masks, which makes {candidates} candidates, and an answer holds at most "
                "{limit}. Send fewer masks at once, or set a smaller {top_k}.",
                masks=num_masks,
                candidates=num_candidates,
                limit=MAX_CANDIDATES,
            )
            raise InvalidRequest(words, param="inputs")

    def _target_ids(self, targets: Sequence[str] | None) -> list[int] | None:
        if targets is None:
            return None
        if not targets:
            raise InvalidParameter("targets", [], "must contain at least one word")
        return sorted({self._target_id(target) for target in targets})

    def _target_id(self, target: str) -> int:
        """As the vocabulary writes it, or as text that is one token."""
        token_id = self.tokenizer.backend.token_to_id(target)
        if token_id is not None:
            return int(token_id)
        encoding = self.tokenizer.encode(target, add_special_tokens=False)
        if len(encoding.ids) != 1:
            raise InvalidParameter(
                "targets", target, f"must be one token of this model's vocabulary, and is {len(encoding.ids)}"
            )
        if encoding.tokens[0] == self.tokenizer.files.unk_token:
            raise InvalidParameter("targets", target, "is not in this model's vocabulary")
        return int(encoding.ids[0])

    def _fillings(self, command: Encode, scores: Scores) -> list[list[Filling]]:
        assert command.mask is not None and scores.candidate_ids is not None
        positions = command.mask.positions
        masks = zip(positions, scores.candidate_ids, rows(scores).tolist(), strict=True)
        return [
            [
                self._filling(command.token_ids, position, token_id, score, is_only=len(positions) == 1)
                for token_id, score in zip(candidate_ids, mask_scores, strict=True)
            ]
            for position, candidate_ids, mask_scores in masks
        ]

    def _filling(self, token_ids: list[int], position: int, token_id: int, score: float, is_only: bool) -> Filling:
        filled = [*token_ids[:position], token_id, *token_ids[position + 1 :]]
        # Special tokens are shown where other masks would vanish with them, as transformers' pipeline does.
        sequence = self.tokenizer.decode(filled, skip_special_tokens=is_only)
        return Filling(score, token_id, self.tokenizer.token_text(token_id), sequence)
