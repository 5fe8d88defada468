"""Finds the end of a JSON object or array in a text that comes in pieces, by reading it: strings, escapes, nesting."""

from __future__ import annotations

import re

_IN_STRING = re.compile(r'[^"\\]*')
_LITERAL = re.compile(r"[-+.0-9A-Za-z]*")
_SPACE = " \t\r\n"
# What may come next.
_VALUE, _VALUE_OR_END, _KEY, _KEY_OR_END, _COLON, _COMMA_OR_END = range(6)


class JsonScan:
    """Reads one value that begins with a brace or a bracket. Each character costs constant time.

    It checks the grammar of JSON except for the spelling of numbers and words and the escapes in strings, so that text
    which only begins like JSON is recognised soon. Strings may hold line breaks, as models write them.
    """

    def __init__(self, beginnings: str = "{[") -> None:
        """``beginnings``: what the value may begin with."""
        self.has_failed = False
        """The text is not JSON."""
        self._beginnings = beginnings
        self._open: list[str] = []
        self._next = _VALUE
        self._in_string = False
        self._is_escaped = False
        self._in_literal = False

    def feed(self, text: str, start: int = 0) -> int | None:
        """The index behind the value's last character; None if the value goes on, or the text is not JSON."""
        i = start
        while i < len(text):
            if self._in_string:
                i = self._string(text, i)
                continue
            if self._in_literal:
                i = self._literal(text, i)
                continue
            character = text[i]
            i += 1
            if character in _SPACE:
                continue
            if not self._take(character):
                self.has_failed = True
                return None
            if not self._open:
                return i
        return None

    def _string(self, text: str, i: int) -> int:
        """Where the string, or the text, ends."""
        if self._is_escaped:
            self._is_escaped = False
            return i + 1
        match = _IN_STRING.match(text, i)
        i = len(text) if match is None else match.end()
        if i == len(text):
            return i
        if text[i] == "\\":
            self._is_escaped = True
        else:
            self._in_string = False
        return i + 1

    def _literal(self, text: str, i: int) -> int:
        match = _LITERAL.match(text, i)
        end = i if match is None else match.end()
        self._in_literal = end == len(text)
        return end

    def _take(self, character: str) -> bool:
        """Whether this may come next, outside of strings."""
        if not self._open and character not in self._beginnings:
            return False
        if character in "{[":
            return self._begin(character)
        if character in "}]":
            return self._end(character)
        if character == ",":
            is_right = self._next == _COMMA_OR_END
            self._next = _KEY if self._open[-1] == "{" else _VALUE
            return is_right
        if character == ":":
            is_right, self._next = self._next == _COLON, _VALUE
            return is_right
        return self._scalar(character)

    def _begin(self, character: str) -> bool:
        is_right = self._next in (_VALUE, _VALUE_OR_END)
        self._open.append(character)
        self._next = _KEY_OR_END if character == "{" else _VALUE_OR_END
        return is_right

    def _end(self, character: str) -> bool:
        if self._next not in (_COMMA_OR_END, _VALUE_OR_END, _KEY_OR_END):
            return False
        self._next = _COMMA_OR_END
        return self._open.pop() + character in ("{}", "[]")

    def _scalar(self, character: str) -> bool:
        if character == '"':
            self._in_string = True
            if self._next in (_KEY, _KEY_OR_END):
                self._next = _COLON
                return True
        elif _LITERAL.fullmatch(character):
            self._in_literal = True
        else:
            return False
        is_right, self._next = self._next in (_VALUE, _VALUE_OR_END), _COMMA_OR_END
        return is_right
