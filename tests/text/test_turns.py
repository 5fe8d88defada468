"""Readers of chat outputs: whatever the pieces, the same reasoning, text and calls in the same order."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.text.turns.call_reader import CallReader
from server.text.turns.calls import CallFormat
from server.text.turns.forced import ChosenCall, OneCall
from server.text.turns.formats import HERMES, LLAMA, MISTRAL, XML
from server.text.turns.json_scan import JsonScan
from server.text.turns.pieces import CallDelta, Piece, PlainText, Reader, Reasoning
from server.text.turns.thinking import KNOWN_MARKS, ThinkingReader

IDS = "call_{}".format
FUNCTIONS: dict[str, Any] = {
    "count": {
        "properties": {
            "sacks": {"type": "integer"},
            "note": {"type": "string"},
            "of": {"type": ["object", "null"]},
            "loud": {"type": "boolean"},
        }
    }
}
FORMATS: dict[str, CallFormat] = {"hermes": HERMES, "llama": LLAMA, "mistral": MISTRAL, "xml": XML}
CALL = '<tool_call>\n{"name": "count", "arguments": {"sacks": 3}}\n</tool_call>'
XML_CALL = "<tool_call>\n<function=count>\n<parameter=sacks>\n3\n</parameter>\n</function>\n</tool_call>"
LLAMA_CALL = '{"name": "count", "parameters": {"sacks": 3}}'
MISTRAL_CALL = '[TOOL_CALLS] [{"name": "count", "arguments": {"sacks": 3}}]'
MISTRAL_NEW = '[TOOL_CALLS]count[CALL_ID]abc123def[ARGS]{"sacks": 3}'
CALLS = {"hermes": [CALL], "llama": [LLAMA_CALL], "mistral": [MISTRAL_CALL, MISTRAL_NEW], "xml": [XML_CALL]}
EVERY_CALL = [(name, call) for name, calls in CALLS.items() for call in calls]
CHOSEN = '{"name": "count", "arguments": {"of": {"what": "}\\"} "}}}'
COUNTED = ("count", '{"sacks": 3}')


def reader(name: str, **options: Any) -> CallReader:
    return CallReader(FORMATS[name], FUNCTIONS, IDS, **options)


def thinking(inner: Reader, *, is_open: bool) -> ThinkingReader:
    return ThinkingReader(KNOWN_MARKS[0], inner, is_open=is_open)


READERS: dict[str, Callable[[], Reader]] = {
    "plain": PlainText,
    "one": lambda: OneCall("count", IDS),
    "chosen": lambda: ChosenCall(IDS),
    **{name: lambda name=name: reader(name) for name in FORMATS},  # type: ignore[misc]
    "single": lambda: reader("hermes", max_calls=1),
    "thinking": lambda: thinking(reader("hermes"), is_open=False),
    "open": lambda: thinking(reader("llama"), is_open=True),
}


def parts_of(reader: Reader, texts: Sequence[str]) -> list[Any]:
    """What was found, in order: texts, ``("reasoning", text)`` and ``(id, name, arguments)``; neighbours are joined."""
    found: list[Any] = []
    pieces: list[Piece] = [piece for text in texts for piece in reader.push(text)]
    for piece in [*pieces, *reader.finish()]:
        assert piece not in ("", Reasoning(""))
        last = found[-1] if found else None
        if isinstance(piece, CallDelta):
            if piece.id is None:
                assert isinstance(last, tuple) and piece.name is None
                found[-1] = (*last[:2], last[2] + piece.arguments)
            else:
                found.append((piece.id, piece.name, piece.arguments))
        elif isinstance(piece, Reasoning):
            is_same = isinstance(last, tuple) and last[0] == "reasoning"
            found[-1:] = [("reasoning", last[1] + piece.text)] if is_same else [*found[-1:], ("reasoning", piece.text)]
        else:
            found[-1:] = [last + piece] if isinstance(last, str) else [*found[-1:], piece]
    calls = [part for part in found if isinstance(part, tuple) and len(part) == 3]
    assert [call[0] for call in calls] == [f"call_{i}" for i in range(reader.num_calls)]
    return found


def read(name: str, text: str, **options: Any) -> list[Any]:
    """Without the ids of calls."""
    found = parts_of(reader(name, **options), [text])
    return [part[1:] if isinstance(part, tuple) else part for part in found]


@st.composite
def cut_texts(draw: st.DrawFn) -> tuple[str, list[str]]:
    every = [call for _, call in EVERY_CALL]
    marks = [mark for format_ in FORMATS.values() for mark in format_.marks]
    words = ["<tool", "_call>", "<think>", "</think>", "</th", " ", "\n", "a <b> c", "{}", "}", '"', "<parameter=note>"]
    parts = st.sampled_from([*every, *marks, *words, CHOSEN, "</parameter>", "</function>", '{"name": "', ", ", "x"])
    text = "".join(draw(st.lists(parts, max_size=7)))
    places = sorted(draw(st.lists(st.integers(0, len(text)), max_size=12)))
    return text, [text[i:j] for i, j in zip([0, *places], [*places, len(text)], strict=True)]


@pytest.mark.parametrize("kind", READERS)
@given(cut=cut_texts())
def test_any_split_of_a_text_gives_the_same_parts_in_the_same_order(kind: str, cut: tuple[str, list[str]]) -> None:
    text, texts = cut
    whole = parts_of(READERS[kind](), [text])
    assert parts_of(READERS[kind](), texts) == whole == parts_of(READERS[kind](), list(text))


@pytest.mark.parametrize("name", FORMATS)
@given(cut=cut_texts())
def test_nothing_but_calls_and_the_space_around_them_is_taken_out_of_a_text(name: str, cut: tuple[str, list[str]]):
    text, texts = cut
    found = parts_of(reader(name), texts)
    rest = text
    for part in found:
        if isinstance(part, str):
            place = rest.find(part)
            assert place >= 0
            rest = rest[place + len(part) :]
    if not any(isinstance(part, tuple) for part in found):
        assert "".join(found) == text


@pytest.mark.parametrize("name", FORMATS)
def test_text_without_calls_is_all_of_it_to_the_last_space(name: str) -> None:
    for text in ("The mill runs.\n ", " <tool", "a <tool_cal b", "\n\n", "[TOOL_CAL", "a {} b", " \n<tool_call> x"):
        assert "".join(read(name, text)) == text


@pytest.mark.parametrize(("name", "call"), EVERY_CALL)
def test_calls_are_taken_out_of_the_text_with_the_white_space_around_them(name: str, call: str) -> None:
    assert read(name, f"\n{call}\n") == [COUNTED]
    assert read(name, f"{call}\n{call} \n") == [COUNTED, COUNTED]


@pytest.mark.parametrize(("name", "call"), [pair for pair in EVERY_CALL if pair[0] != "llama"])
def test_text_keeps_its_place_before_between_and_after_calls(name: str, call: str) -> None:
    found = read(name, f"Let me see.\n{call}\nAnd now\n{call}\nDone.\n")
    assert found == ["Let me see.", COUNTED, "\nAnd now", COUNTED, "\nDone.\n"]


def test_text_is_sent_as_soon_as_it_can_be_no_call() -> None:
    hermes = reader("hermes")
    assert [hermes.push(part) for part in ("The", " mill", " <to", "ast")] == [["The"], [" mill"], [], [" <toast"]]


def test_a_call_is_sent_as_soon_as_its_json_has_ended() -> None:
    hermes = reader("hermes")
    assert hermes.push('<tool_call>{"name": "count", "arguments": {"sacks": 3}') == []
    assert [type(piece) for piece in hermes.push("}")] == [CallDelta]


NESTED = [
    {"a": "</tool_call>"},
    {"a": 'say "</tool_call>" and <tool_call>{"name": "f"}'},
    {"a": "\\", "b": {"c": [{"d": "}]"}]}},
    {"a": "\u2028 磨 \ud83d\ude00".encode("utf-16", "surrogatepass").decode("utf-16"), "b": "\\u007d"},
    {"a": "[/TOOL_CALLS] [ARGS] [TOOL_CALLS]", "b": "<|python_tag|>;"},
    {"a": "</parameter>", "b": "</function>\n"},
]


@pytest.mark.parametrize("arguments", NESTED)
@pytest.mark.parametrize("ascii_", [True, False])
def test_an_argument_may_hold_any_mark_brace_or_quote(arguments: dict[str, Any], ascii_: bool) -> None:
    written = json.dumps(arguments, ensure_ascii=ascii_)
    for name, text in (
        ("hermes", f'<tool_call>\n{{"name": "f", "arguments": {written}}}\n</tool_call>'),
        ("llama", f'{{"name": "count", "parameters": {written}}}'),
        ("mistral", f'[TOOL_CALLS][{{"name": "f", "arguments": {written}}}]'),
        ("mistral", f"[TOOL_CALLS]f[ARGS]{written}"),
    ):
        (call,) = read(name, text)
        assert json.loads(call[1]) == arguments, name


def test_a_value_in_tags_may_hold_its_own_end_tag_and_is_read_by_its_schema() -> None:
    values = {"sacks": "12", "note": 'a\n</parameter>\n"b"</function>', "of": '{"x": [1]}', "loud": "True", "else": "5"}
    written = "".join(f"<parameter={name}>\n{value}\n</parameter>\n" for name, value in values.items())
    (call,) = read("xml", f"<tool_call>\n<function=count>\n{written}</function>\n</tool_call>")
    wanted = {"sacks": 12, "note": values["note"], "of": {"x": [1]}, "loud": True, "else": "5"}
    assert call[0] == "count" and json.loads(call[1]) == wanted
    assert read("xml", "<function=count>\n<parameter=of>\nnull\n</parameter>\n</function>") == [
        ("count", '{"of": null}')
    ]
    assert read("xml", "<tool_call><function=f></function></tool_call>") == [("f", "{}")]


@pytest.mark.parametrize(
    ("text", "name", "arguments"),
    [
        ('{"name": "f"}', "f", "{}"),
        ('{"name": "f", "parameters": {"a": "磨"}}', "f", '{"a": "磨"}'),
        ('{"arguments": {"a": 1}, "name": "f"}', "f", '{"a": 1}'),
        ('{"name": "f", "arguments": "{}"}', "f", "{}"),
        ('{"name": "f", "arguments": "{\\"a\\": 1}"}', "f", '{"a": 1}'),
        ('{"name": "f", "arguments": null}', "f", "{}"),
        ('{"name": "f", "arguments": {"a": "line\nbreak"}}', "f", '{"a": "line\\nbreak"}'),
    ],
)
def test_a_call_is_understood_in_the_ways_that_models_write_it(text: str, name: str, arguments: str) -> None:
    assert read("hermes", f"<tool_call>{text}</tool_call>") == [(name, arguments)]


NUMBERS = ["1.10", "-0", "1E5", "12345678901234567890123", "0.12345678901234567890123", "[1.0, 1e-07]"]


@pytest.mark.parametrize("written", [*NUMBERS, '"\\u00e9\\/"', '{"a": 1, "a": 2}', "[ 1,2 ]"])
def test_arguments_are_returned_as_the_model_wrote_them(written: str) -> None:
    arguments = f'{{"of":{written}}}'
    for name, text in (
        ("hermes", f'<tool_call>{{"name": "f", "arguments": {arguments}}}</tool_call>'),
        ("hermes", f'<tool_call>{{"name": "f", "arguments": {json.dumps(arguments)}}}</tool_call>'),
        ("llama", f'{{"name": "count", "parameters": {arguments}}}'),
        ("mistral", f'[TOOL_CALLS][{{"name": "f", "arguments": {arguments}}}]'),
        ("mistral", f"[TOOL_CALLS]f[ARGS]{arguments}"),
    ):
        ((_, found),) = read(name, text)
        assert found == arguments, name
    value = f"<tool_call><function=f><parameter=of>{written}</parameter></function></tool_call>"
    number = {"f": {"properties": {"of": {"type": ["number", "array", "object"]}}}}
    (call,) = parts_of(CallReader(XML, number, IDS), [value])
    assert call[2] == f'{{"of": {written}}}' or written.startswith('"')


SCHEMAS: list[tuple[dict[str, Any], str, Any]] = [
    ({"$ref": "#/$defs/Sack"}, '{"kg": 5}', {"kg": 5}),
    ({"allOf": [{"$ref": "#/$defs/Sack"}], "default": None}, '{"kg": 5}', {"kg": 5}),
    ({"anyOf": [{"$ref": "#/$defs/Sack"}, {"type": "null"}]}, "None", None),
    ({"$ref": "#/$defs/Grain"}, "2", "2"),
    ({"$ref": "#/$defs/a~1b"}, "2", 2),
    ({"$ref": "#/$defs/Loop"}, "2", "2"),
    ({"$ref": "#/$defs/missing"}, "2", "2"),
    ({"items": {"type": "string"}}, '["a"]', ["a"]),
    ({"properties": {"a": {}}}, '{"a": 1}', {"a": 1}),
    ({"const": 5}, "5", 5),
    ({"enum": [1, "two"]}, "1", "1"),
    ({"enum": [True, None]}, "True", True),
]
DEFS = {
    "Sack": {"type": "object"},
    "Grain": {"type": "string", "enum": ["1", "2"]},
    "a/b": {"type": "integer"},
    "Loop": {"$ref": "#/$defs/Loop"},
}


@pytest.mark.parametrize(("schema", "text", "value"), SCHEMAS)
def test_the_type_of_a_value_in_tags_is_found_wherever_the_schema_says_it(
    schema: dict[str, Any], text: str, value: Any
) -> None:
    functions = {"f": {"properties": {"of": schema}, "$defs": DEFS}}
    call = f"<function=f>\n<parameter=of>\n{text}\n</parameter>\n</function>"
    ((_, _, arguments),) = parts_of(CallReader(XML, functions, IDS), [call])
    assert json.loads(arguments) == {"of": value}


def test_one_pair_of_marks_may_hold_several_calls() -> None:
    inner = '{"name": "count", "arguments": {"sacks": 3}}'
    assert read("hermes", f"<tool_call>\n{inner}\n{inner}\n</tool_call> Done.") == [COUNTED, COUNTED, " Done."]
    both = f"[TOOL_CALLS] [{inner}, {inner.replace('count', 'f')}]"
    assert read("mistral", both) == [COUNTED, ("f", '{"sacks": 3}')]
    assert read("llama", f"<|python_tag|>{LLAMA_CALL}; {LLAMA_CALL}") == [COUNTED, COUNTED]


def test_an_object_behind_a_closed_call_is_text() -> None:
    for after in ('{"name": "Maria", "age": 3}', '{"name": "count", "arguments": {}}'):
        assert read("hermes", f"{CALL}\n{after}") == [COUNTED, f"\n{after}"]


NO_CALLS = ["{", "[]", '{"name": 5}', "count(3)", "[" * 5000, '{"a": "b"" c"}', '{"a": 1]']
NO_ARGUMENTS = ["[1]", "3", '"x"', '{"a": NaN}', '{"a": 1e999}', r'{"a": "\ud83d"}']


@pytest.mark.parametrize("text", [*NO_CALLS, *(f'{{"name": "f", "arguments": {held}}}' for held in NO_ARGUMENTS)])
def test_what_only_looks_like_a_call_or_is_one_that_no_client_can_read_stays_text(text: str) -> None:
    whole = f"So:\n<tool_call>{text}</tool_call>\nor <tool_call>"
    assert read("hermes", whole) == [whole]
    # What follows it is read as always.
    assert read("hermes", f"<tool_call>{text} {CALL}")[-1] == COUNTED


def test_an_answer_in_json_is_no_call_of_llamas() -> None:
    for text in (
        '{"name": "Maria", "age": 3}',
        '{"name": "count"}',
        '{"name": "count", "age": 3}',
        "{}",
        '{"sacks": 3}',
        f"See {LLAMA_CALL}",
    ):
        assert read("llama", text) == [text]
    assert read("llama", f"<|python_tag|>{LLAMA_CALL.replace('count', 'other')}") == [("other", '{"sacks": 3}')]
    assert read("llama", '<|python_tag|>print("x")') == ['<|python_tag|>print("x")']


@pytest.mark.parametrize(("name", "call"), EVERY_CALL)
def test_a_call_that_was_cut_is_text(name: str, call: str) -> None:
    end = call.rindex("}") if name != "xml" else call.index("</function>")
    cut = call[: max(end - 1, 1)]
    assert read(name, f"{call}\n{cut}" if name != "llama" else f"{call};{cut}")[0] == COUNTED
    assert "".join(read(name, cut)) == cut


def test_a_call_without_its_end_mark_counts_when_it_is_whole() -> None:
    for end in ("", "\n", "\n</tool_", " </tool_call"):
        assert read("hermes", CALL.removesuffix("\n</tool_call>") + end) == [COUNTED]


def test_after_the_only_call_that_is_wanted_the_rest_is_dropped() -> None:
    single = reader("hermes", max_calls=1)
    assert [type(piece) for piece in single.push(f"a{CALL}b{CALL}")] == [str, CallDelta]
    assert single.is_over and single.push("more") == [] and single.finish() == []
    both = '[TOOL_CALLS][{"name": "f", "arguments": {}}, {"name": "g", "arguments": {}}]'
    assert read("mistral", both, max_calls=1) == [("f", "{}")]


def test_a_forced_calls_arguments_are_the_whole_text_as_it_comes() -> None:
    one = OneCall("count", IDS)
    assert one.push('{"sa') == [CallDelta(0, '{"sa', "call_0", "count")] and not one.is_whole
    assert one.push('cks": 3}') == [CallDelta(0, 'cks": 3}')] and one.is_whole
    assert one.finish() == []


def test_a_chosen_calls_arguments_come_as_they_grow_and_without_the_brace_around_them() -> None:
    chosen = ChosenCall(IDS)
    assert chosen.push('{"name": "cou') == []
    head, first = chosen.push('nt", "arguments": {"sacks": 3')
    assert head == CallDelta(0, "", "call_0", "count") and first == CallDelta(0, '{"sacks": 3')
    assert not chosen.is_whole
    assert parts_of(ChosenCall(IDS), [CHOSEN + "\n"]) == [("call_0", "count", '{"of": {"what": "}\\"} "}}')]


def test_a_chosen_call_that_was_cut_keeps_what_came() -> None:
    text = '{"name": "count", "arguments": {"a": {}'
    assert parts_of(ChosenCall(IDS), [text]) == [("call_0", "count", '{"a": {}')]
    assert parts_of(ChosenCall(IDS), ['{"name": "co']) == ['{"name": "co']


@pytest.mark.parametrize(
    ("text", "is_open", "found"),
    [
        ("<think>\nHm.\n\nYes.\n</think>\n\nHello", False, [("reasoning", "Hm.\n\nYes."), "Hello"]),
        ("\nHm.\n</think>\nHello", True, [("reasoning", "Hm."), "Hello"]),
        ("<think>Hm.</think>Hello", True, [("reasoning", "Hm."), "Hello"]),
        ("<think>\n\n</think>\n\nHello <think>", False, ["Hello <think>"]),
        ("Hello <think>a</think>", False, ["Hello <think>a</think>"]),
        ("<think>Hm.\n</thi", False, [("reasoning", "Hm.\n</thi")]),
        ("Hm.", True, [("reasoning", "Hm.")]),
        ("  <thi", False, ["  <thi"]),
        (f"<think>Use {CALL}</think>{CALL}", False, [("reasoning", f"Use {CALL}"), ("call_0", *COUNTED)]),
        ("", True, []),
    ],
)
def test_reasoning_stands_before_the_answer_and_apart_from_it(text: str, is_open: bool, found: list[Any]) -> None:
    assert parts_of(thinking(reader("hermes"), is_open=is_open), [text]) == found


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=12,
)


@given(value=st.dictionaries(st.text(), VALUES) | st.lists(VALUES), rest=st.text(), at=st.integers(0, 200))
def test_the_end_of_json_is_found_whatever_follows(value: Any, rest: str, at: int) -> None:
    text = json.dumps(value, ensure_ascii=False, indent=1 if len(rest) % 2 else None)
    scan, whole = JsonScan(), text + rest
    first = scan.feed(whole[:at])
    end = first if first is not None else at + (scan.feed(whole[at:]) or -(10**6)) if at < len(whole) else first
    assert end == len(text) and not scan.has_failed
