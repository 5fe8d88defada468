"""What compiling grammars promises."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

from server.engine.grammar import BYTES_PER_CHARACTER, GRAMMAR_BYTES, GrammarCompiler
from server.errors import UnsupportedGrammar
from tests.engine.grammar_driving import Words, lark


def until_ready(compiler: GrammarCompiler, grammar: str) -> None:
    deadline_s = time.monotonic() + 30
    while not compiler.ready(grammar):
        compiler.wait(0.05)
        assert time.monotonic() < deadline_s


def test_a_grammar_is_compiled_once_and_beside_the_caller() -> None:
    compiler = GrammarCompiler(Words(["a", "b"]), 4)
    grammar = lark('start: "ab"')
    assert not compiler.ready(grammar)
    assert compiler.has_pending
    until_ready(compiler, grammar)
    assert not compiler.has_pending
    assert compiler.ready(grammar)
    assert compiler.get(grammar) is compiler.get(grammar)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("start: foo", 'unknown name: "foo"'),
        ("start: /(/", "regex parse error"),
        ('start: start "a"', "no text that ends"),
        ('start: "c"', "no text that ends"),
        ('start: %json {"type": "array", "uniqueItems": true}', "uniqueItems"),
    ],
)
def test_what_cannot_be_followed_is_told_in_words_each_time(text: str, message: str) -> None:
    compiler = GrammarCompiler(Words(["a", "b"]), 4)
    for _ in range(2):
        with pytest.raises(UnsupportedGrammar, match="grammar") as raised:
            until_ready(compiler, lark(text))
        assert message in raised.value.message
        assert "\n" not in raised.value.message
    assert not compiler.has_pending


def test_what_nobody_waits_for_is_dropped() -> None:
    compiler = GrammarCompiler(Words(["a"]), 3)
    grammar = lark('start: "a"')
    compiler.ready(grammar)
    compiler.forget(grammar)
    assert not compiler.has_pending
    until_ready(compiler, grammar)


def test_the_least_recently_used_grammar_leaves_a_full_cache() -> None:
    grammars = [lark(f'start: "{"a" * n}"') for n in (1, 2, 3, 4)]
    room = sum(GRAMMAR_BYTES + BYTES_PER_CHARACTER * len(grammar) for grammar in grammars[1:])
    compiler = GrammarCompiler(Words(["a"]), 3, max_cache_bytes=room)
    for grammar in (*grammars[:3], grammars[0], grammars[3]):
        compiler.get(grammar)
    assert compiler.num_cached_bytes <= room
    assert [compiler.ready(grammar) for grammar in grammars] == [True, False, True, True]


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_stays_flat_over_thousands_of_grammars() -> None:
    limit = 20 * GRAMMAR_BYTES
    compiler = GrammarCompiler(Words(["a", *"0123456789"]), 13, max_cache_bytes=limit)
    for i in range(4_000):
        if i == 1_000:
            before = resident_bytes()
        compiler.get(lark(f'start: "a{i}"'))
        assert compiler.num_cached_bytes <= limit
    assert resident_bytes() - before < 16 * 1024 * 1024
