"""jinja2 as chat templates need it, in its own sandbox, and with every string of a template tracked.

What a template gives is, to the character, what transformers' renderer gives.
"""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jinja2
import jinja2.ext
from jinja2 import meta, nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from server.sandbox import tracked
from server.sandbox.tracked import Tracked

LEFT_OUT_FILTERS = ("random",)
LEFT_OUT_GLOBALS = ("lipsum",)
"""A prompt is made of what was sent, and of nothing random."""


class TrackingGenerator(CodeGenerator):
    """Writes every string constant as the template's own text."""

    def visit_Const(self, node: nodes.Const, frame: Frame) -> None:  # noqa: N802
        value = node.as_const(frame.eval_ctx)
        if isinstance(value, str):
            self.write(f"environment.literal({value!r})")
        else:
            super().visit_Const(node, frame)

    def visit_TemplateData(self, node: nodes.TemplateData, frame: Frame) -> None:  # noqa: ARG002, N802
        self.write(f"environment.literal({node.data!r})")

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:  # noqa: N802
        self.write("environment.concat(map(str, (")
        for child in node.nodes:
            self.visit(child, frame)
            self.write(", ")
        self.write(")))")

    def _output_const_repr(self, group: Iterable[Any]) -> str:
        return f"environment.literal({''.join(group)!r})"


class TemplateEnvironment(ImmutableSandboxedEnvironment):
    """Where templates are compiled and run."""

    code_generator_class = TrackingGenerator
    concat = staticmethod(tracked.concat)
    literal = staticmethod(tracked.literal)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        checked = super().wrap_str_format(value)
        if checked is None:
            return None

        def wrapper(*values: Any, **named: Any) -> str:
            result = str.__str__(checked(*values, **named))
            # The one argument of format_map is not followed.
            return tracked.formatted(value.__self__, values, named, result) if value.__name__ == "format" else result

        return wrapper


class Generation(jinja2.ext.Extension):
    """``{% generation %}`` marks what an assistant said, for training; here it says nothing."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


class SafeNamespace(Namespace):
    """Refuses names that begin with an underscore, as transformers' does."""

    def __init__(*args: Any, **named: Any) -> None:
        self, *rest = args
        values = dict(*rest, **named)
        for name in values:
            _check_name(name)
        Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError("a namespace has no name that begins with an underscore")


class SafeDict:
    """``dict`` as a function, and nothing of the class."""

    def __call__(self, *args: Any, **named: Any) -> dict[Any, Any]:
        return dict(*args, **named)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


def raise_exception(message: str) -> None:
    raise jinja2.TemplateError(str(message))


def to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


@jinja2.pass_environment
def join(environment: jinja2.Environment, value: Iterable[Any], d: str = "", attribute: str | int | None = None) -> str:
    items = value if attribute is None else map(jinja2.filters.make_attrgetter(environment, attribute), value)
    separator = str(d)
    return (separator if isinstance(separator, Tracked) else Tracked(separator)).join(map(str, items))


def replace(value: Any, old: str, new: str, count: int | None = None) -> str:
    return str(value).replace(str(old), str(new), -1 if count is None else count)


def percent_format(value: Any, *values: Any, **named: Any) -> str:
    if values and named:
        raise jinja2.exceptions.FilterArgumentError("can't handle positional and keyword arguments at the same time")
    result: str = str(value) % (named or values)
    return result


def indent(text: Any, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    text = str(text)
    lead = width if isinstance(width, str) else tracked.literal(" " * width)
    lines = (text if isinstance(text, Tracked) else Tracked(text)).__add__("\n").splitlines()
    rest = [lead + line if line or blank else line for line in lines[1:]]
    return (lead if first else "") + tracked.literal("\n").join([lines[0], *rest])


@functools.cache
def environment(*, is_strict: bool) -> TemplateEnvironment:
    """``is_strict``: a name that is not there is an error, not an empty text."""
    made = TemplateEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[Generation, jinja2.ext.loopcontrols],
        undefined=jinja2.StrictUndefined if is_strict else jinja2.Undefined,
        # A list that was folded into a constant would hold strings that are not tracked.
        optimized=False,
    )
    made.filters |= {"tojson": to_json, "join": join, "replace": replace, "format": percent_format, "indent": indent}
    made.filters |= {"safe": str}
    for name in LEFT_OUT_FILTERS:
        del made.filters[name]
    for name in LEFT_OUT_GLOBALS:
        del made.globals[name]
    made.globals |= {"raise_exception": raise_exception, "dict": SafeDict(), "namespace": SafeNamespace}
    return made


@functools.lru_cache(maxsize=64)
def compiled(text: str, *, is_strict: bool) -> jinja2.Template:
    """The template; a mistake in it is a ValueError that names the line."""
    with _lines_named():
        return environment(is_strict=is_strict).from_string(text)


@functools.lru_cache(maxsize=64)
def names_used(text: str, *, is_strict: bool) -> frozenset[str]:
    """What a template takes from outside, besides the functions that every template has."""
    found = meta.find_undeclared_variables(_parsed(text, is_strict=is_strict))
    return frozenset(found) - set(environment(is_strict=is_strict).globals)


@functools.lru_cache(maxsize=64)
def options_of(text: str) -> frozenset[str]:
    """The names that a chat template leaves to its caller.

    Not those that it sets itself, in one branch or all, unless it asks whether the caller has given them.
    """
    tree = _parsed(text, is_strict=False)
    own = {name.name for name in tree.find_all(nodes.Name) if name.ctx == "store"}
    tests = (test.node for test in tree.find_all(nodes.Test) if test.name in ("defined", "undefined"))
    filters = (filter_.node for filter_ in tree.find_all(nodes.Filter) if filter_.name in ("default", "d"))
    asked = {node.name for node in (*tests, *filters) if isinstance(node, nodes.Name)}
    return names_used(text, is_strict=False) - (own - asked)


def _parsed(text: str, *, is_strict: bool) -> nodes.Template:
    with _lines_named():
        return environment(is_strict=is_strict).parse(text)


@contextlib.contextmanager
def _lines_named() -> Iterator[None]:
    try:
        yield
    except jinja2.TemplateSyntaxError as error:
        raise ValueError(f"Line {error.lineno} of the template: {error.message}.".replace("..", ".")) from None
