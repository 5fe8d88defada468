"""What the tables of options, ranges and conflicts say, written into the schema of a body's field."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from server.api.text.options import SYNONYMS
from server.serving.options.ranges import Keywords
from server.serving.options.rules import RULES
from server.serving.options.rules import SYNONYMS as SAME
from server.serving.options.table import OPTIONS, GenerateOptions
from server.settings import field_docstrings

PARTS = ("items", "additionalProperties")


def limit(schema: dict[str, Any], keywords: Keywords) -> None:
    """Add the keywords to the arms of ``schema`` that have their types."""
    for arm in schema.get("anyOf", ()):
        limit(arm, keywords)
    for name, value in keywords.get(schema.get("type", ""), {}).items():
        if name in PARTS:
            limit(schema[name], value)
        elif name == "prefixItems":
            for part, part_keywords in zip(schema[name], value, strict=True):
                limit(part, part_keywords)
        else:
            schema[name] = value


class OptionDocs:
    """What each option of a generation does, and the rules that a schema cannot hold."""

    def __init__(self) -> None:
        self._helps = field_docstrings(GenerateOptions)
        self._conflicts = [*((rule.first, rule.second, rule.words) for rule in RULES), *SAME]

    def describe(self, name: str, schema: dict[str, Any]) -> None:
        """Complete the schema of the field ``name``, if it is an option or another name of one."""
        option = SYNONYMS.get(name, name)
        if option not in OPTIONS:
            return
        if (range_ := OPTIONS[option].range) is not None:
            limit(schema, range_.keywords)
        schema["description"] = " ".join(self._sentences(option))

    def _sentences(self, option: str) -> list[str]:
        facts = OPTIONS[option]
        found = [self._helps[option].replace("`", "")]
        if facts.range is not None:
            found.append(f"It {facts.range.rule}.")
        if facts.unsupported is not None and not facts.is_read_by_route:
            found.append(f"Not supported: {facts.unsupported}.")
        for first, second, reason in self._conflicts:
            if option == first:
                found.append(f"With {second}: {reason}.")
            elif option == second:
                found.append(f"With {first}: {reason}.")
        return found


def describe_refusals(properties: dict[str, Any], refusals: Mapping[str, Any]) -> None:
    """Add the fields that a body refuses, with the values that ask for nothing."""
    for name, refusal in refusals.items():
        if name not in properties:
            neutral = [None, *refusal.neutral]
            properties[name] = {"enum": neutral, "description": f"Not supported: {refusal.reason}."}
