"""Which length of a sequence decides its rotary factors, where a model has several sets of them. Knows no tensors."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class LengthRule:
    """How rotary factors follow from a sequence's length, as `transformers.generate` applies them to it alone."""

    switch: int
    """Sequences of at most this many tokens share one set of factors."""
    is_by_prompt: bool
    """False: longer sequences share a second set, for all of their tokens (longrope).

    True: a longer prompt has the factors of its length, and each later token those of its own place (dynamic NTK).
    """

    def deciding_length(self, num_prompt_tokens: int, num_tokens: int) -> int:
        """The length that decides for a sequence, equal for all lengths with equal factors; 0 for short ones.

        Keys that were computed with another one are of no use to the sequence.
        """
        if self.is_by_prompt:
            return num_prompt_tokens if num_prompt_tokens > self.switch else 0
        return self.switch + 1 if num_tokens > self.switch else 0

    def num_more_alike(self, num_tokens: int, num_wanted: int) -> int:
        """Of ``num_wanted`` tokens after the first ``num_tokens``, how many leave the factors as they are."""
        if self.is_by_prompt or num_tokens > self.switch:
            return num_wanted
        return min(num_wanted, self.switch - num_tokens)

    def may_part(self, num_prompt_tokens: int, max_tokens: int) -> bool:
        """Whether outputs of one prompt may come to have different factors."""
        return not self.is_by_prompt and num_prompt_tokens <= self.switch < max_tokens
