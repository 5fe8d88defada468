"""Readers of tool calls find the same in a text however it is cut into pieces."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.api.openai.calls import CallDelta, ChosenCall, HermesCalls, OneCall, Piece, PlainText, Reader

READERS: dict[str, Callable[[], Reader]] = {
    "plain": PlainText,
    "one": lambda: OneCall("count", "call_{}".format),
    "chosen": lambda: ChosenCall("call_{}".format),
    "hermes": lambda: HermesCalls("call_{}".format),
}
CALL = '<tool_call>\n{"name": "count", "arguments": {"sacks": 3}}\n</tool_call>'
CHOSEN = '{"name": "count", "arguments": {"of": {"what": "}\\"} "}}}'


def read(reader: Reader, parts: Sequence[str], *, is_cut: bool = False) -> tuple[str, list[tuple[str, str, str]]]:
    """The text, and each call's id, name and arguments."""
    pieces: list[Piece] = [piece for part in parts for piece in reader.push(part)]
    pieces += reader.finish(is_cut)
    text = "".join(piece for piece in pieces if isinstance(piece, str))
    deltas = [piece for piece in pieces if isinstance(piece, CallDelta)]
    firsts = [delta for delta in deltas if delta.id is not None]
    assert [delta.index for delta in firsts] == list(range(reader.num_calls))
    calls = []
    for first in firsts:
        mine = [delta for delta in deltas if delta.index == first.index]
        assert mine[0] is first and all(delta.id is None and delta.name is None for delta in mine[1:])
        calls.append((first.id or "", first.name or "", "".join(delta.arguments for delta in mine)))
    return text, calls


def hermes(text: str, *, is_cut: bool = False) -> tuple[str, list[tuple[str, str, str]]]:
    return read(HermesCalls("call_{}".format), [text], is_cut=is_cut)


@st.composite
def cut_texts(draw: st.DrawFn) -> tuple[str, list[str]]:
    parts = st.sampled_from(
        ["<tool_call>", "</tool_call>", CALL, CHOSEN, "<tool", "_call>", " ", "\n", "a <b> c", "{}", "}"]
    )
    text = "".join(draw(st.lists(parts, max_size=6)))
    places = sorted(draw(st.lists(st.integers(0, len(text)), max_size=12)))
    return text, [text[i:j] for i, j in zip([0, *places], [*places, len(text)], strict=True)]


@pytest.mark.parametrize("kind", READERS)
@given(cut=cut_texts(), is_cut=st.booleans())
def test_pieces_of_any_size_are_read_as_the_whole_text_is(kind: str, cut: tuple[str, list[str]], is_cut: bool) -> None:
    text, parts = cut
    assert read(READERS[kind](), parts, is_cut=is_cut) == read(READERS[kind](), [text], is_cut=is_cut)


def test_text_without_calls_is_all_of_it_to_the_last_space() -> None:
    for text in ("", "The mill runs.\n ", " <tool", "a <tool_cal b", "\n\n"):
        assert hermes(text) == (text, [])


def test_calls_are_taken_out_of_the_text_with_the_white_space_around_them() -> None:
    arguments = json.dumps({"sacks": 3})
    assert hermes(CALL) == ("", [("call_0", "count", arguments)])
    assert hermes(f"Let me see.\n{CALL}\n{CALL}\n") == (
        "Let me see.",
        [("call_0", "count", arguments), ("call_1", "count", arguments)],
    )


def test_text_is_sent_as_soon_as_it_can_be_no_call() -> None:
    reader = HermesCalls("call_{}".format)
    assert [reader.push(part) for part in ("The", " mill", " <to", "ast")] == [["The"], [" mill"], [], [" <toast"]]


@pytest.mark.parametrize(
    ("text", "name", "arguments"),
    [
        ('{"name": "f"}', "f", "{}"),
        ('{"name": "f", "parameters": {"a": "磨"}}', "f", '{"a": "磨"}'),
        ('{"arguments": {"a": 1}, "name": "f"}', "f", '{"a": 1}'),
        ('{"name": "f", "arguments": "{}"}', "f", "{}"),
        ('{"name": "f", "arguments": null}', "f", "{}"),
    ],
)
def test_a_call_is_understood_in_the_ways_that_models_write_it(text: str, name: str, arguments: str) -> None:
    assert hermes(f"<tool_call>{text}</tool_call>") == ("", [("call_0", name, arguments)])


NO_CALLS = ["{", "[]", '{"name": 5}', "count(3)", "[" * 5000]
NO_ARGUMENTS = ["[1]", "3", '{"a": NaN}', '{"a": 1e999}', r'{"a": "\ud83d"}']


@pytest.mark.parametrize("text", [*NO_CALLS, *(f'{{"name": "f", "arguments": {held}}}' for held in NO_ARGUMENTS)])
def test_what_only_looks_like_a_call_or_is_one_that_no_client_can_read_stays_text(text: str) -> None:
    whole = f"<tool_call>{text}</tool_call>"
    assert hermes(whole) == (whole, [])


def test_a_call_without_its_end_mark_counts_when_it_is_whole() -> None:
    whole = CALL.removesuffix("\n</tool_call>")
    assert hermes(whole)[1] == [("call_0", "count", '{"sacks": 3}')]
    assert hermes(whole[:-3], is_cut=True) == (whole[:-3], [])


def test_a_forced_calls_arguments_are_the_whole_text_as_it_comes() -> None:
    reader = OneCall("count", "call_{}".format)
    assert reader.push('{"sa') == [CallDelta(0, '{"sa', "call_0", "count")]
    assert reader.push('cks": 3}') == [CallDelta(0, 'cks": 3}')]
    assert reader.finish(is_cut=False) == []


def test_a_chosen_calls_arguments_come_as_they_grow_and_without_the_brace_around_them() -> None:
    reader = ChosenCall("call_{}".format)
    assert reader.push('{"name": "cou') == []
    head, first = reader.push('nt", "arguments": {"sacks": 3')
    assert head == CallDelta(0, "", "call_0", "count") and first == CallDelta(0, '{"sacks": 3')
    assert read(ChosenCall("call_{}".format), [CHOSEN + "\n"])[1][0][2] == '{"of": {"what": "}\\"} "}}'


def test_a_chosen_call_that_was_cut_keeps_what_came() -> None:
    text = '{"name": "count", "arguments": {"a": {}'
    assert read(ChosenCall("call_{}".format), [text], is_cut=True)[1] == [("call_0", "count", '{"a": {}')]
    assert read(ChosenCall("call_{}".format), ['{"name": "co'], is_cut=True) == ('{"name": "co', [])
