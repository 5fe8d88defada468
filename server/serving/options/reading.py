"""Values from outside become options: their names, types and ranges are checked, and not yet what goes together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import ValidationError

from server.errors import InvalidParameter, InvalidRequest, UnsupportedParameter
from server.protocol import Ready
from server.serving.options.rules import SYNONYMS
from server.serving.options.table import OPTIONS, GenerateOptions
from server.serving.options.values import is_set
from server.serving.strict_model import rule_of

RANDOM_SEED = -1
"""How clients ask for a seed that nobody chose."""

WITHOUT_PLACE = {
    "return_full_text": "the output does not continue the input",
    "decoder_input_details": "the output does not continue the input",
    "negative_prompt": "encoder-decoder models do not support guidance",
    "guidance_scale": "encoder-decoder models do not support guidance",
    "penalize_template": "penalties count the tokens of the output alone",
}
"""Options that mean nothing to an encoder-decoder model."""


def from_mapping(values: Mapping[str, Any]) -> GenerateOptions:
    """Plain values as JSON has them, under the client's names. Raises `InvalidParameter` for a wrong name or type."""
    try:
        return GenerateOptions.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = str(first["loc"][0])
        is_unknown = first["type"] == "extra_forbidden" and len(first["loc"]) == 1
        rule = "is not an option of generation" if is_unknown else rule_of(first)
        raise InvalidParameter(name, values[name], rule) from None


def given(options: GenerateOptions) -> dict[str, Any]:
    """The options that say something."""
    values = {name: value for name in OPTIONS if (value := getattr(options, name)) is not None}
    return {name: value for name, value in values.items() if (name, value) != ("seed", RANDOM_SEED)}


def check_values(options: GenerateOptions, ready: Ready) -> None:
    """Raise for the first option that is not supported, else for the first out of its range."""
    for name, option in OPTIONS.items():
        if option.unsupported is not None and is_set(name, getattr(options, name)):
            raise UnsupportedParameter(name, option.unsupported)
    for out_of_place in _out_of_place(options, ready):
        raise out_of_place
    for problem in _findings(options, ready):
        raise problem


def model_defaults(ready: Ready) -> tuple[dict[str, Any], list[InvalidRequest]]:
    """The options that the model's generation_config sets, and the findings about those that cannot be used."""
    return _defaults({k: v for k, v in ready.generation_config.items() if _may_be_default(k)}, ready)


def task_defaults(options: Mapping[str, Any], ready: Ready) -> tuple[dict[str, Any], list[InvalidRequest]]:
    """Like `model_defaults`, for the options of one task. Also reports fields that are not options."""
    known = {name: value for name, value in options.items() if _may_be_default(name)}
    values, problems = _defaults(known, ready)
    for name, value in options.items():
        if name not in known:
            problems.append(InvalidParameter(name, value, "is not an option that a model sets"))
    return values, problems


def _may_be_default(name: str) -> bool:
    return name in OPTIONS and OPTIONS[name].from_model


def _defaults(wanted: Mapping[str, Any], ready: Ready) -> tuple[dict[str, Any], list[InvalidRequest]]:
    values: dict[str, Any] = {}
    problems: list[InvalidRequest] = []
    for name, value in wanted.items():
        if value is None:
            continue
        try:
            options = from_mapping({name: value})
            for problem in (*_out_of_place(options, ready), *_findings(options, ready)):
                raise problem
        except InvalidRequest as problem:
            problems.append(problem)
        else:
            values[name] = getattr(options, name)
    for first, second, _ in SYNONYMS:
        if first in values and second in values:
            problems.append(InvalidParameter(second, values.pop(second), f"has no effect, because {first} is set"))
    return values, problems


def _out_of_place(options: GenerateOptions, ready: Ready) -> Iterator[UnsupportedParameter]:
    """The options that mean nothing to this model."""
    for name, reason in WITHOUT_PLACE.items() if ready.max_source_len else ():
        if is_set(name, getattr(options, name)):
            yield UnsupportedParameter(name, reason)


def _findings(options: GenerateOptions, ready: Ready) -> Iterator[InvalidParameter]:
    """The first fault of each option."""
    for name, option in OPTIONS.items():
        value = getattr(options, name)
        if value is None or option.range is None:
            continue
        for wrong, rule in option.range.findings(value, ready):
            yield InvalidParameter(name, wrong, rule)
            break
