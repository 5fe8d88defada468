"""One output of a running request: what the workers have computed of it, and what of that its consumer has.

Plain state without waiting, like the journal that keeps it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from server.errors import OutputDiverged
from server.protocol import FinishReason, Output, PromptLogprobs, TokenLogprob, Tokens


@dataclass(eq=False, slots=True)
class Delivery:
    """The tokens of one output, each of which its consumer gets once, in order, whatever happens to the worker."""

    index: int
    token_ids: list[int] = field(default_factory=list)
    """All new tokens so far. A token that is here has been delivered: its consumer takes it from this list."""
    num_confirmed: int = 0
    """Of ``token_ids``, those that the worker that runs now has sent or was told of."""
    num_taken: int = 0
    """Of ``token_ids``, those that the consumer has."""
    finish_reason: FinishReason | None = None
    score: float | None = None
    num_rewinds: int = 0
    end_was_taken: bool = False
    is_dropped: bool = False
    """Its consumer wants no more of it."""
    # What goes with the tokens that the consumer does not have yet.
    logprobs: list[float] = field(default_factory=list)
    top_logprobs: list[list[TokenLogprob]] = field(default_factory=list)
    num_cached_tokens: int | None = None
    prompt_logprobs: PromptLogprobs | None = None

    @property
    def has_begun(self) -> bool:
        return bool(self.token_ids) or self.finish_reason is not None

    @property
    def has_news(self) -> bool:
        """Whether there is something that the consumer does not have."""
        return self.num_taken < len(self.token_ids) or (self.finish_reason is not None and not self.end_was_taken)

    def resumed(self) -> Output:
        """What the next worker must know of it, to go on with it."""
        return Output(self.token_ids, self.finish_reason is not None, self.num_rewinds)

    def begin_anew(self) -> None:
        """The next worker computes it from its first token: what was delivered must come again, and is left out."""
        self.num_confirmed = 0

    def append(self, tokens: Tokens) -> None:
        """Deliver what the worker computed, without what had been delivered before. Raises `OutputDiverged`."""
        if self.is_dropped:
            return
        num_known = self._num_known(tokens) if self.num_confirmed < len(self.token_ids) else 0
        if not self.token_ids:
            self.num_cached_tokens, self.prompt_logprobs = tokens.num_cached_tokens, tokens.prompt_logprobs
        self.num_confirmed += len(tokens.token_ids)
        self.token_ids += tokens.token_ids[num_known:]
        if tokens.logprobs is not None:
            self.logprobs += tokens.logprobs[num_known:]
        if tokens.top_logprobs is not None:
            self.top_logprobs += tokens.top_logprobs[num_known:]
        self.num_rewinds = tokens.num_rewinds
        if self.finish_reason is None:
            self.finish_reason, self.score = tokens.finish_reason, tokens.score

    def _num_known(self, tokens: Tokens) -> int:
        """How many of these tokens had been delivered; they must be the same as they were then."""
        delivered = self.token_ids[self.num_confirmed :]
        num_known = min(len(delivered), len(tokens.token_ids))
        is_cut = tokens.finish_reason is not None and num_known < len(delivered)
        if tokens.token_ids[:num_known] != delivered[:num_known] or is_cut:
            raise OutputDiverged()
        return num_known

    def end(self, finish_reason: FinishReason) -> None:
        """No more of it will come."""
        self.finish_reason = self.finish_reason or finish_reason

    def drop(self) -> None:
        """Its consumer has seen its end; what the worker has computed beyond that is left out."""
        self.is_dropped = True
        self.finish_reason = "stop"
        self.num_taken = len(self.token_ids)
        self.end_was_taken = True

    def take(self, request_id: str) -> Tokens:
        """All that the consumer has not had yet, as one message."""
        tokens = Tokens(
            request_id=request_id,
            token_ids=self.token_ids[self.num_taken :],
            finish_reason=self.finish_reason,
            logprobs=self.logprobs or None,
            num_cached_tokens=self.num_cached_tokens,
            index=self.index,
            top_logprobs=self.top_logprobs or None,
            prompt_logprobs=self.prompt_logprobs,
            score=self.score,
            num_rewinds=self.num_rewinds,
        )
        self.num_taken = len(self.token_ids)
        self.end_was_taken = self.finish_reason is not None
        self.logprobs, self.top_logprobs = [], []
        self.num_cached_tokens = self.prompt_logprobs = None
        return tokens
