"""What requests with a grammar are promised by the engine."""

from __future__ import annotations

import re
import threading
from typing import Any

import pytest
import torch

import server.engine.grammar as grammar_module
from server.engine.engine import DecoderEngine
from server.protocol import Failed, Generate, Output, SamplingParams, Tokens
from tests.engine.fake_runner import POISON, VOCAB_SIZE, FakeRunner
from tests.engine.grammar_driving import END, Words, lark

PIECES = [*"abcdefgh", "ab", "bc", "cd", "abc", "aa", "ba", "好", "é", b"\xe5", b"\xa5", b"\xbd", " ", *"0123456789"]
VOCABULARY = Words(PIECES)
REQUESTS: dict[str, dict[str, Any]] = {
    "plain": {"do_sample": True},
    "greedy": {"grammar": lark("start: /[ab]{3,9}c/")},
    "sampled": {"grammar": lark("start: /(abc|好| é){2,5}/"), "do_sample": True, "temperature": 2.0},
    "again": {"grammar": lark("start: /(abc|好| é){2,5}/"), "do_sample": True, "seed": 5},
    "several": {"grammar": lark("start: /[a-h]{1,4}( [0-9]{2}){1,2}/"), "do_sample": True, "num_return_sequences": 3},
    "beams": {"grammar": lark("start: /a(b|c)+( (好|é))*/"), "num_beams": 4, "num_return_sequences": 2},
    "choice": {"grammar": lark('start: "abc" | "ab" | "cd 12"'), "do_sample": True},
}
LANGUAGES = {
    "greedy": "[ab]{3,9}c",
    "sampled": "(abc|好| é){2,5}",
    "again": "(abc|好| é){2,5}",
    "several": "[a-h]{1,4}( [0-9]{2}){1,2}",
    "beams": "a(b|c)+( (好|é))*",
    "choice": "abc|ab|cd 12",
}
Answers = dict[tuple[str, int], tuple[list[int], str | None]]


def make_engine(**options: Any) -> DecoderEngine:
    runner = options.pop("runner", None) or FakeRunner()
    defaults = {"max_model_len": 64, "max_batch_tokens": 24, "max_running": 16, "prefix_cache": True}
    return DecoderEngine(runner, **{**defaults, **options}, vocabulary=VOCABULARY)


def command(name: str, outputs: list[Output] | None = None, **params: Any) -> Generate:
    chosen = {"max_new_tokens": 40, "end_token_ids": (END,), "suppress_tokens": (POISON,), **params}
    return Generate(name, [3, 4, 5, 6, len(name)], SamplingParams(**chosen), outputs or [])


def run(engine: DecoderEngine, *commands: Generate) -> Answers:
    """Tokens and end of every sample; a failure is told by its code, without tokens."""
    for one in commands:
        engine.add(one)
    answers: Answers = {}
    while engine.has_work:
        for reply in engine.step():
            if isinstance(reply, Failed):
                answers[reply.request_id, 0] = ([], reply.code)
            elif isinstance(reply, Tokens):
                token_ids, _ = answers.get((reply.request_id, reply.index), ([], None))
                answers[reply.request_id, reply.index] = ([*token_ids, *reply.token_ids], reply.finish_reason)
        engine.check()
    return answers


def text(token_ids: list[int]) -> str:
    return b"".join(map(VOCABULARY.token_bytes, token_ids)).decode()


def test_side_by_side_each_request_is_answered_as_if_it_were_alone() -> None:
    commands = [command(name, **params) for name, params in REQUESTS.items()]
    alone: Answers = {}
    for one in commands:
        alone |= run(make_engine(), one)
    assert run(make_engine(), *commands) == alone
    assert run(make_engine(max_running=6, runner=FakeRunner(num_blocks=52)), *reversed(commands)) == alone
    assert run(make_engine(runner=FakeRunner(can_reuse_blocks=False)), *commands) == alone
    for (name, _), (token_ids, finish_reason) in alone.items():
        if name in LANGUAGES:
            assert finish_reason == "stop"
            assert re.fullmatch(LANGUAGES[name], text(token_ids))


@pytest.mark.parametrize("name", ["greedy", "sampled", "choice"])
def test_a_request_goes_on_from_any_token_as_it_would_have_gone(name: str) -> None:
    one = command(name, **REQUESTS[name])
    [(token_ids, finish_reason)] = run(make_engine(), one).values()
    for length in range(1, len(token_ids)):
        resumed = command(name, [Output(token_ids[:length])], **REQUESTS[name])
        assert run(make_engine(), resumed) == {(name, 0): (token_ids[length:], finish_reason)}


@pytest.mark.parametrize("params", [{}, {"do_sample": True}, {"num_beams": 3}, {"end_token_ids": ()}], ids=str)
def test_a_grammar_begins_after_a_forced_first_token(params: dict[str, Any]) -> None:
    forced = 1  # without text
    one = {"grammar": lark("start: /[ab]{2,4}c/"), "forced_bos_token_id": forced, **params}
    [(token_ids, finish_reason)] = run(make_engine(), command("r", **one)).values()
    assert token_ids[0] == forced
    assert re.fullmatch("[ab]{2,4}c", text(token_ids[1:]))
    assert finish_reason == "stop"
    resumed = run(make_engine(), command("r", [Output(token_ids[:1])], **one))
    if "num_beams" not in params:
        assert resumed == {("r", 0): (token_ids[1:], "stop")}


def test_a_phrase_stays_banned_within_a_grammar() -> None:
    for seed in range(20):
        params = {"banned_phrases": ("ba",), "do_sample": True, "seed": seed}
        answers = run(make_engine(), command("r", grammar=lark("start: /[abc]{6}d/"), **params))
        [(token_ids, finish_reason)] = answers.values()
        assert finish_reason == "stop"
        assert re.fullmatch("[abc]{6}d", text(token_ids))
        assert "ba" not in text(token_ids)


@pytest.mark.parametrize("params", [{}, {"do_sample": True}, {"num_beams": 3, "num_return_sequences": 3}], ids=str)
def test_without_an_end_token_a_text_that_cannot_grow_is_the_end(params: dict[str, Any]) -> None:
    grammar = lark("start: /[ab]{2,4}c/")
    for token_ids, finish_reason in run(
        make_engine(), command("r", grammar=grammar, end_token_ids=(), **params)
    ).values():
        assert finish_reason == "stop"
        assert re.fullmatch("[ab]{2,4}c", text(token_ids))


@pytest.mark.parametrize("end_token_ids", [(END,), ()], ids=str)
@pytest.mark.parametrize("grammar", ['start: "e"', 'start: "e" | "f"', 'start: "ef" | "eg"'])
def test_more_beams_than_texts_answer_nothing_but_texts(grammar: str, end_token_ids: tuple[int, ...]) -> None:
    params = {"grammar": lark(grammar), "num_beams": 4, "num_return_sequences": 4, "end_token_ids": end_token_ids}
    answers = run(make_engine(), command("r", **params))
    assert len(answers) == 4
    texts = set(re.findall('"(.*?)"', grammar))
    assert {text(token_ids) for token_ids, _ in answers.values()} == texts
    assert {finish_reason for _, finish_reason in answers.values()} == {"stop"}


def test_a_stop_token_ends_the_text_where_the_grammar_lets_it_come() -> None:
    [stop] = VOCABULARY.ids("b")
    answers = run(make_engine(), command("r", grammar=lark('start: "cdba"'), stop_token_ids=(stop,)))
    [(token_ids, finish_reason)] = answers.values()
    assert finish_reason == "stop"
    assert text(token_ids) in ("cdb", "cdba")
    assert (text(token_ids) == "cdb") == (stop in token_ids)


def test_at_its_greatest_length_an_output_is_the_beginning_of_a_text() -> None:
    answers = run(make_engine(), command("r", grammar=lark("start: /[a-h]{30}/"), max_new_tokens=5, do_sample=True))
    [(token_ids, finish_reason)] = answers.values()
    assert finish_reason == "length"
    assert re.fullmatch("[a-h]{5,15}", text(token_ids))


@pytest.mark.parametrize(
    ("params", "code"),
    [
        ({"grammar": lark("start: foo")}, "unsupported_value"),
        ({"grammar": lark('start: "xyz"')}, "unsupported_value"),
        ({"grammar": lark('start: "ax"')}, "unsupported_value"),
        ({"grammar": lark('start: "b"'), "suppress_tokens": tuple(VOCABULARY.ids("b"))}, "no_token_left"),
        ({"grammar": lark('start: "b"'), "suppress_tokens": tuple(VOCABULARY.ids("b")), "num_beams": 2},
         "no_token_left"),
    ],
)  # fmt: skip
def test_a_grammar_that_cannot_be_followed_fails_its_request_alone(params: dict[str, Any], code: str) -> None:
    good = command("greedy", **REQUESTS["greedy"])
    alone = run(make_engine(), good)
    assert run(make_engine(), command("bad", **params), good) == alone | {("bad", 0): ([], code)}


class Gate:
    """Compiling that waits until it is let through."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.opened = threading.Event()
        compile_grammar = grammar_module.compile_grammar

        def compile_later(*arguments: Any) -> Any:
            assert self.opened.wait(30)
            return compile_grammar(*arguments)

        monkeypatch.setattr(grammar_module, "compile_grammar", compile_later)


def test_nobody_waits_for_a_grammar_but_the_request_that_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    gate, engine = Gate(monkeypatch), make_engine()
    engine.add(command("slow", **REQUESTS["greedy"]))
    engine.add(command("plain", **REQUESTS["plain"]))
    replies: list[Any] = []
    while not any(isinstance(reply, Tokens) and reply.finish_reason for reply in replies):
        replies += engine.step()
    assert {reply.request_id for reply in replies if isinstance(reply, Tokens)} == {"plain"}
    assert engine.has_work
    gate.opened.set()
    assert run(engine) == run(make_engine(), command("slow", **REQUESTS["greedy"]))


def test_a_request_that_is_aborted_while_its_grammar_is_compiled_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gate, engine = Gate(monkeypatch), make_engine()
    engine.add(command("slow", **REQUESTS["greedy"]))
    engine.step()
    engine.abort("slow")
    assert not engine.has_work
    gate.opened.set()
    assert run(engine) == {}
    assert engine.blocks.num_used == 0


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_the_vocabulary_fits_the_runner() -> None:
    assert len(VOCABULARY) < POISON < VOCAB_SIZE
