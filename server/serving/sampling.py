"""A client's decoding options, the model's own and the server's become one complete `SamplingParams`.

Knows the ranges and the rules between options; knows neither HTTP nor text.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from server.errors import ConflictingParameters, InvalidParameter, PromptTooLong
from server.protocol import Ready, SamplingParams

MAX_STOP_STRINGS = 8
MAX_STOP_CHARACTERS = 256
MAX_STOP_TOKENS = 128
MAX_SEED = 2**63 - 1
GREEDY_BELOW = 1e-5
"""A lower temperature leaves all probability on the most likely token: it is the same as 0."""

SAMPLING_FIELDS = ("temperature", "top_k", "top_p", "min_p", "typical_p")


@dataclass(frozen=True, kw_only=True)
class GenerateOptions:
    """What a client asked for; None where it said nothing. Names are those of `SamplingParams`."""

    max_new_tokens: int | None = None
    min_new_tokens: int | None = None
    do_sample: bool | None = None
    temperature: float | None = None
    """0 takes the most likely token."""
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    typical_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    """Texts that end the output, which is cut before them."""
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool | None = None
    truncate: int | None = None
    """Keep only so many tokens of the prompt: its last ones, after the special tokens that begin it."""
    logprobs: bool = False


@dataclass(frozen=True)
class _Range:
    rule: str
    holds: Callable[[float], bool]


_RANGES = {
    "max_new_tokens": _Range("must be at least 1", lambda v: v >= 1),
    "min_new_tokens": _Range("must be at least 0", lambda v: v >= 0),
    "temperature": _Range("must be from 0 to 100", lambda v: 0 <= v <= 100),
    "top_k": _Range("must be at least 0", lambda v: v >= 0),
    "top_p": _Range("must be greater than 0 and at most 1", lambda v: 0 < v <= 1),
    "min_p": _Range("must be from 0 to 1", lambda v: 0 <= v <= 1),
    "typical_p": _Range("must be greater than 0 and at most 1", lambda v: 0 < v <= 1),
    "repetition_penalty": _Range("must be from 0.01 to 100", lambda v: 0.01 <= v <= 100),
    "presence_penalty": _Range("must be from -2 to 2", lambda v: -2 <= v <= 2),
    "frequency_penalty": _Range("must be from -2 to 2", lambda v: -2 <= v <= 2),
    "seed": _Range(f"must be from 0 to {MAX_SEED}", lambda v: 0 <= v <= MAX_SEED),
    "truncate": _Range("must be at least 1", lambda v: v >= 1),
}


def check(options: GenerateOptions, vocab_size: int) -> None:
    """Raise for the first option that no prompt could make right."""
    for name, range_ in _RANGES.items():
        value = getattr(options, name)
        if value is not None and not range_.holds(value):
            raise InvalidParameter(name, value, range_.rule)
    if options.top_k is not None and options.top_k > vocab_size:
        raise InvalidParameter("top_k", options.top_k, f"must be at most the size of the vocabulary, {vocab_size}")
    _check_stops(options, vocab_size)
    _check_sampling(options)


def _check_stops(options: GenerateOptions, vocab_size: int) -> None:
    if len(options.stop) > MAX_STOP_STRINGS:
        raise InvalidParameter("stop", list(options.stop), f"must hold at most {MAX_STOP_STRINGS} strings")
    for string in options.stop:
        if not 1 <= len(string) <= MAX_STOP_CHARACTERS:
            raise InvalidParameter("stop", string, f"must hold strings of 1 to {MAX_STOP_CHARACTERS} characters")
    if len(options.stop_token_ids) > MAX_STOP_TOKENS:
        raise InvalidParameter(
            "stop_token_ids", list(options.stop_token_ids), f"must hold at most {MAX_STOP_TOKENS} ids"
        )
    for token_id in options.stop_token_ids:
        if not 0 <= token_id < vocab_size:
            raise InvalidParameter("stop_token_ids", token_id, f"must hold token ids from 0 to {vocab_size - 1}")


def _check_sampling(options: GenerateOptions) -> None:
    if options.do_sample is False:
        for name in SAMPLING_FIELDS:
            value = getattr(options, name)
            if value is not None and value != _NEUTRAL[name] and not (name == "temperature" and value == 0):
                raise ConflictingParameters(
                    name, "do_sample", f"{name} {value!r} is for sampling and do_sample is false"
                )
    if options.do_sample and options.temperature == 0:
        raise ConflictingParameters("temperature", "do_sample", "temperature 0 is greedy and do_sample is true")


_NEUTRAL: dict[str, float] = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "typical_p": 1.0}


def resolve(
    options: GenerateOptions, ready: Ready, *, num_prompt_tokens: int, default_max_new_tokens: int, seed: int
) -> SamplingParams:
    """The complete parameters for one prompt. ``options`` passed `check`.

    The request comes before the model's generation_config, and that before the server's default.
    """
    model = {name: value for name, value in ready.generation_config.items() if value is not None}
    max_new_tokens = _max_new_tokens(options, model, ready.max_model_len, num_prompt_tokens, default_max_new_tokens)
    min_new_tokens = _min_new_tokens(options, model, max_new_tokens)
    chosen = {
        name: _first(getattr(options, name), model.get(name))
        for name in ("repetition_penalty", "presence_penalty", "frequency_penalty", "ignore_eos")
    }
    return SamplingParams(
        max_new_tokens=max_new_tokens,
        min_new_tokens=min_new_tokens,
        seed=seed,
        end_token_ids=tuple(model.get("end_token_ids", ())),  # type: ignore[arg-type]
        stop_token_ids=options.stop_token_ids,
        logprobs=options.logprobs,
        **{name: value for name, value in chosen.items() if value is not None},
        **_sampling(options, model, ready.vocab_size),
    )


def choose_seed(options: GenerateOptions) -> int:
    return secrets.randbelow(MAX_SEED + 1) if options.seed is None else options.seed


def _first(*values: Any) -> Any:
    return next((value for value in values if value is not None), None)


def _max_new_tokens(
    options: GenerateOptions, model: dict[str, Any], max_model_len: int, num_prompt_tokens: int, default: int
) -> int:
    room = max_model_len - num_prompt_tokens
    if room < 1:
        advice = "Shorten it, or set truncate to the number of its last tokens that count."
        raise PromptTooLong(num_prompt_tokens, max_model_len - 1, advice)
    if options.max_new_tokens is None:
        return min(int(model.get("max_new_tokens", default)), room)
    if options.max_new_tokens > room:
        rule = f"must be at most {room}: the model takes {max_model_len} tokens and the input has {num_prompt_tokens}"
        raise InvalidParameter("max_new_tokens", options.max_new_tokens, rule)
    return options.max_new_tokens


def _min_new_tokens(options: GenerateOptions, model: dict[str, Any], max_new_tokens: int) -> int:
    if options.min_new_tokens is None:
        return min(int(model.get("min_new_tokens", 0)), max_new_tokens)
    if options.min_new_tokens > max_new_tokens:
        rule = f"must be at most max_new_tokens, {max_new_tokens}"
        raise InvalidParameter("min_new_tokens", options.min_new_tokens, rule)
    return options.min_new_tokens


def _sampling(options: GenerateOptions, model: dict[str, Any], vocab_size: int) -> dict[str, Any]:
    """``do_sample`` and, if it is true, the fields that shape the draw."""
    given = {name: _first(getattr(options, name), model.get(name)) for name in SAMPLING_FIELDS}
    values = {name: _NEUTRAL[name] if value is None else value for name, value in given.items()}
    # Whoever names a temperature or a cut wants to sample: with transformers' rule it would be accepted and ignored.
    asked = any(getattr(options, name) is not None for name in SAMPLING_FIELDS)
    do_sample = _first(options.do_sample, True if asked else None, model.get("do_sample"), False)
    if not do_sample or values["temperature"] < GREEDY_BELOW:
        return {"do_sample": False}
    return {"do_sample": True, **values, "top_k": min(int(values["top_k"]), vocab_size)}
