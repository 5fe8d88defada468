"""HTML forms, on the paths whose dialect has them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import parse_qsl

from server.errors import InvalidRequest, UnknownParameter
from server.sentences import echo

FORM_TYPE = "application/x-www-form-urlencoded"
MAX_FORM_FIELDS = 1024
"""Counting each repetition."""
INTEGER = re.compile(r"-?[0-9]{1,9}")

FormValue = str | int | list[str]


@dataclass(frozen=True, kw_only=True)
class Form:
    """What a form may hold. All its values are texts."""

    required: str
    """A field that may also be repeated; its values are then a list."""
    texts: tuple[str, ...] = ()
    integers: tuple[str, ...] = ()

    @property
    def fields(self) -> list[str]:
        return sorted((self.required, *self.texts, *self.integers))

    def read(self, body: bytes) -> dict[str, FormValue]:
        """The form as a JSON body would have it. Raises `InvalidRequest`."""
        found: dict[str, FormValue] = {}
        repeated: list[str] = []
        for name, text in _pairs(body):
            if name == self.required:
                repeated.append(text)
            elif name not in self.fields:
                raise UnknownParameter(name, self.fields)
            elif name in found:
                raise InvalidRequest(f"The form has the field {name} twice.", param=name)
            else:
                found[name] = self._value(name, text)
        if not repeated:
            raise InvalidRequest(f"{self.required} is missing: it is required in a form.", param=self.required)
        return {**found, self.required: repeated[0] if len(repeated) == 1 else repeated}

    def _value(self, name: str, text: str) -> FormValue:
        """A text that is not an integer is left for the schema to refuse."""
        return int(text) if name in self.integers and INTEGER.fullmatch(text) else text


def _pairs(body: bytes) -> list[tuple[str, str]]:
    if body.count(b"&") >= MAX_FORM_FIELDS:
        raise InvalidRequest(f"The form has more than {MAX_FORM_FIELDS} fields.")
    if not body:
        raise InvalidRequest("The form is empty.")
    for field in body.split(b"&"):
        if b"=" not in field:
            name = echo(field.decode(errors="replace"))
            raise InvalidRequest(f"The form's field {name} has no value. Write fields as NAME=VALUE, with & between.")
    try:
        return parse_qsl(body.decode(), keep_blank_values=True, errors="strict")
    except UnicodeDecodeError:
        raise InvalidRequest("The form is not UTF-8.") from None
