"""How clients ask for an input that is too long to be cut, in the words of two peers."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel

from server.api.bodies.schemas import one_error
from server.errors import ConflictingParameters, InvalidParameter
from server.text.truncation import Truncation

ALL_THAT_FITS = -1
"""How vLLM's clients say that only what the model does not take is cut off."""


class TeiTruncation(BaseModel):
    """Fields of Text Embeddings Inference. Without ``truncate`` nothing is cut."""

    truncate: bool | None = None
    truncation_direction: (
        Annotated[Literal["Left", "left", "Right", "right"], one_error('"Left" or "Right"')] | None
    ) = None

    def tei_truncation(self) -> Truncation | None:
        if not self.truncate:
            return None
        direction = self.truncation_direction
        return Truncation(side=None if direction is None else "left" if direction in ("Left", "left") else "right")


class VllmTruncation(BaseModel):
    """Fields of vLLM. Without ``truncate_prompt_tokens`` nothing is cut."""

    truncate_prompt_tokens: int | None = None
    """How many tokens are kept: must be at least 1, or -1 for the maximum. Without it nothing is cut."""
    truncation_side: Literal["left", "right"] | None = None

    def vllm_truncation(self) -> Truncation | None:
        wanted = self.truncate_prompt_tokens
        if wanted is None:
            return None
        if wanted < 1 and wanted != ALL_THAT_FITS:
            raise InvalidParameter("truncate_prompt_tokens", wanted, "must be at least 1, or -1 for the maximum")
        return Truncation(None if wanted == ALL_THAT_FITS else wanted, self.truncation_side)


class EitherTruncation(TeiTruncation, VllmTruncation):
    """For routes that both have."""

    def truncation(self) -> Truncation | None:
        if self.truncate is not None and self.truncate_prompt_tokens is not None:
            raise ConflictingParameters("truncate", "truncate_prompt_tokens", "send one of them")
        return self.tei_truncation() or self.vllm_truncation()
