"""OpenAI's fields as options of ours, and what errors call these."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from server.api.text.schemas import NO_PLACE, TOLD_OTHERWISE, TextBody, ToldFields
from server.errors import ConflictingParameters, InvalidParameter, UnsupportedParameter
from server.protocol import Ready
from server.serving.options.table import OPTIONS, GenerateOptions
from server.serving.options.values import DRAW, is_set

SYNONYMS = {
    "max_output_tokens": "max_new_tokens",
    "max_completion_tokens": "max_new_tokens",
    "max_tokens": "max_new_tokens",
    "min_tokens": "min_new_tokens",
    "truncate_prompt_tokens": "truncate",
    "stop_sequences": "stop",
}
"""Other names of options, which every body of `TextBody` takes, and ours."""
SHOWN = {"num_return_sequences": "n", "top_n_tokens": "logprobs", "details": "logprobs"}
"""Ours, and what the client knows instead."""
ADAPTERS = "adapters"
"""Read with the model, by `generator_of`."""
ALL_OF_THEM = -1
"""How vLLM's clients say that ``top_k`` keeps every token."""


def generate_options(body: TextBody, ready: Ready, added: Mapping[str, Any]) -> GenerateOptions:
    """What the body asks for; ``added`` is what the dialect makes of fields of its own."""
    names = [name for name in OPTIONS if name not in TOLD_OTHERWISE and name != ADAPTERS]
    values = {name: value for name in names if (value := getattr(body, name)) is not None}
    sent_as: dict[str, str] = {}
    for name, own in SYNONYMS.items():
        if (value := getattr(body, name)) is not None:
            if values.get(own, value) != value:
                raise ConflictingParameters(name, sent_as.get(own, own), "they are two names of the same option")
            values[own], sent_as[own] = value, name
    if values.get("top_k") == ALL_OF_THEM:
        values["top_k"] = 0
    if _leaves_the_draw_open(values, ready):
        values["do_sample"] = True
    return GenerateOptions.model_construct(**{**values, **added})


def _leaves_the_draw_open(values: Mapping[str, Any], ready: Ready) -> bool:
    """OpenAI's default is to sample at temperature 1: what the model's own generation_config says comes before it."""
    has_beams = any(is_set("num_beams", known.get("num_beams")) for known in (values, ready.generation_config))
    is_said = any(values.get(name) is not None for name in (*DRAW, "do_sample"))
    return not (is_said or has_beams or "do_sample" in ready.generation_config)


def without_place(body: type[TextBody]) -> Mapping[str, str]:
    """Options that the answers to a body have no place for, and what to do instead."""
    return TOLD_OTHERWISE if issubclass(body, ToldFields) else {**TOLD_OTHERWISE, "logprob_token_ids": NO_PLACE}


def check_told(body: TextBody) -> None:
    """Raise for what these routes' answers have no place for."""
    for name, reason in without_place(type(body)).items():
        value = getattr(body, name)
        if value != [] and is_set(name, value):
            raise UnsupportedParameter(name, reason)


def check_single(body: TextBody, what: str) -> None:
    """Raise for several outputs where ``what`` has a place for one."""
    for name in ("n", "num_return_sequences"):
        if (getattr(body, name) or 1) > 1:
            raise InvalidParameter(name, getattr(body, name), f"must be 1: {what} returns one output")


def clients_names(body: TextBody) -> dict[str, str]:
    """Our names of options, and what the client knows instead in this body."""
    given = {own: name for name, own in SYNONYMS.items() if getattr(body, name) is not None}
    names = {**SHOWN, **type(body).own_names, **given}
    return {own: name for own, name in names.items() if own in TOLD_OTHERWISE or getattr(body, own) is None}
