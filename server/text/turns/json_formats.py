"""Formats whose calls are objects in JSON: Hermes' (Qwen, SmolLM), Llama's, and Mistral's two."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

from server.text.turns.calls import (
    Call,
    CallFormat,
    CallScan,
    Found,
    Functions,
    JsonCalls,
    NoCall,
    Verdict,
    call_of,
    checked_call,
    short_hash,
)
from server.text.turns.pieces import CallIds
from server.text.turns.written_json import raw_parts


class HermesFormat(CallFormat):
    """``<tool_call>{"name": ..., "arguments": {...}}</tool_call>``; some models put several into one pair of marks."""

    openings = ("<tool_call>",)
    closings = ("</tool_call>",)
    bare_opening = "{"

    def scan(self, opening: str, functions: Functions) -> CallScan:  # noqa: ARG002
        return JsonCalls(lambda text: _all([call_of(text)]))


class LlamaFormat(CallFormat):
    """``{"name": ..., "parameters": {...}}`` as the whole answer, or behind ``<|python_tag|>``; ``;`` parts several.

    An answer in JSON looks much the same, so a bare object counts only if it names one of the functions and
    has arguments.
    """

    openings = ("<|python_tag|>",)
    closings = (";",)
    bare_opening = "{"
    starts_bare = True

    def scan(self, opening: str, functions: Functions) -> CallScan:
        def parsed(text: str) -> list[Call] | None:
            call = call_of(text, ("parameters", "arguments"))
            if opening:
                return _all([call])
            names = raw_parts(text)[::2]
            has_arguments = '"parameters"' in names or '"arguments"' in names
            return [call] if call is not None and call.name in functions and has_arguments else None

        return JsonCalls(parsed)

    def written(self, name: str, arguments: Any) -> str:
        return json.dumps({"name": name, "parameters": arguments}, ensure_ascii=False)


class MistralFormat(CallFormat):
    """``[TOOL_CALLS][{"name": ..., "arguments": {...}}]``, or since 2025 ``[TOOL_CALLS]name[ARGS]{...}`` for each call.

    Ids of calls have nine letters and digits: the chat templates refuse others.
    """

    openings = ("[TOOL_CALLS]",)
    inner_marks = ("[ARGS]", "[CALL_ID]")
    ID_CHARACTERS = 9

    def scan(self, opening: str, functions: Functions) -> CallScan:  # noqa: ARG002
        return _MistralCalls()

    def ids(self, prefix: str) -> CallIds:
        return lambda index: short_hash(f"{prefix}_{index}", self.ID_CHARACTERS)

    def known_id(self, call_id: str) -> str:
        is_right = len(call_id) == self.ID_CHARACTERS and call_id.isascii() and call_id.isalnum()
        return call_id if is_right else short_hash(call_id, self.ID_CHARACTERS)


class _MistralCalls(CallScan):
    """Both of Mistral's formats: what stands behind the mark tells them apart."""

    NAME = re.compile(
        r"\s*([^\s\[\]{}]{1,128})\s{0,64}(?:\[CALL_ID\][^\[\]{}]{0,64})?(?:\[ARGS\]\s{0,64})?(?=\{)",
    )
    MAY_BECOME_NAME = re.compile(r"\s*[^\s\[\]{}]{1,128}\s{0,64}(?:\[[^{\[]{0,80}){0,2}\Z")

    def __init__(self) -> None:
        self._held = ""
        self._arguments: CallScan | None = None
        self._num_before = 0

    def feed(self, text: str) -> Verdict:
        if self._arguments is not None:
            return self._placed(self._arguments.feed(text))
        self._held += text
        lead = self._held.lstrip()
        if not lead:
            return None
        if lead[0] in "[{":
            self._arguments = JsonCalls(_of_list_or_object, "[{")
            return self._arguments.feed(self._held)
        name = self.NAME.match(self._held)
        if name is not None:
            self._num_before = name.end()
            self._arguments = JsonCalls(lambda text: _all([checked_call(name[1], text)]))
            return self._placed(self._arguments.feed(self._held[name.end() :]))
        return None if self.MAY_BECOME_NAME.match(self._held) else NoCall()

    def _placed(self, verdict: Verdict) -> Verdict:
        return verdict._replace(length=verdict.length + self._num_before) if isinstance(verdict, Found) else verdict


def _of_list_or_object(text: str) -> list[Call] | None:
    return _all(map(call_of, raw_parts(text) if text.startswith("[") else [text]))


def _all(calls: Iterable[Call | None]) -> list[Call] | None:
    """The calls, if all are and there is one."""
    found = list(calls)
    sound = [call for call in found if call is not None]
    return sound if sound and len(sound) == len(found) else None
