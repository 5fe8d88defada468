"""Whether the rule of a refusal is in the document: in the field's description, or in that of the body."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

WORD = re.compile(r"[a-z_]+")
VALUE = re.compile(r"'[^']*'|\"[^\"]*\"|\b[a-z]{3}_[A-Z][a-z]{3}\b")
"""What a message quotes, and codes of languages, which depend on what is served."""
MAY_REFUSE = (404, 503)
"""What depends on what is served: names of models, and the server's state."""
EXPLAINED = ("invalid_json", "context_length_exceeded", "batch_too_large", "no_token_left")
"""Codes that are rules by themselves, and documented with each response."""
MOST = 0.6
FILLERS = frozenset(
    """a an and any as at be but by each for from give goes has have hold holds if in is it its leave left less may more
    most must no none not of one or out send set than that the them there they this to when where with""".split()  # noqa: SIM905
)
"""Words that make no rule."""


def check_refusal(document: dict[str, Any], case: Any, response: Any) -> None:
    """Fail where a sound request is refused by a rule that is nowhere in the document."""
    if response.status_code < 400 or response.status_code in MAY_REFUSE:
        return
    error = response.json()["error"]
    if isinstance(error, str):
        # LibreTranslate's shape is the message alone.
        error = {"message": error, "code": None}
    if error["code"] in EXPLAINED or _has_round_float(case.body):
        return
    texts = list(_texts(document, case))
    assert any(_holds(text, error["message"]) for text in texts), (
        f"a rule that is not documented: {error['message']} {case.path} {str(case.body)[:500]}"
    )


def _texts(document: dict[str, Any], case: Any) -> Iterator[str]:
    """Every description that concerns the operation."""
    operation = document["paths"][case.path][case.method.lower()]
    yield operation.get("description", "")
    body = operation.get("requestBody")
    if body is not None:
        yield body.get("description", "")
        for content in body["content"].values():
            yield from _descriptions(document, content["schema"], set())


def _descriptions(document: dict[str, Any], schema: Any, seen: set[str]) -> Iterator[str]:
    if isinstance(schema, list):
        for part in schema:
            yield from _descriptions(document, part, seen)
    if not isinstance(schema, dict):
        return
    if isinstance(reference := schema.get("$ref"), str) and reference not in seen:
        seen.add(reference)
        yield from _descriptions(document, document["components"]["schemas"][reference.rpartition("/")[2]], seen)
    if isinstance(words := schema.get("description"), str):
        yield words
    for name, field in (schema.get("properties") or {}).items():
        if isinstance(field, dict):
            yield f"{name} {field.get('description', '')}"
    for part in schema.values():
        yield from _descriptions(document, part, seen)


def _holds(text: str, message: str) -> bool:
    """Whether most words of the rule are there, whatever its values."""
    rule = re.split(r": (?:it )?|: ", message, maxsplit=1)[-1]
    words = set(WORD.findall(VALUE.sub("", rule).lower()))
    rule_words = words - FILLERS
    return len(rule_words & set(WORD.findall(text.lower()))) >= MOST * len(rule_words)


def _has_round_float(value: Any) -> bool:
    """JSON Schema takes 5.0 for an integer; that it is none here is in the description of every body."""
    if isinstance(value, float):
        return value.is_integer()
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return any(map(_has_round_float, parts))
