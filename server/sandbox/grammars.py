"""Compiles a grammar to see whether it can be compiled; the result is thrown away."""

from __future__ import annotations

from functools import cache

from llguidance import LLTokenizer

from server.errors import UnsupportedGrammar
from server.grammars import compile_grammar


def check_grammar(grammar: str) -> str | None:
    """What is wrong with a grammar in llguidance's JSON form, in whole sentences; None if a text can follow it."""
    try:
        compile_grammar(_bytes_as_tokens(), grammar)
    except UnsupportedGrammar as error:
        return error.message
    return None


@cache
def _bytes_as_tokens() -> LLTokenizer:
    """Any text can be written with them, so that what is found holds for every model."""
    return LLTokenizer("byte")
