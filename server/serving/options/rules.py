"""What does not go together, as one table of rules; knows neither ranges nor where a value came from.

A rule names two fields. It is of one of two kinds: without the second the first would have no effect, or the two
cannot be honoured together. Every combination that no rule forbids is honoured.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from server.sentences import Sentence, sentence
from server.serving.options.table import OPTIONS
from server.serving.options.values import DRAW, GREEDY_BELOW, OptionValues

BODY_FIELDS = ("inputs", "template", "variables", "examples", "messages", "chat_template_kwargs", "stream")
"""Fields beside the parameters that rules look at."""

FORBIDDING = tuple(name for name, option in OPTIONS.items() if option.can_forbid)
"""Options that can forbid tokens: together they may forbid all, which is known only when the place is reached."""

SYNONYMS = (
    ("num_return_sequences", "n", "they are two names of the same option"),
    ("max_new_tokens", "max_length", "both limit the output; set only one"),
    ("min_new_tokens", "min_length", "both set a minimum; set only one"),
)
"""Two names of one setting. The request overrides the template, and the template overrides the model."""


@dataclass(frozen=True)
class Rule:
    """Two fields that do not go together where ``is_broken``."""

    first: str
    second: str
    reason: str
    """A `sentence` that may hold the two values as ``{first}`` and ``{second}``, and other fields by their names."""
    is_broken: Callable[[OptionValues], bool]
    has_no_effect: bool = False
    """The first would be ignored: it is dropped silently where it is a default that the request did not ask for."""

    @property
    def words(self) -> str:
        """The reason, for the docs."""
        return self.told(first=self.first, second=self.second).written()

    def told(self, first: Any, second: Any) -> Sentence:
        """The reason, about two values."""
        return sentence(self.reason, first=first, second=second)


def _field(name: str) -> str:
    """As a `sentence` names a field."""
    return f"{{{name}}}"


def needs(first: str, *others: str, reason: str = "") -> Rule:
    """The first has an effect only with one of the others."""
    reason = reason or f"set {' or '.join(map(_field, others))}, or leave {_field(first)} out"
    return Rule(
        first, others[0], reason, lambda w: w.has(first) and not any(w.has(o) for o in others), has_no_effect=True
    )


def excludes(first: str, second: str, reason: str) -> Rule:
    return Rule(first, second, reason, lambda w: w.has(first) and w.has(second))


def _sampling(name: str) -> Rule:
    return Rule(
        name,
        "do_sample",
        f"{_field(name)} affects sampling and {{do_sample}} is false",
        # At temperature 0 every rule of the draw keeps the most likely token: greedy is what they give.
        lambda w: w.has(name) and not w["do_sample"] and w["temperature"] >= GREEDY_BELOW,
        has_no_effect=True,
    )


def _details(name: str) -> Rule:
    return needs(name, "details", reason="it is part of the details; set {details} to true")


def _forbidden_first(other: str, reason: str, forbids: Callable[[int, Any], bool]) -> Rule:
    return Rule(
        "forced_bos_token_id",
        other,
        reason,
        lambda w: w.has("forced_bos_token_id") and w.has(other) and forbids(w["forced_bos_token_id"], w[other]),
    )


def _is_banned(token_id: int, biases: Any) -> bool:
    by_id = {str(key): bias for key, bias in (biases.items() if isinstance(biases, dict) else biases)}
    return by_id.get(str(token_id)) is False or by_id.get(str(token_id)) == "-inf"


def _counts_prompt(values: OptionValues) -> bool:
    """Whether a penalty looks at the prompt: presence and frequency do if the scope says so."""
    if values.has("dry_multiplier") or values.has("encoder_repetition_penalty"):
        return True
    scope = values["penalty_scope"]
    of_output = values.has("presence_penalty") or values.has("frequency_penalty")
    return (values.has("repetition_penalty") and scope != "output") or (of_output and scope not in (None, "output"))


PENALTIES = ("repetition_penalty", "presence_penalty", "frequency_penalty")

RULES: tuple[Rule, ...] = (
    # Where the prompt comes from.
    excludes("inputs", "template", "a request has only one prompt"),
    excludes("inputs", "messages", "a request has only one prompt"),
    excludes("template", "messages", "a request has only one prompt"),
    needs("variables", "template"),
    needs("examples", "template"),
    needs("chat_template_kwargs", "messages"),
    Rule(
        "stream",
        "inputs",
        "only a single input can be streamed",
        lambda w: w.has("stream") and isinstance(w["inputs"], list),
    ),
    # Lengths.
    Rule(
        "min_new_tokens",
        "max_new_tokens",
        "the minimum {first} is greater than the maximum {second}",
        lambda w: w["max_new_tokens"] is not None and w["min_new_tokens"] > w["max_new_tokens"],
    ),
    Rule(
        "min_length",
        "max_length",
        "the minimum {first} is greater than the maximum {second}",
        lambda w: w["max_length"] is not None and w["min_length"] > w["max_length"],
    ),
    excludes("eos_token_id", "ignore_eos", "end tokens have no effect when {ignore_eos} is true"),
    Rule(
        "exponential_decay_length_penalty",
        "ignore_eos",
        "end tokens have no effect when {ignore_eos} is true; set {stop_token_ids}",
        lambda w: w.has("exponential_decay_length_penalty") and w["ignore_eos"] and not w.has("stop_token_ids"),
    ),
    # The draw.
    *(_sampling(name) for name in DRAW),
    Rule(
        "temperature",
        "do_sample",
        "{temperature} 0 means greedy decoding and {do_sample} is true",
        lambda w: bool(w["do_sample"]) and w["temperature"] == 0,
    ),
    needs("xtc_threshold", "xtc_probability"),
    # Several outputs.
    Rule(
        "num_return_sequences",
        "num_beams",
        "{first} outputs need at least as many beams, and there are {second}",
        lambda w: w["num_beams"] > 1 and w["num_return_sequences"] > w["num_beams"],
    ),
    excludes("best_of", "num_beams", "beam search does its own ranking; use {num_return_sequences}"),
    excludes("best_of", "stream", "the best sample is known only after all are complete"),
    Rule(
        "best_of",
        "do_sample",
        "without sampling all samples would be the same",
        lambda w: w.has("best_of") and not w.is_sampling,
    ),
    Rule(
        "best_of",
        "num_return_sequences",
        "{first} samples cannot give {second} outputs",
        lambda w: w.has("best_of") and w["best_of"] < w["num_return_sequences"],
    ),
    needs("rank_by", "best_of"),
    # Beams.
    needs("num_beam_groups", "num_beams"),
    needs("length_penalty", "num_beams"),
    needs("early_stopping", "num_beams"),
    needs("diversity_penalty", "num_beam_groups"),
    needs("num_beam_groups", "diversity_penalty", reason="without it all groups find the same output; set it above 0"),
    Rule(
        "num_beam_groups",
        "num_beams",
        "{second} beams cannot be split into {first} equal groups",
        lambda w: w.has("num_beam_groups") and w["num_beams"] % w["num_beam_groups"] != 0,
    ),
    excludes("num_beam_groups", "do_sample", "beam groups do not sample"),
    excludes("num_beams", "guidance_scale", "beam search does not support guidance"),
    excludes("num_beams", "max_rewinds", "beam search drops hypotheses with a banned phrase and never steps back"),
    # Penalties.
    needs("penalty_scope", *PENALTIES),
    Rule(
        "penalize_template",
        "repetition_penalty",
        "no penalty that counts the prompt is set",
        lambda w: w.has("penalize_template") and not _counts_prompt(w),
        has_no_effect=True,
    ),
    Rule(
        "penalize_template",
        "template",
        "the prompt does not come from a template",
        lambda w: w.has("penalize_template") and not (w.has("template") or w.has("messages")),
        has_no_effect=True,
    ),
    needs("dry_base", "dry_multiplier"),
    needs("dry_allowed_length", "dry_multiplier"),
    needs("dry_range", "dry_multiplier"),
    needs("dry_sequence_breakers", "dry_multiplier"),
    # Tokens that must and must not come.
    _forbidden_first("suppress_tokens", "the forced token is suppressed", lambda id_, ids: id_ in ids),
    _forbidden_first("allowed_token_ids", "the forced token is not allowed", lambda id_, ids: id_ not in ids),
    _forbidden_first("logit_bias", "the forced token is banned", _is_banned),
    _forbidden_first("bad_words_ids", "the forced token is banned", lambda id_, words: (id_,) in words),
    Rule(
        "forced_eos_token_id",
        "suppress_tokens",
        "every forced token is suppressed",
        lambda w: w.has("forced_eos_token_id") and set(w["forced_eos_token_id"]) <= set(w["suppress_tokens"] or ()),
    ),
    Rule(
        "forced_eos_token_id",
        "allowed_token_ids",
        "not every forced token is allowed",
        lambda w: w.has("allowed_token_ids") and not set(w["forced_eos_token_id"] or ()) <= set(w["allowed_token_ids"]),
    ),
    Rule(
        "allowed_token_ids",
        "suppress_tokens",
        "every allowed token is suppressed",
        lambda w: w.has("allowed_token_ids") and set(w["allowed_token_ids"]) <= set(w["suppress_tokens"] or ()),
    ),
    needs("negative_prompt", "guidance_scale"),
    # Text.
    needs("max_rewinds", "banned_phrases"),
    # Structure. Bans go with it: where nothing is left to choose, the request ends with an error that says so.
    excludes("grammar", "forced_bos_token_id", "{grammar} determines which tokens are allowed"),
    excludes("grammar", "forced_eos_token_id", "{grammar} determines which tokens are allowed"),
    excludes("grammar", "min_new_tokens", "{grammar} determines when the output is complete"),
    excludes("grammar", "min_length", "{grammar} determines when the output is complete"),
    excludes("grammar", "ignore_eos", "{grammar} determines when the output is complete"),
    # What is told.
    _details("top_n_tokens"),
    _details("logprob_token_ids"),
    Rule(
        "logprob_token_ids",
        "top_n_tokens",
        "it replaces the most likely tokens",
        # The most likely tokens of the prompt's places may be asked for beside it.
        lambda w: w.has("logprob_token_ids") and w.has("top_n_tokens") and not w["decoder_input_details"],
    ),
    _details("decoder_input_details"),
    _details("logprobs_mode"),
    _details("return_parameters"),
    excludes("decoder_input_details", "stream", "streams do not include prompt tokens"),
)

BODY_RULES = tuple(rule for rule in RULES if rule.first in BODY_FIELDS and rule.second in BODY_FIELDS)
OPTION_RULES = tuple(rule for rule in RULES if rule.first not in BODY_FIELDS and rule.second not in BODY_FIELDS)
