"""The options that the page offers, as groups of fields. An empty field is not sent."""

from __future__ import annotations

import json
from typing import Any, get_args, get_origin, get_type_hints

from server.serving.options.option import Form, Option
from server.serving.options.table import OPTIONS, GenerateOptions

GROUPS: dict[str, dict[str, Any]] = {
    "Sampling": {"isOpen": True, "presets": True},
    "Length": {"isOpen": True},
    "Beam search": {},
    "Repetition": {},
    "Constraints": {},
}
"""By title, in the page's order: whether a group is open at first, and whether it has the presets above its fields."""
KINDS = {int: "integer", float: "number", tuple: "lines", dict: "json"}
MAX_EXACT = 2**53
"""JavaScript has no exact integers beyond it."""


def groups() -> list[dict[str, Any]]:
    """The form of a generation."""
    found = {title: {"title": title, **facts, "fields": list[dict[str, Any]]()} for title, facts in GROUPS.items()}
    for name, option in OPTIONS.items():
        if option.form is not None:
            found[option.form.group]["fields"].append(_field(name, option, option.form))
    return list(found.values())


def _field(name: str, option: Option, form: Form) -> dict[str, Any]:
    kind = "choice" if form.choices else KINDS[_type(name)]
    found: dict[str, Any] = {"name": name, "label": form.label, "kind": kind, **_limits(option)}
    if form.choices:
        found["choices"] = [[json.dumps(value), label] for value, label in form.choices]
    if kind == "json":
        found["example"] = json.dumps(option.example)
    more = {"step": form.step, "hint": form.hint or None, "not": None if form.in_chat else "chat"}
    return {**found, **{key: value for key, value in more.items() if value is not None}}


def _type(name: str) -> Any:
    (hint,) = (arm for arm in get_args(get_type_hints(GenerateOptions)[name]) if arm is not type(None))
    return get_origin(hint) or hint


def _limits(option: Option) -> dict[str, Any]:
    """Of a number, without those that depend on the model."""
    keywords = {} if option.range is None else option.range.keywords.get("number", {})
    limits = {"min": keywords.get("minimum"), "max": keywords.get("maximum")}
    return {key: value for key, value in limits.items() if value is not None and abs(value) < MAX_EXACT}
