"""What the worker sends after each step."""

from __future__ import annotations

from typing import Literal

import msgspec

from server.protocol.ready import Ready, Refused, SharedAdapter

Residence = Literal["loading", "resident", "on disk"]
"""Where an adapter is: its weights are being read, are held, or lie in its folder until a request names it."""
FinishReason = Literal["stop", "length", "max_time", "banned_phrase", "abort", "error"]


class TokenLogprob(msgspec.Struct, frozen=True, array_like=True):
    """One token and its log-probability."""

    token_id: int
    logprob: float


class PromptLogprobs(msgspec.Struct, frozen=True):
    """Of each prompt token after the first, given those before it."""

    logprobs: list[float]
    top_logprobs: list[list[TokenLogprob]] | None = None


class Tokens(msgspec.Struct, frozen=True, tag=True):
    """New token ids of one sequence of a request, in order; its last message carries the finish reason.

    A token that was sent is never taken back. Several steps' tokens may come in one message where the engine had to
    hold them (beams, banned phrases).
    """

    request_id: str
    token_ids: list[int]
    finish_reason: FinishReason | None = None
    logprobs: list[float] | None = None
    """One per token id, if asked for."""
    num_cached_tokens: int | None = None
    """With the first tokens: how many prompt tokens came from the prefix cache."""
    index: int = 0
    """Which of the request's ``num_return_sequences``."""
    top_logprobs: list[list[TokenLogprob]] | None = None
    """Per token id the most likely ones, in falling order, if asked for."""
    prompt_logprobs: PromptLogprobs | None = None
    """With the first tokens of index 0."""
    score: float | None = None
    """With the finish reason of a hypothesis: its summed log-probability over its length to the length penalty."""
    num_rewinds: int = 0
    """How often the sequence has gone back to before a banned phrase so far."""


class Scores(msgspec.Struct, frozen=True, tag=True):
    """An encoder's answer: raw logits, float32, little-endian, row by row.

    Shape ``[labels]`` for a classifier, ``[tokens, labels]`` for a tagger. For a mask query the rows are
    probabilities, ``[masks, candidates]``, and ``candidate_ids`` names the tokens. A model for embeddings answers a
    vector, ``[size]``, of whatever length it has.
    """

    request_id: str
    shape: tuple[int, ...]
    data: bytes
    candidate_ids: list[list[int]] | None = None


class Failed(msgspec.Struct, frozen=True, tag=True):
    """One request ends in an error; the others go on. ``code`` is a key of `errors.FAILURES`."""

    request_id: str
    code: str
    message: str


class Stats(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """State of the engine after a step, and what the step did; one per frame of replies."""

    num_running: int = 0
    num_waiting: int = 0
    num_blocks_used: int = 0
    """Blocks that a sequence holds; blocks kept only for prefix reuse count as free."""
    batch_size: int = 0
    """Sequences in the step."""
    batch_tokens: int = 0
    """New tokens computed in the step, without padding."""
    padded_tokens: int = 0
    """Token places that held padding."""
    prompt_tokens: int = 0
    """Of ``batch_tokens``, those of prompts."""
    prefix_hit_tokens: int = 0
    """Prompt tokens that sequences admitted in this step found in the cache."""
    prefix_query_tokens: int = 0
    """Prompt tokens of the sequences admitted in this step."""
    num_preemptions: int = 0
    """Sequences preempted in this step."""
    num_drafted: int = 0
    """Of ``batch_tokens``, guesses at next tokens."""
    num_accepted: int = 0
    """Guesses that came true."""
    token_budget: int = 0
    """Most tokens of prompts or texts that a step computes by now, as learned; 0 where it is ``max_batch_tokens``."""
    step_s: float = 0.0
    forward_s: float = 0.0
    """Of ``step_s``, the model's forward pass."""
    started: list[str] = []
    """Requests whose first tokens were computed in this step: the end of their time in the queue."""


class AdapterState(msgspec.Struct, frozen=True, tag=True):
    """An adapter's place has changed. The first ``facts`` after `LoadAdapter` answer it."""

    digest: str
    state: Residence
    facts: SharedAdapter | None = None


class Pong(msgspec.Struct, frozen=True, tag=True):
    """The worker's loop turns."""


Reply = Ready | Refused | Tokens | Scores | Failed | Stats | AdapterState | Pong
