"""A client's decoding options, the template's, the model's and the server's become one complete `SamplingParams`.

`table` says what can be asked, `ranges` which values, `rules` what goes together, `merge` whose value holds.
Knows no HTTP.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from server.errors import InvalidParameter, UnsupportedParameter, WithoutEffect
from server.length_errors import OutputTooLong, PromptTooLong
from server.protocol import Ready, SamplingParams
from server.sentences import Field, sentence
from server.serving.options import ranges
from server.serving.options.merge import Layered, Origin, check_body, model_defaults, put_together
from server.serving.options.ranges import MAX_SEED, MAX_STOP_STRINGS
from server.serving.options.rules import UNSUPPORTED
from server.serving.options.table import Bias, GenerateOptions, Ids, from_mapping
from server.serving.options.wishes import DRAW, Wishes, is_wish
from server.serving.options.word_ids import bad_word_ids, breaker_ids
from server.text.tokenizer import Tokenizer

__all__ = [
    "MAX_STOP_STRINGS",
    "GenerateOptions",
    "Resolved",
    "check",
    "check_length",
    "choose_seed",
    "model_defaults",
    "prompt_field",
    "resolve",
]

BAN = float("-inf")
LEAST_TOP_P = 1e-30
"""Less than any probability that is not 0: it keeps the most likely token alone."""
HOW_TO_END = sentence("the model has no end token; set {eos_token_id} or {stop_token_ids}")
NO_TOPICS: Mapping[str, Sequence[str]] = {}


@dataclass(frozen=True)
class Resolved:
    """What holds for one prompt."""

    params: SamplingParams
    options: GenerateOptions
    """All that was asked for, by request, template and model together."""
    origins: dict[str, Origin]
    """Where each option that has an effect comes from."""

    def parameters(self) -> dict[str, dict[str, Any]]:
        """Every option that has an effect, for the client: its value and where it comes from."""
        decided: dict[str, Any] = {name: getattr(self.params, name) for name in ("max_new_tokens", "seed", "do_sample")}
        decided["eos_token_id"] = self.params.end_token_ids
        values = {name: decided.get(name, getattr(self.options, name)) for name in self.origins}
        return {name: {"value": value, "origin": self.origins[name]} for name, value in values.items()}


def check(options: GenerateOptions, ready: Ready, *, body: Mapping[str, Any] | None = None) -> None:
    """Raise for the first option that no prompt could make right.

    ``body`` holds the fields beside the parameters, such as ``stream`` and ``template``.
    """
    _check_values(options, ready)
    check_body(body or {})
    # A template's own parameters are not known yet: `resolve` judges all together.
    if "template" not in (body or {}):
        layered = put_together(options, GenerateOptions(), ready, body)
        _check_rows(layered, ready)
        _check_ends(layered, ready)


def _check_values(options: GenerateOptions, ready: Ready) -> None:
    for name, reason in UNSUPPORTED.items():
        if is_wish(name, getattr(options, name)):
            raise UnsupportedParameter(name, reason)
    for problem in ranges.findings(options, ready):
        raise problem


def _check_rows(layered: Layered, ready: Ready) -> None:
    """All of a request's sequences run in one step."""
    wishes = Wishes(layered.values)
    name = max(("num_beams", "best_of", "num_return_sequences"), key=lambda name: int(wishes[name]))
    shown, is_guided = layered.shown(name), wishes.has("guidance_scale")
    num_rows = wishes[name] * (2 if is_guided else 1)
    if num_rows > max(1, ready.max_running):
        twice = ", two for each output ({shown} is {count})" if is_guided else ""
        rule = sentence(
            f"needs {{num_rows}} sequences{twice}, but the server runs at most {{limit}} (max_running)",
            num_rows=num_rows,
            shown=Field(shown),
            count=wishes[name],
            limit=ready.max_running,
        )
        name, shown = ("guidance_scale", "guidance_scale") if is_guided else (name, shown)
        raise InvalidParameter(shown, layered.values[name], rule)


def _check_ends(layered: Layered, ready: Ready) -> None:
    """What raises the chance of the end needs a token that ends the output."""
    wishes, name = Wishes(layered.values), "exponential_decay_length_penalty"
    has_end = wishes["eos_token_id"] or wishes["stop_token_ids"] or _end_token_ids(ready)
    if wishes.has(name) and not has_end:
        if layered.origins[name] != "model":
            raise WithoutEffect(name, "eos_token_id", HOW_TO_END, is_second_sent=False)
        layered.drop(name)


def choose_seed(options: GenerateOptions) -> int:
    return secrets.randbelow(MAX_SEED + 1) if options.seed is None else options.seed


def resolve(
    options: GenerateOptions,
    ready: Ready,
    *,
    num_prompt_tokens: int,
    default_max_new_tokens: int,
    seed: int,
    tokenizer: Tokenizer,
    template_parameters: Mapping[str, Any] | None = None,
    body: Mapping[str, Any] | None = None,
    topics: Mapping[str, Sequence[str]] = NO_TOPICS,
    grammar: str | None = None,
) -> Resolved:
    """What holds for one prompt. ``options`` passed `check`; ``grammar`` is the compiled form of the option's."""
    template = from_mapping(template_parameters or {})
    _check_values(template, ready)
    layered = put_together(options, template, ready, body)
    _check_rows(layered, ready)
    _check_ends(layered, ready)
    wishes = Wishes(layered.values)
    source = prompt_field(body or {})
    max_new_tokens = _max_new_tokens(layered, ready, num_prompt_tokens, default_max_new_tokens, source)
    params = SamplingParams(
        max_new_tokens=max_new_tokens,
        min_new_tokens=_min_new_tokens(layered, max_new_tokens, num_prompt_tokens),
        seed=layered.values.get("seed", seed) % (MAX_SEED + 1),
        grammar=grammar,
        **_by_the_same_name(layered, wishes),
        **_by_another_name(wishes, ready, tokenizer, topics),
    )
    return Resolved(params, GenerateOptions(**layered.values), _effective_origins(layered, wishes, ready))


SAME_NAME = (
    "num_beams",
    "num_beam_groups",
    "diversity_penalty",
    "length_penalty",
    "early_stopping",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "encoder_repetition_penalty",
    "penalty_scope",
    "no_repeat_ngram_size",
    "encoder_no_repeat_ngram_size",
    "dry_multiplier",
    "dry_base",
    "dry_allowed_length",
    "dry_range",
    "allowed_token_ids",
    "suppress_tokens",
    "begin_suppress_tokens",
    "forced_bos_token_id",
    "exponential_decay_length_penalty",
    "renormalize_logits",
    "guidance_scale",
    "max_rewinds",
    "stop_token_ids",
    "ignore_eos",
    "top_n_tokens",
    "logprobs_mode",
)
DRAW_FIELDS = (*DRAW, "xtc_threshold")


def _by_the_same_name(layered: Layered, wishes: Wishes) -> dict[str, Any]:
    names = (*SAME_NAME, *DRAW_FIELDS) if wishes.is_sampling else SAME_NAME
    found = {name: layered.values[name] for name in names if name in layered.values}
    if "top_p" in found:
        found["top_p"] = max(found["top_p"], LEAST_TOP_P)
    # JSON's -0.0 is no value of its own.
    return {name: value + 0.0 if isinstance(value, float) else value for name, value in found.items()}


def _by_another_name(
    wishes: Wishes, ready: Ready, tokenizer: Tokenizer, topics: Mapping[str, Sequence[str]]
) -> dict[str, Any]:
    dry = wishes.has("dry_multiplier")
    banned = (*(wishes["bad_words_ids"] or ()), *bad_word_ids(tokenizer, wishes["bad_words"] or ()))
    return {
        "do_sample": wishes.is_sampling,
        "num_return_sequences": wishes.num_outputs,
        "stop_strings": wishes["stop"] or () if wishes["num_beams"] > 1 else (),
        "end_token_ids": wishes["eos_token_id"] or _end_token_ids(ready),
        "forced_eos_token_ids": wishes["forced_eos_token_id"] or (),
        "dry_breaker_ids": breaker_ids(tokenizer, ready.vocab_size, wishes["dry_sequence_breakers"]) if dry else (),
        "logit_bias": _logit_bias(wishes["logit_bias"] or ()),
        "sequence_bias": _sequence_bias(wishes["sequence_bias"] or (), banned),
        "banned_phrases": tuple(dict.fromkeys(phrase.strip() for phrase in wishes["banned_phrases"] or ())),
        "phrase_penalties": _phrase_penalties(wishes, topics),
        # The samples of best_of are ranked by them.
        "logprobs": wishes["details"] or wishes.has("best_of"),
        "prompt_logprobs": wishes["decoder_input_details"],
        "logprob_token_ids": tuple(dict.fromkeys(wishes["logprob_token_ids"] or ())),
    }


def _end_token_ids(ready: Ready) -> Ids:
    ids = ready.generation_config.get("end_token_ids")
    return tuple(ids) if isinstance(ids, list) else ()


def _amount(bias: Bias) -> float:
    return BAN if bias is False or bias == "-inf" else float(bias)


def _logit_bias(entries: Mapping[str, Bias] | tuple[tuple[int, Bias], ...]) -> dict[int, float]:
    pairs = entries.items() if isinstance(entries, Mapping) else entries
    return {int(token_id): _amount(bias) for token_id, bias in pairs}


def _sequence_bias(entries: tuple[tuple[Ids, Bias], ...], banned: tuple[Ids, ...]) -> tuple[tuple[Ids, float], ...]:
    """Bans come before amounts for the same sequence."""
    found = {ids: _amount(bias) for ids, bias in entries} | dict.fromkeys(banned, BAN)
    return tuple(found.items())


def _phrase_penalties(wishes: Wishes, topics: Mapping[str, Sequence[str]]) -> tuple[tuple[str, float], ...]:
    """A phrase that is named twice, by topics as well, is penalised by the sum."""
    found: dict[str, float] = {}
    for entry in wishes["penalties"] or ():
        if entry.topic is not None and entry.topic not in topics:
            known = ", ".join(sorted(topics)) or "none"
            raise InvalidParameter("penalties", entry.topic, f"is not a topic of this server: {known}")
        for phrase in [entry.phrase] if entry.topic is None else topics[entry.topic]:
            found[phrase.strip()] = found.get(phrase.strip(), 0.0) + entry.strength
    return tuple((phrase, strength) for phrase, strength in found.items() if strength != 0)


def check_length(num_prompt_tokens: int, ready: Ready, source: str, *, is_least: bool = False) -> None:
    """Raise unless the prompt leaves room for a token; ``is_least``: it may be longer. ``source`` is its field."""
    limit = ready.max_model_len - 1
    if num_prompt_tokens > limit:
        advice = sentence("Shorten it, or set {truncate} to keep only its last tokens.")
        raise PromptTooLong(num_prompt_tokens, ready.max_model_len, advice, param=source, is_least=is_least)


def prompt_field(body: Mapping[str, Any]) -> str:
    """The field of the body that the prompt comes from."""
    return next((name for name in ("messages", "template") if body.get(name) is not None), "inputs")


def _max_new_tokens(layered: Layered, ready: Ready, num_prompt_tokens: int, default: int, source: str) -> int:
    check_length(num_prompt_tokens, ready, source)
    room = ready.max_model_len - num_prompt_tokens
    if "max_length" in layered.values:
        if layered.values["max_length"] <= num_prompt_tokens:
            rule = f"must be more than the input's {num_prompt_tokens} tokens"
            raise InvalidParameter("max_length", layered.values["max_length"], rule)
        return int(layered.values["max_length"]) - num_prompt_tokens
    wanted = layered.values.get("max_new_tokens", default)
    if wanted > room and layered.origins.get("max_new_tokens") in ("request", "template"):
        raise OutputTooLong("max_new_tokens", wanted, limit=ready.max_model_len, num_tokens=num_prompt_tokens)
    return int(min(wanted, room))


def _min_new_tokens(layered: Layered, max_new_tokens: int, num_prompt_tokens: int) -> int:
    if "min_length" in layered.values:
        name, wanted = "min_length", max(0, layered.values["min_length"] - num_prompt_tokens)
    else:
        name, wanted = "min_new_tokens", layered.values.get("min_new_tokens", 0)
    if wanted <= max_new_tokens:
        return int(wanted)
    if layered.origins[name] == "model":
        return max_new_tokens
    limit = max_new_tokens if name == "min_new_tokens" else max_new_tokens + num_prompt_tokens
    most = "max_length" if "max_length" in layered.values else "max_new_tokens"
    rule = sentence(
        "must be at most {limit}, for {most} leaves room for {count} new tokens",
        limit=limit,
        most=Field(most),
        count=max_new_tokens,
    )
    raise InvalidParameter(name, layered.values[name], rule)


def _effective_origins(layered: Layered, wishes: Wishes, ready: Ready) -> dict[str, Origin]:
    """Without the options of a draw that does not take place; with what the server decides."""
    skipped = {"n"} if wishes.is_sampling else {"n", *DRAW_FIELDS} - {"temperature"}
    found = {name: origin for name, origin in layered.origins.items() if wishes.has(name) and name not in skipped}
    if not wishes["ignore_eos"] and _end_token_ids(ready):
        found.setdefault("eos_token_id", "model")
    for name in ("max_new_tokens", "seed", "do_sample"):
        if not (name == "max_new_tokens" and "max_length" in layered.origins):
            found[name] = layered.origins.get(name, "server")
    return found
