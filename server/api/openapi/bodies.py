"""Request bodies in the documentation: what each field means, its limits, and the rules that span fields."""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

from pydantic import BaseModel

from server.api.bodies.fields import LenientModel
from server.api.bodies.schemas import GenerateParameters, StrictModel
from server.api.http import json_body
from server.api.http.body_value import JSON_TYPE
from server.api.http.form_body import FORM_TYPE, MAX_FORM_FIELDS, Form
from server.api.openapi.limits import OptionDocs, describe_refusals
from server.api.text.options import without_place
from server.api.text.schemas import TextBody

STRICT_JSON = (
    f"One JSON value in UTF-8, nested at most {json_body.MAX_DEPTH} levels deep, with at most {json_body.MAX_KEYS} "
    f"keys in an object, each key once. Integers have at most {json_body.MAX_INTEGER_DIGITS} digits and 64 bits and no "
    "fraction; numbers are finite; no string holds half of a surrogate pair. Null is the same as leaving a field out."
)


def complete(schemas: dict[str, Any]) -> None:
    """Complete the schemas of all bodies among ``schemas``."""
    options, docstrings = OptionDocs(), Docstrings()
    for model in _below(StrictModel):
        if (schema := schemas.get(model.__name__)) is None:
            continue
        properties = schema.setdefault("properties", {})
        _describe_fields(model, properties, docstrings)
        if issubclass(model, GenerateParameters):
            for name, field in properties.items():
                options.describe(name, field)
        if issubclass(model, TextBody):
            for name, reason in without_place(model).items():
                properties[name]["description"] += f" Not supported here: {reason}."
        if issubclass(model, LenientModel):
            describe_refusals(properties, model.refused)


def add_form(body: dict[str, Any], form: Form, schemas: dict[str, Any]) -> None:
    """Document the form beside the JSON body, with the descriptions of its fields."""
    reference = body["content"][JSON_TYPE]["schema"]["$ref"]
    of_json = schemas[reference.rpartition("/")[2]]["properties"]
    properties: dict[str, Any] = {}
    for name in form.fields:
        kind = "integer" if name in form.integers else "string"
        properties[name] = {"type": kind, "description": of_json[name]["description"]}
    text = properties[form.required]["description"]
    properties[form.required] = {"type": "array", "items": {"type": "string"}, "minItems": 1, "description": text}
    body["description"] += (
        f" Or a form in UTF-8 with at most {MAX_FORM_FIELDS} fields, not from a web page. {form.required} may be "
        "repeated, which is the same as a list."
    )
    schema = {"type": "object", "required": [form.required], "properties": properties, "additionalProperties": False}
    body["content"][FORM_TYPE] = {"schema": schema, "encoding": {form.required: {"style": "form", "explode": True}}}


def _below(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    for below in model.__subclasses__():
        yield below
        yield from _below(below)


def _describe_fields(model: type[BaseModel], properties: dict[str, Any], docstrings: Docstrings) -> None:
    """Field docstrings of the class and its bases become descriptions."""
    for owner in reversed(model.__mro__):
        if issubclass(owner, BaseModel) and owner.__module__.startswith("server."):
            for name, text in docstrings.of(owner).items():
                field = model.model_fields.get(name)
                key = (field and field.alias) or name
                if key in properties:
                    properties[key]["description"] = text


class Docstrings:
    """The text under each field of a class. Parses each module once: `inspect` parses it again for every class."""

    def __init__(self) -> None:
        self._by_class: dict[type, dict[str, str]] = {}
        self._classes: dict[str, dict[str, ast.ClassDef]] = {}

    def of(self, owner: type) -> dict[str, str]:
        if owner not in self._by_class:
            self._by_class[owner] = _texts(self._classes_of(owner.__module__)[owner.__qualname__])
        return self._by_class[owner]

    def _classes_of(self, module: str) -> dict[str, ast.ClassDef]:
        if module not in self._classes:
            tree = ast.parse(inspect.getsource(sys.modules[module]))
            self._classes[module] = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
        return self._classes[module]


def _texts(definition: ast.ClassDef) -> dict[str, str]:
    found = {}
    for field, text in pairwise(definition.body):
        is_text = isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and is_text:
            found[field.target.id] = inspect.cleandoc(str(text.value.value))  # type: ignore[attr-defined]
    return found
