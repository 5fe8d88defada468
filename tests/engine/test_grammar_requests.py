"""Requests with a grammar in the engine: their waiting, and every way in which an output is chosen."""

from __future__ import annotations

import re
from typing import Any

import pytest

from server.engine.engine import DecoderEngine
from server.protocol import Failed, Generate, Output, SamplingParams
from tests.engine.driving import Outcome, generate, make_engine, run, step
from tests.engine.fake_runner import VOCAB_SIZE, FakeRunner
from tests.engine.grammar_driving import END, Words, lark

WORDS = Words([*"abcdefgh", *"0123456789", "ab", "cd", "12", "345"])
NUMBERED = lark("start: /[a-h]{3}[0-9]{4}/")
PATTERN = re.compile("[a-h]{3}[0-9]{4}")


def engine(runner: FakeRunner | None = None, **limits: Any) -> DecoderEngine:
    return make_engine(runner, vocabulary=WORDS, **limits)


def text(outcome: Outcome) -> str:
    return b"".join(WORDS.token_bytes(token_id) for token_id in outcome.token_ids).decode()


def ruled(request_id: str, prompt_ids: list[int], outputs: list[Output] | None = None, **params: Any) -> Generate:
    params = {"max_new_tokens": 20, "grammar": NUMBERED, "end_token_ids": (END,), **params}
    return Generate(request_id, prompt_ids, SamplingParams(**params), outputs or [])


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"end_token_ids": ()},
        {"do_sample": True, "seed": 3, "num_return_sequences": 3},
        {"num_beams": 3, "num_return_sequences": 2},
        {"num_beams": 2, "end_token_ids": ()},
        {"guidance_scale": 2.0},
        {"banned_phrases": ("a", "1"), "do_sample": True, "seed": 1},
    ],
)
def test_every_output_is_in_the_language_also_preempted(params):
    command = ruled("r", [30, 31, 32], **params)
    others = [generate(f"other{i}", [i + 1] * 9, max_new_tokens=18) for i in range(2)]
    crowded = engine(FakeRunner(18), max_batch_tokens=8)
    outcomes = run(crowded, [*others, command])
    names = ["r", "r#1", "r#2"][: command.params.num_return_sequences]
    for name in names:
        assert PATTERN.fullmatch(text(outcomes[name]))
        assert outcomes[name].finish_reason == "stop"
    alone = run(engine(FakeRunner(64), max_batch_tokens=256, prefix_cache=False), [command])
    assert [outcomes[name].token_ids for name in names] == [alone[name].token_ids for name in names]


@pytest.mark.parametrize("num_sent", [1, 3, 5])
def test_a_resumed_output_stays_in_the_language(num_sent):
    whole = run(engine(), [ruled("r", [30, 31])])["r"].token_ids
    rest = run(engine(), [ruled("r", [30, 31], [Output(whole[:num_sent])])])["r"].token_ids
    assert whole[:num_sent] + rest == whole


def test_others_run_while_a_grammar_is_compiled():
    served, outcomes = engine(), {}
    served.add(ruled("r", [30]))
    served.add(generate("plain", [1, 2], max_new_tokens=2))
    assert step(served, outcomes).num_running >= 1
    assert len(outcomes["plain"].token_ids) == 1
    while served.has_work:
        step(served, outcomes)
    assert PATTERN.fullmatch(text(outcomes["r"]))


def test_a_request_that_waits_for_its_grammar_can_be_aborted_and_its_id_is_taken():
    served = engine()
    served.add(ruled("r", [30]))
    served.add(ruled("r", [31]))
    failed, stats = served.step()
    assert isinstance(failed, Failed)
    assert stats.num_waiting + stats.num_running == 1
    served.abort("r")
    assert not served.has_work


def test_a_grammar_that_cannot_be_compiled_fails_its_request_alone():
    outcomes = run(engine(), [ruled("bad", [30], grammar=lark("start: nothing_of_that_name")), ruled("good", [31])])
    assert outcomes["bad"].failure == "unsupported_value"
    assert PATTERN.fullmatch(text(outcomes["good"]))


def test_a_grammar_and_a_rule_that_leave_no_token_fail_as_the_requests_own_fault():
    forbidden = tuple(range(2, VOCAB_SIZE))
    outcomes = run(engine(), [ruled("bad", [30], suppress_tokens=forbidden), ruled("good", [31])])
    assert outcomes["bad"].failure == "no_token_left"
    assert PATTERN.fullmatch(text(outcomes["good"]))
