"""pydantic's findings about a body, as errors that name the field, the value and the rule in plain words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, get_args

from pydantic import BaseModel

from server.api.http.errors import InvalidJson
from server.errors import InvalidParameter, InvalidRequest, SluiceError, UnknownParameter
from server.serving.strict_model import rule_of


def from_pydantic(errors: Sequence[Mapping[str, Any]], body: type[BaseModel] | None) -> SluiceError:
    """The first finding; the findings of a union's other arms at the same place are joined to it."""
    first = errors[0]
    if first["type"] == "json_invalid":
        return InvalidJson("The body is not JSON.")
    path, known = _locate(first["loc"], body)
    name = ".".join(path)
    if first["type"] == "extra_forbidden":
        return UnknownParameter(name, known)
    if first["type"] == "missing":
        what = f"{name} is missing" if name else "The body is missing"
        return InvalidRequest(f"{what}: it is required.", param=name or None)
    rules = [rule_of(error) for error in errors if _locate(error["loc"], body)[0] == path]
    rule = " or ".join(dict.fromkeys(rules)).replace(" or must ", " or ")
    if not name:
        return InvalidRequest(f"The body {rule}.")
    return InvalidParameter(name, first.get("input"), rule)


def _locate(loc: Sequence[str | int], body: type[BaseModel] | None) -> tuple[list[str], list[str]]:
    """The field's path in the client's own words, and the fields that exist beside it.

    pydantic's location also names the arms of unions: those are left out.
    """
    path: list[str] = []
    models = [body] if body else []
    known: list[str] = []
    steps = list(loc[1:] if loc and loc[0] == "body" else loc)
    for index, step in enumerate(steps):
        fields = {name: field for model in models for name, field in model.model_fields.items()}
        is_unknown_field = index == len(steps) - 1 and isinstance(step, str) and bool(models) and step not in fields
        if isinstance(step, int) or step in fields or body is None:
            path.append(str(step))
        elif is_unknown_field and not any(step == model.__name__ for model in models):
            path.append(step)
        if isinstance(step, str) and (step in fields or is_unknown_field):
            known = sorted(fields)
            models = _models(fields[step].annotation) if step in fields else []
    return path, known


def _models(annotation: Any) -> list[type[BaseModel]]:
    """The body classes that a field's type allows."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in _models(argument)]
