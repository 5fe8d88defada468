"""Texts to vectors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from server.errors import ConflictingParameters, InvalidParameter
from server.protocol import Embedding, Encode
from server.serving.encoder_client import ServedEncoder, rows
from server.serving.record import RequestRecord
from server.text.truncation import Truncation

Vector = NDArray[np.float32]
"""``[size]``"""


@dataclass(frozen=True, kw_only=True)
class EmbedOptions:
    """What the client asked for."""

    dimensions: int | None = None
    """Keep so many of a vector's first numbers; None for all. Models that were trained for it lose little."""
    normalize: bool | None = None
    """Give every vector the length 1, after the cut; None as the model's folder says."""
    prompt_name: str | None = None
    """Which of the model's prompts goes before each text; None for its default."""
    truncation: Truncation | None = None
    """How a text that is longer than the model takes is cut; None refuses it."""


class ServedEmbedder(ServedEncoder):
    """A model for embeddings."""

    @property
    def embedding(self) -> Embedding:
        assert self.ready.embedding is not None, "of every model of the task"
        return self.ready.embedding

    def describe(self) -> dict[str, Any]:
        return {
            "embedding_size": self.embedding.size,
            "pooling": self.embedding.pooling,
            "is_normalized": self.embedding.is_normalized,
            "prompts": self.embedding.prompts,
            "default_prompt": self.embedding.default_prompt,
            "max_input_tokens": self.ready.max_model_len,
            "max_inputs": self._max_inputs,
        }

    async def embed(
        self, texts: Sequence[str | list[int]], options: EmbedOptions, record: RequestRecord
    ) -> list[Vector]:
        """For each text its vector. Token ids are taken as they are: no prompt goes before them."""
        size = self.embedding.size if options.dimensions is None else options.dimensions
        if not 1 <= size <= self.embedding.size:
            raise InvalidParameter("dimensions", size, f"must be from 1 to {self.embedding.size}")
        prompt = self._prompt(options.prompt_name)
        if options.prompt_name is not None and any(isinstance(text, list) for text in texts):
            raise ConflictingParameters("prompt_name", "inputs", "it does not apply to token ids; send text")
        commands = await self._tokenize(
            lambda text: self._command(prompt, text, options.truncation, record.request_id),
            texts,
            sum(len(prompt) + len(text) for text in texts),
        )
        is_normalized = self.embedding.is_normalized if options.normalize is None else options.normalize
        vectors = [rows(scores)[:size] for scores in await self._encode(commands, record)]
        return [_normalized(vector) for vector in vectors] if is_normalized else vectors

    def _command(self, prompt: str, text: str | list[int], truncation: Truncation | None, request_id: str) -> Encode:
        if isinstance(text, list):
            return self._fitted_ids(self._checked(text), truncation, request_id)
        if truncation is None:
            self._check_least(prompt + text)
        return self._fitted(self.tokenizer.encode(prompt + text), truncation, request_id)

    def _checked(self, ids: list[int]) -> list[int]:
        for token_id in ids:
            if not 0 <= token_id < self.ready.vocab_size:
                rule = (
                    f"must be a token id of this model, 0 to {self.ready.vocab_size - 1}; LangChain's OpenAIEmbeddings "
                    "sends text with check_embedding_ctx_length=False"
                )

                raise InvalidParameter("inputs", token_id, rule)
        return ids

    def _prompt(self, name: str | None) -> str:
        prompts = self.embedding.prompts
        if name is not None and name not in prompts:
            names = ", ".join(prompts)
            rule = f"must be one of {names}" if names else "is not supported: the model has no prompts"
            raise InvalidParameter("prompt_name", name, rule)
        return prompts.get(name or self.embedding.default_prompt or "", "")


def cosines(vector: Vector, others: Sequence[Vector]) -> list[float]:
    """How alike each of the others is to the vector: the cosine of the angle between them."""
    unit = _normalized(vector)
    return [float(np.dot(unit, _normalized(other))) for other in others]


def _normalized(vector: Vector) -> Vector:
    # The vector of zeros has no direction, and stays.
    return vector / np.float32(max(float(np.linalg.norm(vector)), 1e-12))
