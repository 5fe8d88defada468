"""Grammars in llguidance's JSON form: what one may cost, and the one way in which it is compiled.

The sandbox compiles a client's grammar to check it and the worker to follow it, within the same limits. Every limit is
a count of operations, so that it does not depend on the machine.
"""

from __future__ import annotations

import re

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from server.errors import UnsupportedGrammar

LIMITS = LLParserLimits(
    max_items_in_row=2_000,
    initial_lexer_fuel=1_000_000,
    step_lexer_fuel=200_000,
    step_max_items=50_000,
    max_lexer_states=50_000,
    max_grammar_size=500_000,
    verbose_errors=False,
)
"""About 20 ms to compile, 15 ms for one token's mask and 100 MB, at the very most."""

MAX_MESSAGE_CHARACTERS = 300
_PLACE = re.compile(r"^(?:at )?\d+\(\d+\): ")
_ONE_OF = "oneOf is supported only where its choices exclude one another, by a const or a type, say. Use anyOf."


def compile_grammar(tokenizer: LLTokenizer, grammar: str) -> LLMatcher:
    """A matcher at the beginning of the grammar. Raises where there is none, or where no output can follow it."""
    matcher = LLMatcher(tokenizer, grammar, log_level=0, limits=LIMITS)
    if matcher.is_error():
        raise UnsupportedGrammar(explain(matcher.get_error()))
    matcher.compute_bitmask()
    if matcher.is_error():
        raise UnsupportedGrammar(explain(matcher.get_error()))
    return matcher


def explain(error: str) -> str:
    """llguidance's message as a sentence for the client: without its listing of the grammar, in ASCII, cut.

    >>> explain("at 2(8): unknown name: \\"foo\\"\\n   1 | ...\\n   2 | start: foo")
    'The grammar is not supported: unknown name: "foo".'
    """
    if error.startswith("NoExtension"):
        return "No output can follow the grammar: it has no text that ends."
    if "TooComplex" in error:
        return "The grammar is too complex. Make it smaller, or its repetitions shorter."
    if error.startswith("panic"):
        return "The grammar cannot be compiled."
    if "oneOf constraints are not supported" in error:
        return _ONE_OF
    lines = error.partition("\n   1 | ")[0].replace("<non-verbose/>", "").split("\n")
    lines = [line.strip(" ^") for line in lines]
    text = _PLACE.sub("", " ".join(line for line in lines if line)).removeprefix("failed to compile JSON schema: ")
    text = text.encode("ascii", "backslashreplace").decode("ascii")
    text = text if len(text) <= MAX_MESSAGE_CHARACTERS else text[: MAX_MESSAGE_CHARACTERS - 3] + "..."
    return f"The grammar is not supported: {text.rstrip('.')}."
