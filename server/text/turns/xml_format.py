"""Qwen3-Coder's calls: a tag for the function and one for each parameter, whose value is plain text."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from server.text.turns.calls import CallFormat, CallScan, Found, Functions, NoCall, Verdict, checked_call
from server.text.turns.parameter_types import parameter_types

FUNCTION, FUNCTION_END = "<function=", "</function>"
PARAMETER, PARAMETER_END = "<parameter=", "</parameter>"
MAX_NAME_CHARACTERS = 256
PYTHON_WORDS = {"True": "true", "False": "false", "None": "null"}
"""How these models sometimes write what JSON writes in small letters."""


class XmlFormat(CallFormat):
    """``<tool_call><function=name><parameter=key>value</parameter></function></tool_call>``.

    The outer marks may be missing. A value is read by its parameter's schema: text where that allows text, else JSON.
    """

    openings = ("<tool_call>", FUNCTION)
    closings = ("</tool_call>",)
    bare_opening = FUNCTION

    def scan(self, opening: str, functions: Functions) -> CallScan:
        return _XmlCall(functions, is_named=opening == FUNCTION)

    def written(self, name: str, arguments: Any) -> str:
        named = arguments if isinstance(arguments, dict) else {}
        shown = {key: value if isinstance(value, str) else json.dumps(value) for key, value in named.items()}
        parameters = [f"{PARAMETER}{key}>\n{value}\n{PARAMETER_END}" for key, value in shown.items()]
        return "\n".join(["<tool_call>", f"{FUNCTION}{name}>", *parameters, FUNCTION_END, "</tool_call>"])


class _XmlCall(CallScan):
    """A value ends at the end tag that another parameter or the function's end follows: it may hold the tag itself."""

    def __init__(self, functions: Functions, *, is_named: bool) -> None:
        self._functions = functions
        self._held = "" if not is_named else FUNCTION
        self._num_added = len(self._held)
        """Characters of `_held` that were not fed."""
        self._place = 0
        """Up to here the text is understood."""
        self._name: str | None = None
        self._key: str | None = None
        self._search_from = 0
        self._arguments: dict[str, str] = {}
        """Each value as JSON."""

    def feed(self, text: str) -> Verdict:
        self._held += text
        while True:
            step = self._in_value() if self._key is not None else self._between()
            if step is None or isinstance(step, Found | NoCall):
                return step

    def _behind(self, place: int) -> str:
        """The next characters that are no white space, as many as a tag has."""
        while place < len(self._held) and self._held[place].isspace():
            place += 1
        return self._held[place : place + len(FUNCTION_END)]

    def _between(self) -> Verdict | bool:
        """Outside of values: the next tag. True once one was read."""
        start = self._place
        while start < len(self._held) and self._held[start].isspace():
            start += 1
        tags = (FUNCTION,) if self._name is None else (PARAMETER, FUNCTION_END)
        tag = next((tag for tag in tags if self._held.startswith(tag, start)), None)
        if tag is None:
            rest = self._held[start : start + len(FUNCTION_END)]
            return None if any(known.startswith(rest) for known in tags) else NoCall()
        if tag == FUNCTION_END:
            return self._call(start + len(tag))
        end = self._held.find(">", start, start + MAX_NAME_CHARACTERS)
        if end < 0:
            return None if len(self._held) - start < MAX_NAME_CHARACTERS else NoCall()
        name = self._held[start + len(tag) : end].strip()
        if tag == FUNCTION:
            self._name = name
        else:
            self._key = name
        self._place = self._search_from = end + 1
        return True

    def _in_value(self) -> Verdict | bool:
        while True:
            end = self._held.find(PARAMETER_END, self._search_from)
            if end < 0:
                self._search_from = max(self._place, len(self._held) - len(PARAMETER_END) + 1)
                return None
            behind = self._behind(end + len(PARAMETER_END))
            if behind.startswith((PARAMETER, FUNCTION_END)):
                self._take(self._held[self._place : end])
                self._place = end + len(PARAMETER_END)
                return True
            if any(tag.startswith(behind) for tag in (PARAMETER, FUNCTION_END)):
                self._search_from = end
                return None
            self._search_from = end + len(PARAMETER_END)

    def _take(self, value: str) -> None:
        assert self._key is not None
        parameters = self._functions.get(self._name or "", {})
        text = value.removeprefix("\n").removesuffix("\n")
        self._arguments[self._key] = _read(text, parameters, self._key)
        self._key = None

    def _call(self, end: int) -> Verdict:
        members = [f"{json.dumps(key, ensure_ascii=False)}: {value}" for key, value in self._arguments.items()]
        try:
            call = checked_call(self._name or "", f"{{{', '.join(members)}}}")
        except (ValueError, RecursionError):
            return NoCall()
        return NoCall() if call is None or not call.name else Found([call], end - self._num_added)


def _read(text: str, parameters: Mapping[str, Any], key: str) -> str:
    """A value as JSON."""
    types = parameter_types(parameters, key)
    word = text.strip()
    if "null" in types and word in ("null", "None"):
        return "null"
    if types and "string" not in types:
        if word in PYTHON_WORDS:
            return PYTHON_WORDS[word]
        with suppress(ValueError, RecursionError):
            json.loads(text, strict=False)
            return word
    return json.dumps(text, ensure_ascii=False)
