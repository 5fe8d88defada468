"""Templates to text, with the places of what comes from the template and of what comes from the client."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jinja2

from server.sandbox import tracked
from server.sandbox.environment import compiled, names_used, options_of
from server.sandbox.tracked import TEMPLATE, Source, Tracked, literal

MAX_CHARACTERS = 2 * 1024 * 1024
"""Of one rendered text."""
MAX_RUNS = 65_536
"""How often a rendered text may change between what the template wrote and what the client did."""
OWN_NAMES = frozenset({"messages", "tools", "documents", "add_generation_prompt", "strftime_now"})
"""What every chat template may use, and no client may set."""
MISTAKES = (jinja2.TemplateError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError)
"""What rendering raises where a template and its values do not fit."""


def check_template(text: str, names: Sequence[str], layout: str | None, fields: Sequence[str]) -> None:
    """Refuse a template that is broken, or that uses other names than those declared, or not all of them."""
    own = [*names, "examples"] if layout is not None else names
    _check_names(text, own, "the text")
    if layout is not None:
        _check_names(layout, fields, "the layout of an example")


def _check_names(text: str, declared: Sequence[str], where: str) -> None:
    compiled(text, is_strict=True)
    used = names_used(text, is_strict=True)
    if unknown := sorted(used - set(declared)):
        raise ValueError(f"{where} uses {unknown[0]}, which is not declared.")
    if unused := sorted(set(declared) - used):
        raise ValueError(f"{where} does not use {unused[0]}, which is declared.")


def render_template(
    text: str, variables: dict[str, Any], layout: str | None, separator: str, examples: list[dict[str, Any]]
) -> dict[str, Any]:
    """The text with its variables; the examples, each in the layout, are one of them."""
    source = Source()
    values = source.track(variables, "")
    if layout is not None:
        shown = [_rendered(layout, fields, is_strict=True) for fields in source.track(examples, "examples")]
        values["examples"] = literal(separator).join(shown)
    return _answer(_rendered(text, values, is_strict=True), source)


def check_chat(text: str) -> None:
    """Refuse a chat template that is broken."""
    compiled(text, is_strict=False)


def render_chat(
    text: str,
    messages: list[dict[str, Any]],
    options: dict[str, Any],
    special_tokens: dict[str, str],
    now: str,
    add_generation_prompt: bool,
    tools: list[dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """A chat as its model wants it. ``now`` is the time that the template is told, in ISO 8601."""
    known = sorted(name for name in options_of(text) - OWN_NAMES if not name.endswith("_token"))
    for name in options:
        if name not in known:
            raise ValueError(_unknown_option(name, known))
    source = Source()
    values = {
        **source.track(options, "options"),
        **{name: literal(token) for name, token in special_tokens.items()},
        "messages": source.track(messages, "messages"),
        "tools": source.track(tools, "tools") if tools else None,
        "documents": None,
        "add_generation_prompt": add_generation_prompt,
        "strftime_now": _clock(now),
    }
    return _answer(_rendered(text, values, is_strict=False), source)


def _unknown_option(name: str, known: Sequence[str]) -> str:
    uses = f"It uses {', '.join(known)}." if known else "It uses none."
    return f"{name!r} is not an option of this model's chat template. {uses}"


def _clock(now: str) -> Callable[[str], str]:
    """The same time for the whole prompt, and not the sandbox's own."""
    moment = datetime.datetime.fromisoformat(now)
    return lambda pattern: literal(moment.strftime(pattern))


def _rendered(text: str, values: Mapping[str, Any], *, is_strict: bool) -> Tracked:
    pieces: list[str] = []
    num_characters = 0
    try:
        for piece in compiled(text, is_strict=is_strict).generate(values):
            pieces.append(piece)
            num_characters += len(piece)
            if num_characters > MAX_CHARACTERS:
                raise ValueError(f"the text is longer than the limit of {MAX_CHARACTERS} characters")
    except RecursionError:
        raise
    except MISTAKES as error:
        raise ValueError(f"The template cannot be rendered: {error}.".replace("..", ".")) from None
    return tracked.concat(pieces)


def _answer(text: Tracked, source: Source) -> dict[str, Any]:
    runs = tracked.runs(text)
    if len(runs) > MAX_RUNS:
        raise ValueError(f"The template splits the input into more than {MAX_RUNS} pieces.")
    places = [(start, stop, *source.place(origin)) for start, stop, origin in runs if origin >= 0]
    return {
        "text": str.__str__(text),
        "template_spans": [(start, stop) for start, stop, origin in runs if origin == TEMPLATE],
        "variable_spans": [(start, stop, source.paths[text], offset) for start, stop, text, offset in places],
    }
