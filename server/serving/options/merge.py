"""Request, template and model become one set of options, each with where it comes from.

The request comes before the template and that before the model's generation_config. What the request's own values
leave without effect in the others is dropped; what cannot be honoured together is refused, unless it is a default of
the model's, which yields.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from server.errors import ConflictingParameters, InvalidParameter, WithoutEffect
from server.protocol import Ready
from server.sentences import echo, sentence
from server.serving.options import ranges
from server.serving.options.rules import BODY_RULES, OPTION_RULES, RULES, SYNONYMS, Rule
from server.serving.options.table import GenerateOptions, from_mapping
from server.serving.options.wishes import DRAW, GREEDY_BELOW, Wishes

Origin = Literal["request", "template", "model", "server"]

OPTION_NAMES = tuple(field.name for field in fields(GenerateOptions))
RANDOM_SEED = -1
"""How clients ask for a seed that nobody chose."""
NOT_THE_MODELS = {"num_return_sequences", "n", "max_length", "min_length", "end_token_ids"}
"""What a model's generation_config may not decide: how many answers there are, and lengths that most configs hold
without meaning them. Its end tokens are no default but a fact."""


@dataclass
class Layered:
    """Options that have been put together. Their keys are those that someone has set."""

    values: dict[str, Any]
    origins: dict[str, Origin]

    def drop(self, name: str) -> None:
        del self.values[name], self.origins[name]

    decided_by: dict[str, str] = field(default_factory=dict)
    """Options that another one's value decides, and that other one."""

    def shown(self, name: str) -> str:
        """The field that its author wrote."""
        if name == "num_return_sequences" and "n" in self.values:
            return "n"
        return self.decided_by.get(name, name)


def given(options: GenerateOptions) -> dict[str, Any]:
    values = {name: value for name in OPTION_NAMES if (value := getattr(options, name)) is not None}
    return {name: value for name, value in values.items() if (name, value) != ("seed", RANDOM_SEED)}


def model_defaults(ready: Ready) -> tuple[dict[str, Any], list[InvalidParameter]]:
    """The options that the model's generation_config sets, and the findings about those that cannot be used."""
    values: dict[str, Any] = {}
    problems = []
    for name, value in ready.generation_config.items():
        if value is None or name in NOT_THE_MODELS:
            continue
        try:
            options = from_mapping({name: value})
            for problem in ranges.findings(options, ready):
                raise problem
        except InvalidParameter as problem:
            problems.append(problem)
        else:
            values[name] = getattr(options, name)
    return values, problems


def put_together(
    request: GenerateOptions, template: GenerateOptions, ready: Ready, body: Mapping[str, Any] | None
) -> Layered:
    """Raises `ConflictingParameters`. ``body`` are the fields beside the parameters; None looks at none of them."""
    model, _ = model_defaults(ready)
    layers: list[tuple[Origin, dict[str, Any]]] = [("request", given(request)), ("template", given(template))]
    layered = Layered({}, {})
    for origin, values in [*layers, ("model", model)]:
        _add(layered, origin, values)
    _decide_sampling(layered, [values for _, values in layers])
    _settle(layered, body)
    return layered


def check_body(body: Mapping[str, Any]) -> None:
    """Raise for what does not go together whatever the parameters are."""
    for rule in BODY_RULES:
        if rule.is_broken(Wishes(body)):
            raise _refusal(rule, Layered({}, {}), body)


def _add(layered: Layered, origin: Origin, values: dict[str, Any]) -> None:
    """What a higher layer has said, by either of two names, stays."""
    heard = set(layered.values)
    for first, second, reason in SYNONYMS:
        if first in values and second in values:
            raise ConflictingParameters(first, second, reason)
        if first in heard or second in heard:
            heard |= {first, second}
    for name, value in values.items():
        if name not in heard:
            layered.values[name], layered.origins[name] = value, origin
    if "n" in layered.values and "num_return_sequences" not in layered.values:
        layered.values["num_return_sequences"] = layered.values["n"]
        layered.origins["num_return_sequences"] = layered.origins["n"]


def _decide_sampling(layered: Layered, layers: list[dict[str, Any]]) -> None:
    """Whoever names an option of the draw wants to sample: with transformers' rule it would be accepted and ignored."""
    asker = next((values for values in layers if "do_sample" in values or any(name in values for name in DRAW)), None)
    if asker is None or "do_sample" in asker:
        return
    name = next(name for name in DRAW if name in asker)
    layered.values["do_sample"] = layered.values.get("temperature", 1.0) >= GREEDY_BELOW
    layered.origins["do_sample"] = layered.origins[name]
    layered.decided_by["do_sample"] = name


def _settle(layered: Layered, body: Mapping[str, Any] | None) -> None:
    """Every round drops one value or ends."""
    rules = OPTION_RULES if body is None else RULES
    while True:
        wishes = Wishes({**(body or {}), **layered.values})
        broken = next((rule for rule in rules if rule.is_broken(wishes)), None)
        if broken is None:
            return
        yielding = _yielding(broken, layered.origins)
        if yielding is None:
            raise _refusal(broken, layered, body or {})
        layered.drop(yielding)


def _yielding(rule: Rule, origins: dict[str, Origin]) -> str | None:
    """The field of the two that is a default and gives way."""
    if rule.has_no_effect:
        return rule.first if origins.get(rule.first) in ("template", "model") else None
    return next((name for name in (rule.second, rule.first) if origins.get(name) == "model"), None)


def _refusal(rule: Rule, layered: Layered, body: Mapping[str, Any]) -> ConflictingParameters:
    error = WithoutEffect if rule.has_no_effect else ConflictingParameters
    from_template = [name for name in (rule.first, rule.second) if layered.origins.get(name) == "template"]
    reason = rule.told(*(echo(layered.values.get(name)) for name in (rule.first, rule.second)))
    if from_template:
        reason = sentence("{reason}; the template sets {names}", reason=reason, names=" and ".join(from_template))
    is_second_sent = rule.second in layered.values or rule.second in body
    return error(layered.shown(rule.first), layered.shown(rule.second), reason, is_second_sent=is_second_sent)
