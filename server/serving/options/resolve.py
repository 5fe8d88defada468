"""A request's options become complete `SamplingParams`, for each of its prompts. Knows no HTTP.

`table` says what can be asked, `rules` what goes together, `merge` whose value holds.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from server.errors import InvalidParameter
from server.length_errors import OutputTooLong, PromptTooLong
from server.protocol import Ready, SamplingParams
from server.sentences import Field, sentence
from server.serving.options.merge import Merged, Origin, end_token_ids
from server.serving.options.table import MAX_SEED, OPTIONS
from server.serving.options.types import Bias, Ids
from server.serving.options.values import OptionValues
from server.serving.options.word_ids import bad_word_ids, breaker_ids
from server.text.tokenizer import Tokenizer

BAN = float("-inf")
LEAST_TOP_P = 1e-30
"""Less than any probability that is not 0: it keeps the most likely token alone."""
NO_TOPICS: Mapping[str, Sequence[str]] = {}


@dataclass(frozen=True)
class Resolved:
    """What holds for one request: all but the lengths, which each prompt leaves its own room for."""

    merged: Merged
    ready: Ready
    chosen: Mapping[str, Any]
    """The fields of `SamplingParams` but its lengths."""
    origins: Mapping[str, Origin]
    """Where each option that has an effect comes from."""
    default_max_new_tokens: int
    source: str
    """The field of the body that the prompts come from."""

    def params(self, num_prompt_tokens: int) -> SamplingParams:
        """For a prompt of so many tokens."""
        max_new_tokens = self._max_new_tokens(num_prompt_tokens)
        min_new_tokens = _min_new_tokens(self.merged, max_new_tokens, num_prompt_tokens)
        return SamplingParams(max_new_tokens=max_new_tokens, min_new_tokens=min_new_tokens, **self.chosen)

    def parameters(self, params: SamplingParams) -> dict[str, dict[str, Any]]:
        """Every option that has an effect, for the client: its value and where it comes from."""
        decided: dict[str, Any] = {name: getattr(params, name) for name in ("max_new_tokens", "seed", "do_sample")}
        decided["eos_token_id"] = params.end_token_ids
        values = {name: decided.get(name, _plain(self.merged.values.get(name))) for name in self.origins}
        return {name: {"value": value, "origin": self.origins[name]} for name, value in values.items()}

    def _max_new_tokens(self, num_prompt_tokens: int) -> int:
        merged, limit = self.merged, self.ready.max_model_len
        check_length(num_prompt_tokens, self.ready, self.source)
        room = limit - num_prompt_tokens
        if merged.origins.get("max_length") == "model":
            return max(1, min(int(merged.values["max_length"]) - num_prompt_tokens, room))
        if "max_length" in merged.values:
            if merged.values["max_length"] <= num_prompt_tokens:
                rule = f"must be more than the input's {num_prompt_tokens} tokens"
                raise InvalidParameter("max_length", merged.values["max_length"], rule)
            return int(merged.values["max_length"]) - num_prompt_tokens
        wanted = merged.values.get("max_new_tokens", self.default_max_new_tokens)
        if wanted > room and merged.origins.get("max_new_tokens") in ("request", "template"):
            raise OutputTooLong("max_new_tokens", wanted, limit=limit, num_tokens=num_prompt_tokens)
        return int(min(wanted, room))


def _plain(value: Any) -> Any:
    """Without our classes, and without fields that nobody set."""
    if isinstance(value, tuple):
        return [_plain(entry) for entry in value]
    return value.model_dump(exclude_none=True) if isinstance(value, BaseModel) else value


def random_seed() -> int:
    return secrets.randbelow(MAX_SEED + 1)


def resolve(
    merged: Merged,
    ready: Ready,
    *,
    default_max_new_tokens: int,
    seed: int,
    tokenizer: Tokenizer,
    topics: Mapping[str, Sequence[str]] = NO_TOPICS,
    grammar: str | None = None,
    source: str = "inputs",
) -> Resolved:
    """All that is not about lengths. Slow where options are words. Raises `InvalidParameter`.

    ``seed`` holds where no other is set; ``grammar`` is the compiled form of the option's.
    """
    asked = OptionValues(merged.values)
    chosen = {
        **_by_the_same_name(merged, asked),
        **_by_another_name(asked, ready, tokenizer, topics),
        "seed": merged.values.get("seed", seed) % (MAX_SEED + 1),
        "grammar": grammar,
    }
    origins = _effective_origins(merged, asked, ready)
    return Resolved(merged, ready, chosen, origins, default_max_new_tokens, source)


LENGTHS = ("max_new_tokens", "min_new_tokens")
SAME_NAME = tuple(name for name in SamplingParams.__struct_fields__ if name in OPTIONS and name not in LENGTHS)
OF_THE_DRAW = tuple(name for name, option in OPTIONS.items() if option.draw is not None)


def _by_the_same_name(merged: Merged, asked: OptionValues) -> dict[str, Any]:
    """Options that `SamplingParams` has too; the next function overrides those that have another shape there."""
    skipped = () if asked.is_sampling else OF_THE_DRAW
    found = {name: merged.values[name] for name in SAME_NAME if name in merged.values and name not in skipped}
    if "top_p" in found:
        found["top_p"] = max(found["top_p"], LEAST_TOP_P)
    # JSON's -0.0 is no value of its own.
    return {name: value + 0.0 if isinstance(value, float) else value for name, value in found.items()}


def _by_another_name(
    asked: OptionValues, ready: Ready, tokenizer: Tokenizer, topics: Mapping[str, Sequence[str]]
) -> dict[str, Any]:
    dry = asked.has("dry_multiplier")
    banned = (*(asked["bad_words_ids"] or ()), *bad_word_ids(tokenizer, asked["bad_words"] or ()))
    return {
        "do_sample": asked.is_sampling,
        "num_return_sequences": asked.num_outputs,
        "stop_strings": asked["stop"] or () if asked["num_beams"] > 1 else (),
        "end_token_ids": asked["eos_token_id"] or end_token_ids(ready),
        "forced_eos_token_ids": asked["forced_eos_token_id"] or (),
        "dry_breaker_ids": breaker_ids(tokenizer, ready.vocab_size, asked["dry_sequence_breakers"]) if dry else (),
        "logit_bias": _logit_bias(asked["logit_bias"] or ()),
        "sequence_bias": _sequence_bias(asked["sequence_bias"] or (), banned),
        "banned_phrases": tuple(dict.fromkeys(phrase.strip() for phrase in asked["banned_phrases"] or ())),
        "phrase_penalties": _phrase_penalties(asked, topics),
        # The samples of best_of are ranked by them.
        "logprobs": asked["details"] or asked.has("best_of"),
        "prompt_logprobs": asked["decoder_input_details"],
        "logprob_token_ids": tuple(dict.fromkeys(asked["logprob_token_ids"] or ())),
    }


def _amount(bias: Bias) -> float:
    return BAN if bias is False or bias == "-inf" else float(bias)


def _logit_bias(entries: Mapping[str, Bias] | tuple[tuple[int, Bias], ...]) -> dict[int, float]:
    pairs = entries.items() if isinstance(entries, Mapping) else entries
    return {int(token_id): _amount(bias) for token_id, bias in pairs}


def _sequence_bias(entries: tuple[tuple[Ids, Bias], ...], banned: tuple[Ids, ...]) -> tuple[tuple[Ids, float], ...]:
    """Bans come before amounts for the same sequence."""
    found = {ids: _amount(bias) for ids, bias in entries} | dict.fromkeys(banned, BAN)
    return tuple(found.items())


def _phrase_penalties(asked: OptionValues, topics: Mapping[str, Sequence[str]]) -> tuple[tuple[str, float], ...]:
    """A phrase that is named twice, by topics as well, is penalised by the sum."""
    found: dict[str, float] = {}
    for entry in asked["penalties"] or ():
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


def _min_new_tokens(merged: Merged, max_new_tokens: int, num_prompt_tokens: int) -> int:
    if "min_length" in merged.values:
        name, wanted = "min_length", max(0, merged.values["min_length"] - num_prompt_tokens)
    else:
        name, wanted = "min_new_tokens", merged.values.get("min_new_tokens", 0)
    if wanted <= max_new_tokens:
        return int(wanted)
    if merged.origins[name] == "model":
        return max_new_tokens
    limit = max_new_tokens if name == "min_new_tokens" else max_new_tokens + num_prompt_tokens
    most = "max_length" if "max_length" in merged.values else "max_new_tokens"
    rule = sentence(
        "must be at most {limit}, for {most} leaves room for {count} new tokens",
        limit=limit,
        most=Field(most),
        count=max_new_tokens,
    )
    raise InvalidParameter(name, merged.values[name], rule)


def _effective_origins(merged: Merged, asked: OptionValues, ready: Ready) -> dict[str, Origin]:
    """Without the options of a draw that does not take place; with what the server decides."""
    skipped = {"n"} if asked.is_sampling else {"n", *OF_THE_DRAW} - {"temperature"}
    found = {name: origin for name, origin in merged.origins.items() if asked.has(name) and name not in skipped}
    if not asked["ignore_eos"] and end_token_ids(ready):
        found.setdefault("eos_token_id", "model")
    for name in ("max_new_tokens", "seed", "do_sample"):
        if not (name == "max_new_tokens" and "max_length" in merged.origins):
            found[name] = merged.origins.get(name, "server")
    return found
