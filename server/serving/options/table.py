"""Every option of a generation, each in one place: type, documentation, values, neutral value, default and example.

The bodies of requests, the checks, the merge with a template's and a model's defaults, `server/OPTIONS.md` and the
page's settings are made from this table. `rules` says which options do not go together.
"""

from __future__ import annotations

from typing import Any, Literal

from server.serving.options import types
from server.serving.options.entry_ranges import Biases, Decay, Penalties, Sequences, WeightedAdapters
from server.serving.options.option import Form, option, options_of
from server.serving.options.ranges import Characters, Count, Number, Texts, TokenIds
from server.serving.options.types import (
    AdapterWeights,
    Early,
    IdLists,
    Ids,
    IdsOrOne,
    LogitBias,
    PenaltyList,
    RankBy,
    Scope,
    SequenceBiases,
    StartAndFactor,
    TextsOrOne,
)
from server.serving.strict_model import StrictModel

MAX_SEED = 2**63 - 1
MAX_STOP_STRINGS = 16
MAX_OUTPUTS = 8
MAX_TOP_TOKENS = 20
MAX_TOLD_IDS = 128
MAX_TIME_S = 86_400

PART = Number(0, 1, is_low_excluded=True)
CUTOFF = Number(0, 1, is_high_excluded=True)
FACTOR = Number(0.01, 100)


class GenerateOptions(StrictModel):
    """The parameters of one request, template or model; None where it says nothing. Names are the client's.

    A docstring here is the option's line in `server/OPTIONS.md`.
    """

    max_new_tokens: int | None = option(
        Number(1), begins="Length and end", from_model=True, example=6, form=Form("Length", "Max new tokens")
    )
    """Maximum number of new tokens."""
    min_new_tokens: int | None = option(
        Number(0),
        neutral=0,
        from_model=True,
        can_forbid=True,
        example=4,
        beside={"max_new_tokens": 6},
        form=Form("Length", "Min new tokens"),
    )
    """Minimum number of new tokens: end tokens and stop tokens are not chosen before."""
    max_length: int | None = option(Number(1, "max_model_len"), from_model=True, example=16)
    """Maximum number of tokens in prompt and output together. Of an encoder-decoder model, the prompt is the token that
    starts the output, and a default comes from the model."""
    min_length: int | None = option(
        Number(0, "max_model_len"), neutral=0, from_model=True, can_forbid=True, example=12, beside={"max_length": 16}
    )
    """Minimum number of tokens in prompt and output together."""
    max_time: float | None = option(Number(0, MAX_TIME_S, is_low_excluded=True), example=30.0)
    """Time limit in seconds from the arrival of the request. The output ends with the finish reason `max_time`; before
    the first token the status is 504."""
    truncate: int | None = option(Number(1), example=4)
    """Keep only the last N tokens of the prompt, and the special tokens that begin it."""
    stop: TextsOrOne | None = option(
        Texts(MAX_STOP_STRINGS, 256),
        example=["\n\n", "User:"],
        form=Form("Length", "Stop sequences", hint="One per line"),
    )
    """Texts that end the output; a string or a list. The output does not include them."""
    stop_token_ids: Ids | None = option(TokenIds(128), example=[5, 9])
    """Tokens that end the output. The output does not include them."""
    eos_token_id: IdsOrOne | None = option(TokenIds(128, min_ids=1), example=[5])
    """End tokens that replace those of the model; an id or a list."""
    ignore_eos: bool | None = option(neutral=False, example=True, beside={"max_new_tokens": 6})
    """Continue after end tokens."""
    forced_bos_token_id: int | None = option(TokenIds(), from_model=True, can_forbid=True, example=9)
    """The first new token."""
    forced_eos_token_id: IdsOrOne | None = option(
        TokenIds(128, min_ids=1), from_model=True, can_forbid=True, example=5, beside={"max_new_tokens": 6}
    )
    """The last token of an output that reaches its maximum length is one of these; an id or a list."""
    exponential_decay_length_penalty: StartAndFactor | None = option(Decay(), from_model=True, example=[4, 1.2])
    """`[start, factor]`: after `start` new tokens, each further token makes end tokens more likely by `factor`."""

    do_sample: bool | None = option(begins="Sampling", neutral=False, from_model=True, example=True)
    """Sample tokens at random; false picks the most likely token. Defaults to true if the request sets a sampling
    option."""
    temperature: float | None = option(
        Number(0, 100),
        neutral=1.0,
        draw="asks",
        from_model=True,
        example=0.7,
        form=Form("Sampling", "Temperature", step=0.05, hint="0 always picks the most likely token"),
    )
    """Divides the logits. 0 picks the most likely token."""
    top_n_sigma: float | None = option(Number(0, 100), neutral=0.0, draw="asks", example=1.5)
    """Sample from tokens whose logits are within N standard deviations of the largest; 0 disables."""
    top_k: int | None = option(
        Number(0, "vocab_size"),
        neutral=0,
        draw="asks",
        from_model=True,
        example=40,
        form=Form("Sampling", "Top k", hint="Sample from the k most likely tokens"),
    )
    """Sample from the k most likely tokens; 0 disables."""
    top_p: float | None = option(
        Number(0, 1),
        neutral=1.0,
        draw="asks",
        from_model=True,
        example=0.9,
        form=Form("Sampling", "Top p", step=0.01, hint="Most likely tokens up to this total probability"),
    )
    """Sample from the smallest set of most likely tokens whose total probability reaches p; 0 keeps only the most
    likely token."""
    min_p: float | None = option(
        Number(0, 1),
        neutral=0.0,
        draw="asks",
        from_model=True,
        example=0.05,
        form=Form("Sampling", "Min p", step=0.01, hint="Minimum probability, relative to the most likely token"),
    )
    """Sample from tokens with at least this fraction of the largest probability."""
    typical_p: float | None = option(PART, neutral=1.0, draw="asks", from_model=True, example=0.95)
    """Sample from the tokens closest to the expected information content whose total probability reaches p."""
    epsilon_cutoff: float | None = option(CUTOFF, neutral=0.0, draw="asks", from_model=True, example=0.0003)
    """Sample from tokens of at least this probability; 0 disables."""
    eta_cutoff: float | None = option(CUTOFF, neutral=0.0, draw="asks", from_model=True, example=0.0003)
    """Like `epsilon_cutoff`, but lower where the distribution is flat; 0 disables."""
    xtc_probability: float | None = option(Number(0, 1), neutral=0.0, draw="asks", example=0.5)
    """Probability, for each token, of excluding all but the least likely of the top choices (XTC)."""
    xtc_threshold: float | None = option(Number(0, 0.5), draw="refines", example=0.15, beside={"xtc_probability": 0.5})
    """Minimum probability of a top choice for XTC. Default: 0.1."""
    seed: int | None = option(
        Number(-MAX_SEED - 1, MAX_SEED),
        example=7,
        beside={"do_sample": True},
        form=Form("Sampling", "Seed", hint="The same seed gives the same response"),
    )
    """The same seed and request give the same tokens where `/info` reports `reproducible`. If omitted or -1, the server
    chooses a random seed and reports it."""

    num_return_sequences: int | None = option(
        Count(MAX_OUTPUTS),
        begins="Several outputs and beam search",
        neutral=1,
        example=2,
        beside={"do_sample": True},
        form=Form("Beam search", "Outputs", hint="Samples or beams to show", in_chat=False),
    )
    """Number of outputs: samples, or the best hypotheses of a beam search. If a beam search finds fewer, the last one
    repeats."""
    n: int | None = option(Count(MAX_OUTPUTS), neutral=1, example=2, beside={"do_sample": True})
    """Same as `num_return_sequences`."""
    best_of: int | None = option(Count(MAX_OUTPUTS), neutral=1, example=4, beside={"do_sample": True})
    """Generate N samples and return the best, by mean log-probability or by `rank_by`."""
    rank_by: RankBy | None = option(
        example={"model": "sentiment", "label": "POSITIVE"}, beside={"best_of": 4, "do_sample": True}
    )
    """A served classifier and the label whose score ranks the samples of `best_of`."""
    num_beams: int | None = option(
        Count("max_running"),
        neutral=1,
        from_model=True,
        example=4,
        form=Form("Beam search", "Beams", hint="Above 1: beam search"),
    )
    """Number of beams; above 1 the output is found by beam search."""
    num_beam_groups: int | None = option(
        Count("max_running"),
        neutral=1,
        example=2,
        beside={"num_beams": 4, "diversity_penalty": 0.5},
        form=Form("Beam search", "Beam groups", hint="Requires a diversity penalty"),
    )
    """Number of groups in diverse beam search; it must divide `num_beams`."""
    diversity_penalty: float | None = option(
        Number(0, 100),
        neutral=0.0,
        example=0.5,
        beside={"num_beams": 4, "num_beam_groups": 2},
        form=Form("Beam search", "Diversity penalty", step=0.1),
    )
    """Subtracted from a token's score once for each earlier group that chose it in the same step."""
    length_penalty: float | None = option(
        Number(-5, 5),
        neutral=1.0,
        from_model=True,
        example=0.8,
        beside={"num_beams": 4},
        form=Form("Beam search", "Length penalty", step=0.1, hint="Above 0 favours long responses"),
    )
    """The log-probability of a hypothesis is divided by its length to this power."""
    early_stopping: Early | None = option(
        neutral=False,
        from_model=True,
        example="never",
        beside={"num_beams": 4},
        form=Form("Beam search", "Early stopping", choices=((True, "yes"), (False, "heuristic"), ("never", "never"))),
    )
    """When a beam search ends: `true` once there are enough hypotheses, `false` by a heuristic, `"never"` when no
    better one is possible."""

    repetition_penalty: float | None = option(
        FACTOR,
        begins="Penalties",
        neutral=1.0,
        from_model=True,
        example=1.2,
        form=Form("Repetition", "Repetition penalty", step=0.05, hint="Above 1 discourages repetition"),
    )
    """Above 1 makes tokens of the prompt and the output less likely."""
    presence_penalty: float | None = option(
        Number(-2, 2), neutral=0.0, example=0.5, form=Form("Repetition", "Presence penalty", step=0.1)
    )
    """Subtracted from the logit of each token that occurs in the output."""
    frequency_penalty: float | None = option(
        Number(-2, 2), neutral=0.0, example=0.5, form=Form("Repetition", "Frequency penalty", step=0.1)
    )
    """Subtracted from the logit of each token in the output, once per occurrence."""
    penalty_scope: Scope | None = option(Count("max_model_len"), example="output", beside={"repetition_penalty": 1.2})
    """Tokens that the three penalties count; a number N means the last N tokens. By default each counts what its own
    line says."""
    penalize_template: bool | None = option(
        neutral=True,
        example=False,
        beside={"repetition_penalty": 1.2},
        body={"template": "summary", "variables": {"text": "The mill runs."}},
    )
    """If false, penalties ignore prompt tokens that come from a template. Encoder-decoder models do not support it:
    their penalties count the tokens of the output alone."""
    encoder_repetition_penalty: float | None = option(FACTOR, neutral=1.0, from_model=True, example=1.2)
    """Above 1 makes tokens of the prompt, or of the text that an encoder reads, more likely."""
    no_repeat_ngram_size: int | None = option(
        Count("max_model_len", low=0),
        neutral=0,
        from_model=True,
        can_forbid=True,
        example=3,
        form=Form("Repetition", "No-repeat n-gram size", hint="N tokens in a row never repeat"),
    )
    """No sequence of N tokens occurs twice; 0 disables."""
    encoder_no_repeat_ngram_size: int | None = option(
        Count("max_model_len", low=0), neutral=0, from_model=True, can_forbid=True, example=3
    )
    """No sequence of N tokens from the prompt, or from the text that an encoder reads, occurs in the output; 0
    disables."""
    dry_multiplier: float | None = option(Number(0, 100), neutral=0.0, example=0.8)
    """Penalty on tokens that would extend a repetition (DRY); 0 disables."""
    dry_base: float | None = option(Number(1, 10), example=1.5, beside={"dry_multiplier": 0.8})
    """Growth factor of the penalty for each token of the repetition. Default: 1.75."""
    dry_allowed_length: int | None = option(Count("max_model_len"), example=3, beside={"dry_multiplier": 0.8})
    """Repetitions shorter than this are free; one of this length costs the multiplier. Default: 2."""
    dry_range: int | None = option(Count("max_model_len", low=0), example=64, beside={"dry_multiplier": 0.8})
    """Considers only the last N tokens; 0 (default) considers all."""
    dry_sequence_breakers: types.Texts | None = option(Texts(16, 64), example=["."], beside={"dry_multiplier": 0.8})
    """Texts at which a repetition ends. Default: newline, colon, quotation mark and asterisk."""

    logit_bias: LogitBias | None = option(
        Biases(300), begins="Token biases, bans and guidance", can_forbid=True, example={"9": 5, "11": False}
    )
    """Added to the logits of tokens: an object with ids as strings, or a list of `[id, amount]`. False bans the
    token."""
    sequence_bias: SequenceBiases | None = option(
        Sequences(128, 32, has_bias=True), from_model=True, can_forbid=True, example=[[[9, 11], -5]]
    )
    """`[[ids, amount], ...]`: added to the last token of a sequence when the output ends with the tokens before it."""
    bad_words_ids: IdLists | None = option(
        Sequences(128, 32, has_bias=False), from_model=True, can_forbid=True, example=[[9, 11]]
    )
    """Token sequences that never occur in the output."""
    bad_words: types.Texts | None = option(Texts(64, 256, is_stripped=True), can_forbid=True, example=["mill"])
    """Words that never occur as the tokens they encode to, alone or after a space. To ban a text in any tokenisation,
    use `banned_phrases`."""
    allowed_token_ids: Ids | None = option(TokenIds("vocab_size", min_ids=1), can_forbid=True, example=[67, 69, 73])
    """Only these tokens, and those that end the output, may occur."""
    suppress_tokens: Ids | None = option(TokenIds("vocab_size"), from_model=True, can_forbid=True, example=[9, 11])
    """Tokens that never occur in the output."""
    begin_suppress_tokens: Ids | None = option(TokenIds("vocab_size"), from_model=True, can_forbid=True, example=[9])
    """Tokens that never begin the output or follow a forced first token."""
    renormalize_logits: bool | None = option(neutral=False, from_model=True, example=True, beside={"num_beams": 4})
    """Normalise log-probabilities in a beam search again after penalties and bans. Sampling always does."""
    guidance_scale: float | None = option(Number(0, 100), neutral=1.0, from_model=True, example=1.5)
    """Above 1 steers away from `negative_prompt` (classifier-free guidance); 1 disables. Encoder-decoder models do not
    support guidance."""
    negative_prompt: str | None = option(
        Characters(100_000), example="A dull text:", beside={"guidance_scale": 1.5, "max_new_tokens": 6}
    )
    """The text that guidance steers away from. Default: the last token of the prompt."""

    banned_phrases: types.Texts | None = option(
        Texts(64, 256, is_stripped=True),
        begins="Text and structure",
        can_forbid=True,
        example=["old mill", "风车"],
        form=Form("Constraints", "Banned phrases", hint="One per line; they never appear"),
    )
    """Texts that never occur in the output, in any case and any tokenisation. The output steps back before a phrase and
    continues without it."""
    max_rewinds: int | None = option(Number(0, 1000), example=8, beside={"banned_phrases": ["old mill"]})
    """How often an output may step back before it ends with the finish reason `banned_phrase`. Default: 64."""
    penalties: PenaltyList | None = option(Penalties(64, 256), example=[{"phrase": "the mill", "strength": 4}])
    """`[{"phrase" or "topic", "strength"}]`: the strength is subtracted from the logits of tokens that would produce
    the phrase."""
    grammar: dict[str, Any] | None = option(
        can_forbid=True,
        example={"type": "regex", "value": "[a-z ]+"},
        form=Form("Constraints", "Grammar", hint="Structure of the response"),
    )
    """`{"type", "value"}`: the structure of the output (`json`, `regex`, `choice`, `lark`, `json_object`)."""

    details: bool | None = option(begins="Contents of the response", neutral=False, example=True)
    """Return the tokens with their log-probabilities, finish reason, seed and counts."""
    top_n_tokens: int | None = option(Number(0, MAX_TOP_TOKENS), neutral=0, example=3, beside={"details": True})
    """Return the N most likely tokens at each position."""
    logprob_token_ids: Ids | None = option(TokenIds(MAX_TOLD_IDS), example=[9, 11], beside={"details": True})
    """Return the log-probabilities of these tokens at each position, in `top_tokens` and in this order."""
    decoder_input_details: bool | None = option(neutral=False, example=True, beside={"details": True})
    """Return the log-probability of each prompt token. Encoder-decoder models do not support it: the output does not
    continue the input."""
    logprobs_mode: Literal["raw", "processed"] | None = option(
        neutral="raw", example="processed", beside={"details": True}
    )
    """Log-probabilities of the model's own distribution (`raw`), or of the one that is sampled from (`processed`)."""
    return_full_text: bool | None = option(neutral=False, example=True)
    """Include the prompt in the output. Encoder-decoder models do not support it: the output does not continue the
    input."""
    return_parameters: bool | None = option(neutral=False, example=True, beside={"details": True})
    """Return every option that had an effect, its value and its source."""
    adapter_id: str | None = option(
        unsupported="name the adapter in model, where it is served as a model of its own", is_read_by_route=True
    )
    """The name of a served adapter of the request's `model`, on `/generate` and the other paths of Text Generation
    Inference. Naming the adapter in `model` means the same, and all other routes require it."""
    adapters: AdapterWeights | None = option(
        WeightedAdapters(8, 10),
        unsupported="only models that generate text and their LoRA adapters can be added",
        is_read_by_route=True,
    )
    """`[{"name", "weight"}]`: adapters of the request's `model`, the sum of whose changes is applied. LoRA adapters add
    up; DoRA, IA3 and virtual tokens do not. Default weight: 1."""

    penalty_alpha: float | None = option(
        Number(0, 1),
        begins="Not supported",
        neutral=0.0,
        unsupported="contrastive search is not supported; leave it out",
    )
    """Contrastive search is not supported; values above 0 are rejected."""
    watermark: bool | None = option(neutral=False, unsupported="watermarks are not supported; leave it out")
    """Rejected if true."""


OPTIONS = options_of(GenerateOptions)
