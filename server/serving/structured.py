"""Structured output: a client's grammar becomes the text that the worker's engine follows, checked before it is sent.

The types are those of Text Generation Inference's `grammar` field and three more. What the compiler makes of a
grammar is tried in the sandbox, so that no grammar can stop the server or a model.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping
from hashlib import blake2b
from typing import Any, Protocol
from weakref import WeakValueDictionary

from server import caller
from server.errors import InvalidParameter, SandboxFailure, SandboxTimeout, UnknownParameter, UnsupportedGrammar
from server.sentences import Words, sentence
from server.serving.json_schemas import parsed, schema_text

MAX_REGEX_BYTES = 1024
MAX_LARK_BYTES = 16 * 1024
MAX_CHOICES = 1_000
MAX_CHOICE_BYTES = 64 * 1024
"""All choices together."""
CHECK_LIMIT_S = 2.0
MAX_CACHE_BYTES = 8 * 1024 * 1024
VERDICT_BYTES = 256
"""What a remembered verdict takes besides its message."""
SUBJECT = "The grammar"
"""What most verdicts begin with."""
FORCE_NOTHING = '%llguidance {"no_forcing": true}\n'

_LARK_LITERALS = re.compile(r'"(?:\\.|[^"\\\n])*"|(?://|#)[^\n]*|/(?:\\.|[^/\\\n])+/[a-z]*')
_LARK_OPTIONS = re.compile(r"\b(temperature|max_tokens|stop|stop_capture)\s*=|%llguidance\b(?!\s*\{\s*\})")


class Sandbox(Protocol):
    """What is asked of `client.sandbox.Sandbox`."""

    async def call(self, function: str, *arguments: Any, timeout_s: float = 2.0) -> Any: ...


class Grammars:
    """Makes and checks grammars; remembers what it found of those checked last, by a hash of each."""

    def __init__(self, sandbox: Sandbox, *, max_cache_bytes: int = MAX_CACHE_BYTES) -> None:
        self._sandbox = sandbox
        self._max_cache_bytes = max_cache_bytes
        self._verdicts: OrderedDict[bytes, str | None] = OrderedDict()
        """By hash: what is wrong with the grammar."""
        self.num_cached_bytes = 0
        self._locks: WeakValueDictionary[tuple[str, bytes], asyncio.Lock] = WeakValueDictionary()
        """By caller and hash: equal grammars that come together are checked once for each caller."""

    async def text(self, grammar: Mapping[str, Any]) -> str:
        """`SamplingParams.grammar` of a client's grammar. Raises for one that cannot be followed, and says why."""
        # Milliseconds for a large schema.
        text = await asyncio.to_thread(grammar_text, grammar)
        problem = await self._verdict(text)
        if problem is not None:
            raise UnsupportedGrammar(_named(problem))
        return text

    async def _verdict(self, text: str) -> str | None:
        key = blake2b(text.encode(), digest_size=32).digest()
        async with self._locks.setdefault((caller.current().id, key), asyncio.Lock()):
            if key not in self._verdicts:
                self._remember(key, await self._check(text))
            self._verdicts.move_to_end(key)
            return self._verdicts[key]

    async def _check(self, text: str) -> str | None:
        try:
            problem: str | None = await self._sandbox.call("check_grammar", text, timeout_s=CHECK_LIMIT_S)
        except SandboxTimeout:
            problem = f"{SUBJECT} takes longer than {CHECK_LIMIT_S:g} s to compile. Make it smaller or simpler."
        except SandboxFailure as error:
            # Not kept: it may be the machine's fault.
            words = sentence("{grammar} cannot be compiled. {problem}", problem=error.message)
            raise UnsupportedGrammar(words) from None
        return problem

    def _remember(self, key: bytes, problem: str | None) -> None:
        if key not in self._verdicts:
            self.num_cached_bytes += VERDICT_BYTES + len(problem or "")
        self._verdicts[key] = problem
        while self.num_cached_bytes > self._max_cache_bytes:
            _, oldest = self._verdicts.popitem(last=False)
            self.num_cached_bytes -= VERDICT_BYTES + len(oldest or "")


def _named(problem: str) -> Words:
    """A verdict under the name of the field that the grammar came in."""
    rest = problem.removeprefix(SUBJECT)
    return problem if rest == problem else sentence("{grammar}{rest}", rest=rest)


def grammar_text(grammar: Mapping[str, Any]) -> str:
    """The grammar in llguidance's JSON form; its limits are checked, its meaning is not."""
    kind = grammar.get("type")
    make = _MAKERS.get(kind) if isinstance(kind, str) else None
    if make is None:
        raise InvalidParameter("grammar.type", kind, f"must be one of {', '.join(_MAKERS)}")
    fields = ["type"] if kind == "json_object" else ["type", "value"]
    for name in grammar:
        if name not in fields:
            raise UnknownParameter(f"grammar.{name}", [f"grammar.{field}" for field in fields])
    if "value" in fields and "value" not in grammar:
        raise InvalidParameter("grammar", dict(grammar), "must have a type and a value")
    return json.dumps({"grammars": [{"lark_grammar": FORCE_NOTHING + make(grammar.get("value"))}]})


def _json(value: Any, field: str = "grammar.value") -> str:
    schema = parsed(value, field) if isinstance(value, str) else value
    return f"start: %json {schema_text(schema, field)}\n"


def _json_schema(value: Any) -> str:
    """A schema with a name, which Text Generation Inference takes as well."""
    if not isinstance(value, dict) or "schema" not in value:
        raise InvalidParameter("grammar.value", value, "must be an object with a schema")
    for name in value:
        if name not in ("name", "schema"):
            raise UnknownParameter(f"grammar.value.{name}", ["grammar.value.name", "grammar.value.schema"])
    return _json(value["schema"], "grammar.value.schema")


def _json_object(value: Any) -> str:  # noqa: ARG001
    return _json({"type": "object"})


def _regex(value: Any) -> str:
    regex = _string(value, MAX_REGEX_BYTES)
    if re.search(r"\(\?[a-zA-Z]*x", regex):
        raise InvalidParameter("grammar.value", regex, "must not use the x flag, which ignores white space")
    return f"start: /{''.join(_regex_parts(regex))}/\n"


def _regex_parts(regex: str) -> list[str]:
    """The expression as it stands between slashes in one line."""
    parts = re.findall(r"\\.|[^\\]", regex, re.DOTALL)
    if sum(map(len, parts)) != len(regex):
        raise InvalidParameter("grammar.value", regex, "must not end with a backslash")
    return [_regex_part(part) for part in parts]


def _regex_part(part: str) -> str:
    if part == "/":
        return r"\/"
    character = part[-1]
    return part if character.isprintable() or ord(character) >= 128 else f"\\x{ord(character):02x}"


def _choice(value: Any) -> str:
    if not isinstance(value, list) or not all(isinstance(choice, str) for choice in value):
        raise InvalidParameter("grammar.value", value, "must be a list of strings")
    if not 1 <= len(value) <= MAX_CHOICES:
        raise _refusal("has {count} choices: it must have 1 to {limit}.", count=len(value), limit=MAX_CHOICES)
    if sum(len(_bytes(choice)) for choice in value) > MAX_CHOICE_BYTES:
        raise _refusal("has choices of more than {limit} bytes together.", limit=MAX_CHOICE_BYTES)
    return f"start: {' | '.join(json.dumps(choice) for choice in value)}\n"


def _lark(value: Any) -> str:
    text = _string(value, MAX_LARK_BYTES)
    bare = _LARK_LITERALS.sub(lambda match: " " * len(match[0]), text)
    if "<" in bare:
        raise _refusal("names special tokens (<...>), which are not supported.")
    if option := _LARK_OPTIONS.search(bare):
        raise _refusal("sets {option}, which is not supported.", option=option[0].rstrip(" ="))
    for place in re.finditer(r"%json\b\s*", bare):
        text = _with_checked_schema(text, place.end(), len(text) - len(value))
    return text + "\n"


def _with_checked_schema(text: str, place: int, num_added: int) -> str:
    """The Lark grammar with a schema in it replaced by its checked form."""
    start = place + num_added
    try:
        schema, stop = json.JSONDecoder().raw_decode(text, start)
    except (ValueError, RecursionError):
        raise _refusal("has a %json that is followed by no JSON schema.") from None
    return text[:start] + schema_text(schema, "grammar.value") + text[stop:]


def _string(value: Any, max_bytes: int) -> str:
    if not isinstance(value, str) or not value:
        raise InvalidParameter("grammar.value", value, "must be a non-empty string")
    if len(_bytes(value)) > max_bytes:
        raise _refusal("has more than {limit} bytes.", limit=max_bytes)
    return value


def _bytes(value: str) -> bytes:
    try:
        return value.encode()
    except UnicodeEncodeError:
        raise InvalidParameter("grammar.value", value, "must be valid Unicode text") from None


def _refusal(template: str, **values: Any) -> UnsupportedGrammar:
    return UnsupportedGrammar(sentence("{grammar.value} " + template, **values))


_MAKERS: dict[str, Callable[[Any], str]] = {
    "json": _json,
    "json_schema": _json_schema,
    "json_object": _json_object,
    "regex": _regex,
    "choice": _choice,
    "lark": _lark,
}
