"""When a sequence ends: by a token or by its length. Stop strings are text and belong to the front."""

from __future__ import annotations

from server.protocol import FinishReason, SamplingParams


class Stopping:
    """One sequence's conditions, fixed when it arrives."""

    __slots__ = ("ending_ids", "max_tokens")

    def __init__(self, params: SamplingParams, num_prompt_tokens: int, max_model_len: int) -> None:
        self.ending_ids = frozenset(params.stop_token_ids)
        """Tokens that end the sequence; `MinNewTokens` bans the same ones."""
        if not params.ignore_eos:
            self.ending_ids |= frozenset(params.end_token_ids)
        self.max_tokens = min(num_prompt_tokens + params.max_new_tokens, max_model_len)
        """Prompt and new tokens together."""

    def finish_reason(self, token_id: int, num_tokens: int) -> FinishReason | None:
        """Why a sequence of ``num_tokens`` ends with the new token ``token_id``, or None."""
        if token_id in self.ending_ids:
            return "stop"
        return "length" if num_tokens >= self.max_tokens else None
