"""Request, template and model become one set of options, each with where it comes from.

The request comes before the template and that before the model's generation_config. What the request's own values
leave without effect in the others is dropped; what cannot be honoured together is refused, unless it is a default of
the model's, which yields.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from server.errors import ConflictingParameters, InvalidParameter, WithoutEffect
from server.protocol import Ready
from server.sentences import Field, echo, sentence
from server.serving.options.reading import check_values, given
from server.serving.options.rules import BODY_RULES, OPTION_RULES, RULES, SYNONYMS, Rule
from server.serving.options.table import GenerateOptions
from server.serving.options.types import Ids
from server.serving.options.values import DRAW, GREEDY_BELOW, OptionValues

Origin = Literal["request", "template", "model", "server"]

FIRST = "forced_bos_token_id"
HOW_TO_END = sentence("the model has no end token; set {eos_token_id} or {stop_token_ids}")


@dataclass
class Merged:
    """Options that have been put together. Their keys are those that someone has set."""

    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, Origin] = field(default_factory=dict)
    decided_by: dict[str, str] = field(default_factory=dict)
    """Options that another one's value decides, and that other one."""

    def drop(self, name: str) -> None:
        del self.values[name], self.origins[name]

    def shown(self, name: str) -> str:
        """The field that its author wrote."""
        if name == "num_return_sequences" and "n" in self.values:
            return "n"
        return self.decided_by.get(name, name)


def check(request: GenerateOptions, ready: Ready, body: Mapping[str, Any]) -> None:
    """Raise for what no template could make right. ``body`` are the fields beside the parameters."""
    check_values(request, ready)
    for rule in BODY_RULES:
        if rule.is_broken(OptionValues(body)):
            raise _refusal(rule, Merged(), body)


def merge(
    request: GenerateOptions,
    template: GenerateOptions,
    defaults: Mapping[str, Any],
    ready: Ready,
    body: Mapping[str, Any] | None = None,
    *,
    of_task: Mapping[str, Any] | None = None,
    forced_id: int | None = None,
) -> Merged:
    """What request, template and model ask for together; done once for a request, which passed `check`.

    ``defaults`` are the model's own; ``of_task`` are those that it has for the route's task, and come before them.
    ``forced_id`` is the first token of an output in the language that the route translates into.
    ``body`` holds the fields beside the parameters; None skips their checks. Raises `InvalidRequest`.
    """
    check_values(template, ready)
    layers: list[tuple[Origin, Mapping[str, Any]]] = [("request", given(request)), ("template", given(template))]
    merged = Merged()
    of_language = {} if forced_id is None else {FIRST: forced_id}
    for origin, values in [*layers, ("server", of_language), ("model", of_task or {}), ("model", defaults)]:
        _add(merged, origin, values)
    if merged.origins.get(FIRST) == "server":
        merged.decided_by[FIRST] = "tgt_lang"
    _decide_sampling(merged, [values for _, values in layers])
    _settle(merged, ready, body)
    _check_rows(merged, ready)
    _check_ends(merged, ready)
    return merged


def _add(merged: Merged, origin: Origin, values: Mapping[str, Any]) -> None:
    """What a higher layer has said, by either of two names, stays."""
    heard = set(merged.values)
    for first, second, reason in SYNONYMS:
        if first in values and second in values:
            raise ConflictingParameters(first, second, reason)
        if first in heard or second in heard:
            heard |= {first, second}
    for name, value in values.items():
        if name not in heard:
            merged.values[name], merged.origins[name] = value, origin
    if "n" in merged.values and "num_return_sequences" not in merged.values:
        merged.values["num_return_sequences"] = merged.values["n"]
        merged.origins["num_return_sequences"] = merged.origins["n"]


def _decide_sampling(merged: Merged, layers: list[Mapping[str, Any]]) -> None:
    """Whoever names an option of the draw wants to sample: with transformers' rule it would be accepted and ignored."""
    asker = next((values for values in layers if "do_sample" in values or any(name in values for name in DRAW)), None)
    if asker is None or "do_sample" in asker:
        return
    name = next(name for name in DRAW if name in asker)
    merged.values["do_sample"] = merged.values.get("temperature", 1.0) >= GREEDY_BELOW
    merged.origins["do_sample"] = merged.origins[name]
    merged.decided_by["do_sample"] = name


def _settle(merged: Merged, ready: Ready, body: Mapping[str, Any] | None) -> None:
    """Every round drops one value or ends."""
    rules = OPTION_RULES if body is None else RULES
    if ready.max_source_len and merged.origins.get(FIRST) in ("model", "server"):
        # It has no text: it tells the decoder what to write, and the grammar begins after it.
        rules = tuple(rule for rule in rules if (rule.first, rule.second) != ("grammar", FIRST))
    while True:
        asked = OptionValues({**(body or {}), **merged.values})
        broken = next((rule for rule in rules if rule.is_broken(asked)), None)
        if broken is None:
            return
        yielding = _yielding(broken, merged.origins)
        if yielding is None:
            raise _refusal(broken, merged, body or {})
        merged.drop(yielding)


def _yielding(rule: Rule, origins: dict[str, Origin]) -> str | None:
    """The field of the two that is a default and gives way."""
    if rule.has_no_effect:
        return rule.first if origins.get(rule.first) in ("template", "model") else None
    return next((name for name in (rule.second, rule.first) if origins.get(name) == "model"), None)


def _refusal(rule: Rule, merged: Merged, body: Mapping[str, Any]) -> ConflictingParameters:
    error = WithoutEffect if rule.has_no_effect else ConflictingParameters
    from_template = [name for name in (rule.first, rule.second) if merged.origins.get(name) == "template"]
    reason = rule.told(*(echo(merged.values.get(name)) for name in (rule.first, rule.second)))
    if from_template:
        reason = sentence("{reason}; the template sets {names}", reason=reason, names=" and ".join(from_template))
    is_second_sent = rule.second in merged.values or rule.second in body
    return error(merged.shown(rule.first), merged.shown(rule.second), reason, is_second_sent=is_second_sent)


def _check_rows(merged: Merged, ready: Ready) -> None:
    """All of a request's sequences run in one step."""
    asked = OptionValues(merged.values)
    name = max(("num_beams", "best_of", "num_return_sequences"), key=lambda name: int(asked[name]))
    shown, is_guided = merged.shown(name), asked.has("guidance_scale")
    num_rows = asked[name] * (2 if is_guided else 1)
    if num_rows > max(1, ready.max_running):
        twice = ", two for each output ({shown} is {count})" if is_guided else ""
        rule = sentence(
            f"needs {{num_rows}} sequences{twice}, but the server runs at most {{limit}} (max_running)",
            num_rows=num_rows,
            shown=Field(shown),
            count=asked[name],
            limit=ready.max_running,
        )
        name, shown = ("guidance_scale", "guidance_scale") if is_guided else (name, shown)
        raise InvalidParameter(shown, merged.values[name], rule)


def _check_ends(merged: Merged, ready: Ready) -> None:
    """What raises the chance of the end needs a token that ends the output."""
    asked, name = OptionValues(merged.values), "exponential_decay_length_penalty"
    has_end = asked["eos_token_id"] or asked["stop_token_ids"] or end_token_ids(ready)
    if asked.has(name) and not has_end:
        if merged.origins[name] != "model":
            raise WithoutEffect(name, "eos_token_id", HOW_TO_END, is_second_sent=False)
        merged.drop(name)


def end_token_ids(ready: Ready) -> Ids:
    """The model's own."""
    ids = ready.generation_config.get("end_token_ids")
    return tuple(ids) if isinstance(ids, list) else ()
