"""How tokens are chosen and when they end."""

from __future__ import annotations

from typing import Literal

import msgspec


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How one request's tokens are chosen and when it ends. Complete: the worker adds no defaults.

    Each value is in range and the combination has been checked; names are those of transformers'
    `GenerationConfig` where it has the rule. A neutral value means that the rule does not exist for the request.
    """

    max_new_tokens: int
    """At least 1; prompt and new tokens together fit the model."""
    min_new_tokens: int = 0
    """Below this many new tokens no end token or stop token can be chosen."""
    num_return_sequences: int = 1
    """Independent samples from one prefill or, with beams, how many of the best hypotheses are answered.
    Where a search found fewer, because all others were forbidden, its last is answered again in their places."""
    seed: int = 0
    """Always set: chosen by the front where the client gave none. 0 to 2**63 - 1."""

    # The draw, in the order in which the rules apply.
    do_sample: bool = False
    """False takes the most likely token and uses none of the rules of this part."""
    temperature: float = 1.0
    """Above 0."""
    top_n_sigma: float = 0.0
    """Keep logits within so many standard deviations of the greatest; 0 keeps every token."""
    top_k: int = 0
    """0 keeps every token."""
    top_p: float = 1.0
    min_p: float = 0.0
    typical_p: float = 1.0
    epsilon_cutoff: float = 0.0
    eta_cutoff: float = 0.0
    xtc_probability: float = 0.0
    """How often the likeliest tokens are excluded (XTC); 0 never."""
    xtc_threshold: float = 0.1
    """XTC excludes tokens of at least this probability, but for the least likely of them."""

    # Beam search.
    num_beams: int = 1
    num_beam_groups: int = 1
    """A divisor of ``num_beams``; above 1 is diverse beam search."""
    diversity_penalty: float = 0.0
    length_penalty: float = 1.0
    early_stopping: bool | Literal["never"] = False

    # Penalties.
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    encoder_repetition_penalty: float = 1.0
    penalty_scope: Literal["prompt", "output", "both"] | int | None = None
    """What repetition, presence and frequency penalties count; an integer is the last so many tokens of both.
    None: both for the repetition penalty, as in transformers, and the output for the other two, as in OpenAI's API."""
    no_repeat_ngram_size: int = 0
    encoder_no_repeat_ngram_size: int = 0
    dry_multiplier: float = 0.0
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_range: int = 0
    """Looks at the last so many tokens; 0 at all."""
    dry_breaker_ids: tuple[int, ...] = ()
    """Tokens that a repetition does not reach across."""

    # Biases and bans by token.
    logit_bias: dict[int, float] = {}
    sequence_bias: tuple[tuple[tuple[int, ...], float], ...] = ()
    """A bias on the last token of a token sequence once the tokens before it are there; -inf bans it."""
    allowed_token_ids: tuple[int, ...] | None = None
    """No other token, but for those that end the sequence."""
    suppress_tokens: tuple[int, ...] = ()
    begin_suppress_tokens: tuple[int, ...] = ()
    """Not as the first new token."""
    forced_bos_token_id: int | None = None
    """The first new token."""
    forced_eos_token_ids: tuple[int, ...] = ()
    """One of these is the last token if the output reaches its greatest length."""
    exponential_decay_length_penalty: tuple[int, float] | None = None
    """From so many new tokens on, end tokens grow more likely by this factor per token."""
    renormalize_logits: bool = False
    guidance_scale: float = 1.0
    """Classifier-free guidance against `Generate.negative_prompt_ids`; 1 is none."""

    # Rules on text, which the engine follows by the tokens' bytes.
    banned_phrases: tuple[str, ...] = ()
    """Never in the output, in no case and however tokenised. Stripped, not empty."""
    max_rewinds: int = 64
    """How often the sequence may go back to before a banned phrase; after that it ends as ``banned_phrase``."""
    phrase_penalties: tuple[tuple[str, float], ...] = ()
    """Amount taken from the logit of each token that begins or goes on with the phrase, in any case."""
    stop_strings: tuple[str, ...] = ()
    """Only with beams, where the front cannot know which hypothesis will have them. Else the front finds them."""
    grammar: str | None = None
    """A grammar in llguidance's JSON form; the output is a member of its language or a beginning of one."""

    # Ends.
    end_token_ids: tuple[int, ...] = ()
    """The model's end tokens. They end the sequence unless ``ignore_eos``."""
    stop_token_ids: tuple[int, ...] = ()
    """The client's own stop tokens. They end the sequence always."""
    ignore_eos: bool = False
    """End tokens may be chosen and end nothing."""

    # What is told.
    logprobs: bool = False
    """Send the log-probability of each chosen token."""
    top_n_tokens: int = 0
    """Send so many of the most likely tokens at each place; implies ``logprobs``."""
    logprob_token_ids: tuple[int, ...] = ()
    """Send these tokens' log-probabilities at each place of the output, in place of the most likely tokens'; implies
    ``logprobs``. No id occurs twice."""
    prompt_logprobs: bool = False
    """Send the log-probability of each prompt token; no part of the prompt comes from the prefix cache then."""
    logprobs_mode: Literal["raw", "processed"] = "raw"
    """Of the model's own distribution, or of the one that is drawn from."""

    @property
    def tells_others(self) -> bool:
        """Whether the log-probabilities of tokens other than the chosen ones are sent."""
        return bool(self.top_n_tokens or self.logprob_token_ids)

    @property
    def tells_logprobs(self) -> bool:
        return self.logprobs or self.tells_others
