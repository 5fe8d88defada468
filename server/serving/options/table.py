"""What a client may ask of a generation, as plain values; knows neither ranges nor what fits together.

A docstring here is the option's line in `server/OPTIONS.md`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from server.errors import InvalidParameter

Bias = float | bool | Literal["-inf"]
"""An amount added to a logit; false and "-inf" ban."""
Ids = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Penalty:
    """One entry of ``penalties``: a phrase of the client's or a topic of the operator's."""

    phrase: str | None = None
    topic: str | None = None
    strength: float


@dataclass(frozen=True)
class RankBy:
    """A served classifier and the label whose score ranks the samples."""

    model: str
    label: str


@dataclass(frozen=True, kw_only=True)
class GenerateOptions:
    """The parameters of one request, template or model; None where it says nothing. Names are the client's."""

    max_new_tokens: int | None = None
    """Maximum number of new tokens."""
    min_new_tokens: int | None = None
    """Minimum number of new tokens: end tokens and stop tokens are not chosen before."""
    max_length: int | None = None
    """Maximum number of tokens in prompt and output together."""
    min_length: int | None = None
    """Minimum number of tokens in prompt and output together."""
    max_time: float | None = None
    """Time limit in seconds from the arrival of the request. The output ends with the finish reason `max_time`; before
    the first token the status is 504."""
    truncate: int | None = None
    """Keep only the last N tokens of the prompt, and the special tokens that begin it."""
    stop: tuple[str, ...] | None = None
    """Texts that end the output; a string or a list. The output does not include them."""
    stop_token_ids: Ids | None = None
    """Tokens that end the output. The output does not include them."""
    eos_token_id: Ids | None = None
    """End tokens that replace those of the model; an id or a list."""
    ignore_eos: bool | None = None
    """Continue after end tokens."""
    forced_bos_token_id: int | None = None
    """The first new token."""
    forced_eos_token_id: Ids | None = None
    """The last token of an output that reaches its maximum length is one of these; an id or a list."""
    exponential_decay_length_penalty: tuple[int, float] | None = None
    """`[start, factor]`: after `start` new tokens, each further token makes end tokens more likely by `factor`."""

    do_sample: bool | None = None
    """Sample tokens at random; false picks the most likely token. Defaults to true if the request sets a sampling
    option."""
    seed: int | None = None
    """The same seed and request give the same tokens where `/info` reports `reproducible`. If omitted or -1, the server
    chooses a random seed and reports it."""
    temperature: float | None = None
    """Divides the logits. 0 picks the most likely token."""
    top_n_sigma: float | None = None
    """Sample from tokens whose logits are within N standard deviations of the largest; 0 disables."""
    top_k: int | None = None
    """Sample from the k most likely tokens; 0 disables."""
    top_p: float | None = None
    """Sample from the smallest set of most likely tokens whose total probability reaches p; 0 keeps only the most
    likely token."""
    min_p: float | None = None
    """Sample from tokens with at least this fraction of the largest probability."""
    typical_p: float | None = None
    """Sample from the tokens closest to the expected information content whose total probability reaches p."""
    epsilon_cutoff: float | None = None
    """Sample from tokens of at least this probability; 0 disables."""
    eta_cutoff: float | None = None
    """Like `epsilon_cutoff`, but lower where the distribution is flat; 0 disables."""
    xtc_probability: float | None = None
    """Probability, for each token, of excluding all but the least likely of the top choices (XTC)."""
    xtc_threshold: float | None = None
    """Minimum probability of a top choice for XTC. Default: 0.1."""

    num_return_sequences: int | None = None
    """Number of outputs: samples, or the best hypotheses of a beam search. If a beam search finds fewer, the last one
    repeats."""
    n: int | None = None
    """Same as `num_return_sequences`."""
    best_of: int | None = None
    """Generate N samples and return the best, by mean log-probability or by `rank_by`."""
    rank_by: RankBy | None = None
    """A served classifier and the label whose score ranks the samples of `best_of`."""
    num_beams: int | None = None
    """Number of beams; above 1 the output is found by beam search."""
    num_beam_groups: int | None = None
    """Number of groups in diverse beam search; it must divide `num_beams`."""
    diversity_penalty: float | None = None
    """Subtracted from a token's score once for each earlier group that chose it in the same step."""
    length_penalty: float | None = None
    """The log-probability of a hypothesis is divided by its length to this power."""
    early_stopping: bool | Literal["never"] | None = None
    """When a beam search ends: `true` once there are enough hypotheses, `false` by a heuristic, `"never"` when no
    better one is possible."""

    repetition_penalty: float | None = None
    """Above 1 makes tokens of the prompt and the output less likely."""
    presence_penalty: float | None = None
    """Subtracted from the logit of each token that occurs in the output."""
    frequency_penalty: float | None = None
    """Subtracted from the logit of each token in the output, once per occurrence."""
    penalty_scope: Literal["prompt", "output", "both"] | int | None = None
    """Tokens that the three penalties count; a number N means the last N tokens. By default each counts what its own
    line says."""
    penalize_template: bool | None = None
    """If false, penalties ignore prompt tokens that come from a template."""
    encoder_repetition_penalty: float | None = None
    """Above 1 makes tokens of the prompt more likely."""
    no_repeat_ngram_size: int | None = None
    """No sequence of N tokens occurs twice; 0 disables."""
    encoder_no_repeat_ngram_size: int | None = None
    """No sequence of N tokens from the prompt occurs in the output; 0 disables."""
    dry_multiplier: float | None = None
    """Penalty on tokens that would extend a repetition (DRY); 0 disables."""
    dry_base: float | None = None
    """Growth factor of the penalty for each token of the repetition. Default: 1.75."""
    dry_allowed_length: int | None = None
    """Repetitions shorter than this are free; one of this length costs the multiplier. Default: 2."""
    dry_range: int | None = None
    """Considers only the last N tokens; 0 (default) considers all."""
    dry_sequence_breakers: tuple[str, ...] | None = None
    """Texts at which a repetition ends. Default: newline, colon, quotation mark and asterisk."""

    logit_bias: dict[str, Bias] | tuple[tuple[int, Bias], ...] | None = None
    """Added to the logits of tokens: an object with ids as strings, or a list of `[id, amount]`. False bans the
    token."""
    sequence_bias: tuple[tuple[Ids, Bias], ...] | None = None
    """`[[ids, amount], ...]`: added to the last token of a sequence when the output ends with the tokens before it."""
    bad_words_ids: tuple[Ids, ...] | None = None
    """Token sequences that never occur in the output."""
    bad_words: tuple[str, ...] | None = None
    """Words that never occur as the tokens they encode to, alone or after a space. To ban a text in any tokenisation,
    use `banned_phrases`."""
    allowed_token_ids: Ids | None = None
    """Only these tokens, and those that end the output, may occur."""
    suppress_tokens: Ids | None = None
    """Tokens that never occur in the output."""
    begin_suppress_tokens: Ids | None = None
    """Tokens that never begin the output or follow a forced first token."""
    renormalize_logits: bool | None = None
    """Normalise log-probabilities in a beam search again after penalties and bans. Sampling always does."""
    guidance_scale: float | None = None
    """Above 1 steers away from `negative_prompt` (classifier-free guidance); 1 disables."""
    negative_prompt: str | None = None
    """The text that guidance steers away from. Default: the last token of the prompt."""

    banned_phrases: tuple[str, ...] | None = None
    """Texts that never occur in the output, in any case and any tokenisation. The output steps back before a phrase and
    continues without it."""
    max_rewinds: int | None = None
    """How often an output may step back before it ends with the finish reason `banned_phrase`. Default: 64."""
    penalties: tuple[Penalty, ...] | None = None
    """`[{"phrase" or "topic", "strength"}]`: the strength is subtracted from the logits of tokens that would produce
    the phrase."""
    grammar: dict[str, Any] | None = None
    """`{"type", "value"}`: the structure of the output (`json`, `regex`, `choice`, `lark`, `json_object`)."""

    details: bool | None = None
    """Return the tokens with their log-probabilities, finish reason, seed and counts."""
    top_n_tokens: int | None = None
    """Return the N most likely tokens at each position."""
    logprob_token_ids: Ids | None = None
    """Return the log-probabilities of these tokens at each position, in `top_tokens` and in this order."""
    decoder_input_details: bool | None = None
    """Return the log-probability of each prompt token."""
    logprobs_mode: Literal["raw", "processed"] | None = None
    """Log-probabilities of the model's own distribution (`raw`), or of the one that is sampled from (`processed`)."""
    return_full_text: bool | None = None
    """Include the prompt in the output."""
    return_parameters: bool | None = None
    """Return every option that had an effect, its value and its source."""

    penalty_alpha: float | None = None
    """Contrastive search is not supported; values above 0 are rejected."""
    adapter_id: str | None = None
    """Rejected: each adapter is served as a model."""
    watermark: bool | None = None
    """Rejected if true."""


_LISTS_OF_ONE: dict[str, type] = {"stop": str, "eos_token_id": int, "forced_eos_token_id": int}
"""Fields where a single value stands for a list of it."""


def from_mapping(values: Mapping[str, Any]) -> GenerateOptions:
    """Plain values as JSON has them, under the client's names. Raises `InvalidParameter` for a wrong name or type."""
    found = {}
    for name, value in values.items():
        if name not in GenerateOptions.__dataclass_fields__:
            raise InvalidParameter(name, value, "is not an option of generation")
        single = _LISTS_OF_ONE.get(name)
        found[name] = [value] if single is not None and type(value) is single else value
    try:
        return msgspec.convert(found, GenerateOptions)
    except msgspec.ValidationError as error:
        name = str(error).rpartition("`$.")[2].partition("`")[0].partition("[")[0].partition(".")[0]
        rule = str(error).partition(" - at ")[0].replace("`", "").replace("Expected", "must be of the type")
        raise InvalidParameter(name, values.get(name), rule) from None
