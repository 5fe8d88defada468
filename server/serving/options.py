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
    """Most new tokens."""
    min_new_tokens: int | None = None
    """Before so many new tokens no end token and no stop token is chosen."""
    max_length: int | None = None
    """Most tokens of prompt and output together."""
    min_length: int | None = None
    """Fewest tokens of prompt and output together."""
    max_time: float | None = None
    """Seconds for the request, from its arrival; the output ends as `max_time`. Status 504 before the first token."""
    truncate: int | None = None
    """Keep only so many tokens of the prompt: its last ones, after the special tokens that begin it."""
    stop: tuple[str, ...] | None = None
    """Texts that end the output, which is cut before them; a string or a list."""
    stop_token_ids: Ids | None = None
    """Tokens that end the output, which is cut before them."""
    eos_token_id: Ids | None = None
    """End tokens in place of the model's own; an id or a list."""
    ignore_eos: bool | None = None
    """End tokens end nothing."""
    forced_bos_token_id: int | None = None
    """The first new token."""
    forced_eos_token_id: Ids | None = None
    """One of these is the last token of an output that reaches its greatest length; an id or a list."""
    exponential_decay_length_penalty: tuple[int, float] | None = None
    """`[start, factor]`: from so many new tokens on, end tokens grow more likely by the factor with each."""

    do_sample: bool | None = None
    """Draw tokens at random; false takes the most likely one. Any option of the draw that is given means true."""
    seed: int | None = None
    """The same seed and request give the same tokens where `reproducible` in `/info` is true, as with `deterministic`.
    If omitted or -1, a random seed is chosen and reported."""
    temperature: float | None = None
    """Logits are divided by it; 0 takes the most likely token."""
    top_n_sigma: float | None = None
    """Keep logits within so many standard deviations of the greatest; 0 keeps all."""
    top_k: int | None = None
    """Keep the so many most likely tokens; 0 keeps all."""
    top_p: float | None = None
    """Keep the most likely tokens that have this probability together; 0 keeps the most likely one."""
    min_p: float | None = None
    """Keep tokens of at least this part of the greatest probability."""
    typical_p: float | None = None
    """Keep the tokens nearest to the expected information that have this probability together."""
    epsilon_cutoff: float | None = None
    """Keep tokens of at least this probability; 0 keeps all."""
    eta_cutoff: float | None = None
    """Like `epsilon_cutoff`, lower where the distribution is flat; 0 keeps all."""
    xtc_probability: float | None = None
    """How often the likeliest tokens but one are excluded (XTC)."""
    xtc_threshold: float | None = None
    """The probability from which a token is among the likeliest for XTC; 0.1 where it is left out."""

    num_return_sequences: int | None = None
    """How many outputs: samples, or the best hypotheses of a beam search; of too few, the last again."""
    n: int | None = None
    """Another name of `num_return_sequences`."""
    best_of: int | None = None
    """Draw so many samples and answer the best: by mean log-probability, or by `rank_by`."""
    rank_by: RankBy | None = None
    """A served classifier and the label whose score ranks the samples of `best_of`."""
    num_beams: int | None = None
    """Above 1: beam search with so many beams."""
    num_beam_groups: int | None = None
    """Above 1: diverse beam search in so many groups, a divisor of `num_beams`."""
    diversity_penalty: float | None = None
    """Taken from the score of a token once for each earlier group that chose it in the step."""
    length_penalty: float | None = None
    """A hypothesis' log-probability is divided by its length to this power."""
    early_stopping: bool | Literal["never"] | None = None
    """A beam search ends: `true` with enough hypotheses, `false` by a rule of thumb, `"never"` when none can win."""

    repetition_penalty: float | None = None
    """Above 1 makes the tokens of prompt and output less likely."""
    presence_penalty: float | None = None
    """Taken once from the logit of each token of the output."""
    frequency_penalty: float | None = None
    """Taken from the logit of each token of the output as often as it occurs."""
    penalty_scope: Literal["prompt", "output", "both"] | int | None = None
    """What the three penalties count, a number being so many last tokens; else as described with each."""
    penalize_template: bool | None = None
    """False: penalties do not count tokens of the prompt that come from a template."""
    encoder_repetition_penalty: float | None = None
    """Above 1 makes the tokens of the prompt more likely."""
    no_repeat_ngram_size: int | None = None
    """No run of so many tokens occurs twice; 0 is none."""
    encoder_no_repeat_ngram_size: int | None = None
    """No run of so many tokens of the prompt occurs in the output; 0 is none."""
    dry_multiplier: float | None = None
    """Penalty on tokens that prolong a repetition (DRY); 0 is none."""
    dry_base: float | None = None
    """The penalty grows by this factor with each token of the repetition; 1.75 where it is left out."""
    dry_allowed_length: int | None = None
    """A repetition of so many tokens costs the multiplier, a shorter one nothing; 2 where it is left out."""
    dry_range: int | None = None
    """Looks at so many last tokens; 0, or left out, at all."""
    dry_sequence_breakers: tuple[str, ...] | None = None
    """Texts that a repetition does not reach across; a line end, colon, quotation mark and asterisk where left out."""

    logit_bias: dict[str, Bias] | tuple[tuple[int, Bias], ...] | None = None
    """Added to the logits of tokens: an object of ids as strings, or a list of `[id, amount]`. False bans."""
    sequence_bias: tuple[tuple[Ids, Bias], ...] | None = None
    """`[[ids, amount], ...]`: added to the last token of a token sequence once those before it are there."""
    bad_words_ids: tuple[Ids, ...] | None = None
    """Token sequences that never occur in the output."""
    bad_words: tuple[str, ...] | None = None
    """Words banned as the tokens that they are made of, alone and after a space; `banned_phrases` bans the text."""
    allowed_token_ids: Ids | None = None
    """No other token, but for those that end the output."""
    suppress_tokens: Ids | None = None
    """Tokens that never occur in the output."""
    begin_suppress_tokens: Ids | None = None
    """Tokens that do not begin the output, nor follow a forced first token."""
    renormalize_logits: bool | None = None
    """Beams add log-probabilities that sum to 1 again after penalties and bans; a draw always does."""
    guidance_scale: float | None = None
    """Above 1 leads away from `negative_prompt` (classifier-free guidance); 1 is none."""
    negative_prompt: str | None = None
    """What guidance leads away from; the prompt's last token where it is left out."""

    banned_phrases: tuple[str, ...] | None = None
    """Texts that never occur in the output, in no case and however tokenised; the output goes back to before one."""
    max_rewinds: int | None = None
    """How often an output may go back; after that it ends as `banned_phrase`. 64 where it is left out."""
    penalties: tuple[Penalty, ...] | None = None
    """`[{"phrase" or "topic", "strength"}]`: the strength is taken from the logits of tokens that make the phrase."""
    grammar: dict[str, Any] | None = None
    """`{"type", "value"}`: the output has this structure (`json`, `regex`, `choice`, `lark`, `json_object`)."""

    details: bool | None = None
    """Tell the tokens with their log-probabilities, finish reason, seed and counts."""
    top_n_tokens: int | None = None
    """Tell so many of the most likely tokens at each place."""
    logprob_token_ids: Ids | None = None
    """Tell the log-probabilities of these tokens at each place, in `top_tokens` and in this order."""
    decoder_input_details: bool | None = None
    """Tell the log-probability of each token of the prompt."""
    logprobs_mode: Literal["raw", "processed"] | None = None
    """Log-probabilities of the model's own distribution, or of the one that is drawn from."""
    return_full_text: bool | None = None
    """The answer begins with the prompt."""
    return_parameters: bool | None = None
    """Tell every option that had an effect, its value and where it came from."""

    penalty_alpha: float | None = None
    """Contrastive search: refused above 0."""
    adapter_id: str | None = None
    """Refused: an adapter is served as a model of its own."""
    watermark: bool | None = None
    """Refused if true."""


_LISTS_OF_ONE: dict[str, type] = {"stop": str, "eos_token_id": int, "forced_eos_token_id": int}
"""Fields where a single value stands for a list of it."""


def from_mapping(values: Mapping[str, Any]) -> GenerateOptions:
    """Plain values as JSON has them, under the client's names. Raises `InvalidParameter` for a wrong name or type."""
    found = {}
    for name, value in values.items():
        if name not in GenerateOptions.__dataclass_fields__:
            raise InvalidParameter(name, value, "is no option of a generation")
        single = _LISTS_OF_ONE.get(name)
        found[name] = [value] if single is not None and type(value) is single else value
    try:
        return msgspec.convert(found, GenerateOptions)
    except msgspec.ValidationError as error:
        name = str(error).rpartition("`$.")[2].partition("`")[0].partition("[")[0].partition(".")[0]
        rule = str(error).partition(" - at ")[0].replace("`", "").replace("Expected", "must be of the type")
        raise InvalidParameter(name, values.get(name), rule) from None
