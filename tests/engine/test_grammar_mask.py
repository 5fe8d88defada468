"""What following a grammar promises."""

from __future__ import annotations

import itertools
import json
import random
import re

import numpy as np
import pytest
import torch

from server.engine.grammar import GrammarCompiler
from server.engine.processors.base import Start
from server.engine.processors.grammar import GrammarMask
from server.protocol import SamplingParams
from server.vocabulary import TokenBytes
from tests.engine.grammar_driving import END, Words, allowed, lark, processor, start
from tests.tiny_tokenizers import tokenizer_files

PIECES = [
    "a",
    "b",
    "c",
    "ab",
    "bc",
    "abc",
    "ca",
    "cab",
    "d",
    "好",
    "é",
    b"\xe5",
    b"\xa5",
    b"\xbd",
    b"\xc3",
    b"\xa9",
    " ",
]
REGEXES = [
    "[ab]{1,4}",
    "(ab){0,2}c?",
    "a|abc|好",
    "(a|bc){2}d?",
    "[cdé好]{2}",
    "b?(é|好){1,3}a",
    "(?:c|ab|cab) a",
]
CHOICES = [["ab", "abc"], ["a", "abca", "abcd"], ["好a", "好é", "好"], ["a b", "c d"], ["", "a"]]


def members(regex: str, longest: int = 5) -> list[bytes]:
    """Every text of the language up to a length, found by trying all texts."""
    texts = ("".join(text) for n in range(longest + 1) for text in itertools.product("abcd é好", repeat=n))
    return [text.encode() for text in texts if re.fullmatch(regex, text)]


def expected(language: list[bytes], text: bytes, vocabulary: Words | TokenBytes, vocab_size: int) -> list[int]:
    """Tokens that keep the text a beginning of one in the language, looked up one by one."""
    found = [END] if text in language else []
    for token_id in range(1, vocab_size):
        piece = vocabulary.token_bytes(token_id)
        if piece and any(member.startswith(text + piece) for member in language):
            found.append(token_id)
    return found


def check_walks(language: list[bytes], grammar: str, vocabulary: Words | TokenBytes, vocab_size: int) -> None:
    for seed in range(6):
        draw = random.Random(seed)
        rule = processor(vocabulary, grammar, vocab_size=vocab_size)
        text = b""
        while True:
            want = expected(language, text, vocabulary, vocab_size)
            assert allowed(rule, vocab_size=vocab_size) == [want], text
            assert rule.problem is None
            going_on = [token_id for token_id in want if token_id != END]
            if not going_on:
                break
            token_id = draw.choice(going_on)
            rule.accept(token_id)
            text += vocabulary.token_bytes(token_id)


@pytest.mark.parametrize("regex", REGEXES)
def test_exactly_the_tokens_that_keep_a_regex_within_reach_are_allowed(regex: str) -> None:
    vocabulary = Words(PIECES)
    check_walks(members(regex), lark(f"start: /{regex}/"), vocabulary, len(vocabulary))


@pytest.mark.parametrize("choices", CHOICES)
def test_exactly_the_tokens_that_keep_a_choice_within_reach_are_allowed(choices: list[str]) -> None:
    vocabulary = Words(PIECES)
    language = [choice.encode() for choice in choices]
    check_walks(language, lark(f"start: {' | '.join(map(json.dumps, choices))}"), vocabulary, len(vocabulary))


@pytest.mark.parametrize("kind", ["byte_level", "byte_fallback", "byte_fallback_strip", "metaspace"])
def test_masks_are_exact_whatever_the_tokenizer(kind: str) -> None:
    vocabulary = TokenBytes(tokenizer_files(kind), 500)
    choices = ["The miller", "every morning", "naïve cafés", "The river runs"]
    grammar = lark(f"start: {' | '.join(json.dumps(choice) for choice in choices)}")
    check_walks([choice.encode() for choice in choices], grammar, vocabulary, 500)


def test_two_tokens_of_the_same_text_are_both_allowed() -> None:
    rule = processor(Words(["a", "b", "a"]), lark('start: "ab"'))
    assert allowed(rule, vocab_size=5) == [[2, 4]]


def test_every_end_token_is_allowed_where_the_text_is_complete_and_nowhere_else() -> None:
    vocabulary = Words(["a", "b"], num_special=4)
    rule = processor(vocabulary, lark("start: /ab?/"), end_token_ids=(0, 2), stop_token_ids=(3,))
    assert allowed(rule, vocab_size=6) == [[4]]
    rule.accept(4)
    assert allowed(rule, vocab_size=6) == [[0, 2, 3, 5]]
    rule.accept(5)
    assert allowed(rule, vocab_size=6) == [[0, 2, 3]]


def test_a_stop_token_with_text_is_allowed_where_its_text_is() -> None:
    vocabulary = Words(["a", "b"])
    rule = processor(vocabulary, lark('start: "ab"'), stop_token_ids=tuple(vocabulary.ids("b")))
    assert allowed(rule, vocab_size=4) == [vocabulary.ids("a")]
    rule.accept(vocabulary.ids("a")[0])
    assert allowed(rule, vocab_size=4) == [vocabulary.ids("b")]
    rule.accept(vocabulary.ids("b")[0])
    assert allowed(rule, vocab_size=4) == [[END]]


def test_rows_of_the_model_beyond_the_tokenizer_are_never_chosen() -> None:
    rule = processor(Words(["a", "b"]), lark("start: /[^c]+/"), vocab_size=70)
    assert allowed(rule, vocab_size=70) == [[2, 3]]
    rule.accept(2)
    assert allowed(rule, vocab_size=70) == [[0, 2, 3]]


def test_a_fork_goes_its_own_way() -> None:
    vocabulary = Words(["a", "b", "c"])
    parent = processor(vocabulary, lark('start: "ab" | "ac" "a"'))
    parent.accept(2)
    children = [parent.fork(), parent.fork()]
    for child, token_id in zip(children, (3, 4), strict=True):
        child.accept(token_id)
    assert allowed(parent, *children, vocab_size=5) == [[3, 4], [END], [2]]


def test_a_fork_of_a_row_whose_mask_is_being_computed_has_that_mask() -> None:
    parent = processor(Words(["a", "b", "c"]), lark("start: /[ab]c/"))
    GrammarMask.prepare([parent])
    child = parent.fork()
    assert allowed(parent, child, vocab_size=5) == [[2, 3], [2, 3]]


def test_a_sequence_that_went_back_or_came_back_allows_what_it_did() -> None:
    vocabulary = Words(PIECES)
    compiler = GrammarCompiler(vocabulary, len(vocabulary))
    grammar = lark("start: /(ab|bc|好){3,5}/")
    rule = GrammarMask.for_sequence(start(compiler, grammar))
    seen, output_ids, draw = [], [], random.Random(7)
    for _ in range(8):
        [ids] = allowed(rule, vocab_size=len(vocabulary))
        seen.append(ids)
        output_ids.append(draw.choice([token_id for token_id in ids if token_id != END] or [END]))
        rule.accept(output_ids[-1])
        if output_ids[-1] == END:
            break
    for length in reversed(range(len(seen))):
        again = GrammarMask.for_sequence(start(compiler, grammar, output_ids[:length]))
        assert allowed(again, vocab_size=len(vocabulary)) == [seen[length]]


def test_masks_that_were_prepared_are_those_that_were_not() -> None:
    vocabulary = Words(PIECES)
    rules = [processor(vocabulary, lark(f"start: /{regex}/")) for regex in REGEXES]
    twins = [rule.fork() for rule in rules]
    GrammarMask.prepare(rules[::2])
    assert allowed(*rules, vocab_size=len(vocabulary)) == allowed(*twins, vocab_size=len(vocabulary))


def test_a_prepared_mask_that_nobody_applied_is_not_taken_for_the_next_token() -> None:
    rule = processor(Words(["a", "b"]), lark('start: "ab"'))
    GrammarMask.prepare([rule])
    rule.accept(2)
    assert allowed(rule, vocab_size=4) == [[3]]


def test_other_rows_are_left_as_they_are() -> None:
    rules = [processor(Words(["a", "b"]), lark(f'start: "{text}"')) for text in "aba"]
    logits_SV = torch.arange(24, dtype=torch.float32).view(6, 4)
    before = logits_SV.clone()
    GrammarMask.apply(logits_SV, [0, 2, 3], rules)
    assert torch.equal(logits_SV[[1, 4, 5]], before[[1, 4, 5]])
    for row, kept in ((0, 2), (2, 3), (3, 2)):
        assert logits_SV[row].isfinite().nonzero().flatten().tolist() == [kept]
        assert logits_SV[row, kept] == before[row, kept]


def test_without_an_end_token_the_sequence_ends_with_the_last_token_of_the_text() -> None:
    rule = processor(Words(["a", "b"]), lark("start: /aba{0,1}/"), end_token_ids=())
    ends = []
    for token_id in (2, 3, 2):
        ends.append(rule.ends_with(token_id))
        rule.accept(token_id)
        assert rule.ends_sequence == ends[-1]
    assert ends == [False, False, True]


def test_with_an_end_token_the_grammar_ends_nothing_itself() -> None:
    rule = processor(Words(["a"]), lark('start: "a"'))
    assert not rule.ends_with(2)
    rule.accept(2)
    assert not rule.ends_sequence


def test_a_text_that_the_tokens_cannot_write_is_a_problem_of_that_row_alone() -> None:
    vocabulary = Words(["a", "b"])
    good, bad = (processor(vocabulary, lark(f'start: "{text}"')) for text in ("aa", "ac"))
    for rule in (good, bad):
        rule.accept(2)
    assert allowed(good, bad, vocab_size=4) == [[2], []]
    assert good.problem is None
    assert "cannot write" in bad.problem


@pytest.mark.parametrize("type_", ["string", "integer"])
def test_a_grammar_with_too_many_ways_to_go_on_is_told_to_be_too_complex(type_: str) -> None:
    schema = {"type": "object", "properties": {f"p{i}": {"type": type_} for i in range(900)}}
    vocabulary = Words([bytes([byte]) for byte in range(256)])
    rule = processor(vocabulary, lark(f"start: %json {json.dumps(schema)}"))
    allowed(rule, vocab_size=len(vocabulary))
    rule.accept(vocabulary.ids("{")[0])
    assert allowed(rule, vocab_size=len(vocabulary)) == [[]]
    assert "too complex" in str(rule.problem)


def test_a_request_without_a_grammar_has_no_such_rule() -> None:
    plain = Start(
        params=SamplingParams(max_new_tokens=4),
        prompt_ids=np.array([1]),
        output_ids=np.array([], dtype=np.int64),
        ending_ids=frozenset(),
        max_tokens=5,
    )
    assert GrammarMask.for_sequence(plain) is None
