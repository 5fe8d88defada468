"""Thousands of streams of a model that keeps trying to say what is banned, through the engine and the front."""

from __future__ import annotations

import random
from collections import Counter
from functools import cache

import pytest
import torch

from server.protocol import Tokens
from server.text.tokenizer import Tokenizer
from tests.engine.fuzzed_streams import (
    Front,
    Kind,
    Script,
    banned_in,
    greedy_by_definition,
    run,
    script,
    text_by_definition,
)
from tests.fuzz.scale import SCALE
from tests.tiny_tokenizers import tokenizer_files

STREAMS = {
    "byte_level": 600 * SCALE,
    "byte_fallback": 400 * SCALE,
    "byte_level_in_a_sequence": 200 * SCALE,
    "byte_fallback_strip": 200 * SCALE,
    "metaspace": 200 * SCALE,
    "word_piece": 200 * SCALE,
    "word_end": 200 * SCALE,
}
"""By kind of tokenizer."""
BATCH = 200


@cache
def kind_of(name: str) -> Kind:
    torch.set_num_threads(1)
    return Kind.of(Tokenizer(tokenizer_files(name)))


def scripts_of(name: str, seed: int, number: int = BATCH, **params: object) -> list[Script]:
    rng = random.Random(seed)
    return [script(kind_of(name), rng, **params) for _ in range(number)]


def check(kind: Kind, one: Script, front: Front) -> str:
    """Raise if a stream shows what it must not, or not what it must. How it ended."""
    text = "".join(front.deltas)
    # Deltas are only ever added: a text that is in any prefix of the stream is in the whole as well.
    assert not banned_in(text, one), (text, one)
    assert not [stop for stop in one.stop if stop in text], (text, one)
    if front.text.has_banned:
        assert text_by_definition(kind, front, one).startswith(text), (text, one)
        return "guard"
    assert text == text_by_definition(kind, front, one), (text, one)
    if front.text.stop_string is not None:
        return "stop string"
    assert isinstance(front.reply, Tokens), front.reply
    return str(front.reply.finish_reason)


def ends_of(name: str, scripts: list[Script], fronts: list[list[Front]]) -> Counter[str]:
    pairs = [(one, front) for one, several in zip(scripts, fronts, strict=True) for front in several]
    return Counter(check(kind_of(name), one, front) for one, front in pairs)


@pytest.mark.parametrize("name", STREAMS)
def test_no_banned_text_and_no_stop_string_is_in_any_stream_and_all_other_text_is(name: str) -> None:
    ends: Counter[str] = Counter()
    num_rewinds = 0
    for seed in range(STREAMS[name] // BATCH):
        scripts = scripts_of(name, seed)
        fronts = run(kind_of(name), scripts)
        ends += ends_of(name, scripts, fronts)
        num_rewinds += sum(front.num_rewinds for [front] in fronts)
    assert ends.total() == STREAMS[name]
    if name == "byte_level":
        # Its tokens' bytes are its text: the engine misses nothing.
        assert ends["guard"] == 0
    # The fuzz has reached every way in which a stream can end.
    assert min(ends[end] for end in ("stop", "length", "banned_phrase", "stop string")) > 0
    assert num_rewinds > ends.total() // 20


def test_a_greedy_stream_is_the_one_that_goes_back_to_where_a_phrase_begins_and_says_something_else() -> None:
    kind, scripts = kind_of("byte_level"), scripts_of("byte_level", 79)
    num_rewinds = 0
    for number, (one, [front]) in enumerate(zip(scripts, run(kind, scripts), strict=True)):
        if one.params.do_sample:
            continue
        token_ids, reason = greedy_by_definition(kind, scripts, number)
        # Its front may have ended it at a stop string.
        assert front.token_ids == (token_ids if front.text.stop_string is None else token_ids[: len(front.token_ids)])
        assert front.text.stop_string is not None or check(kind, one, front) == reason
        num_rewinds += front.num_rewinds
    assert num_rewinds > 20


@pytest.mark.parametrize(
    ("params", "limits"),
    [
        ({"num_return_sequences": 3}, {}),
        ({"num_beams": 3, "num_return_sequences": 2}, {}),
        ({}, {"num_blocks": 24, "max_running": 16}),
    ],
    ids=["samples", "beams", "preempted"],
)
def test_samples_beams_and_preempted_streams_keep_the_same_promise(
    params: dict[str, object], limits: dict[str, int]
) -> None:
    scripts = scripts_of("byte_level", 77, number=150, **params)
    ends = ends_of("byte_level", scripts, run(kind_of("byte_level"), scripts, **limits))
    assert ends["guard"] == 0


@pytest.mark.parametrize("num_steps", [4, 9])
def test_streams_that_another_engine_continues_are_the_same(num_steps: int) -> None:
    kind, scripts = kind_of("byte_level"), scripts_of("byte_level", 78, number=64)
    undisturbed = run(kind, scripts)
    fronts = run(kind, scripts, max_steps=num_steps)
    assert not all(front.has_ended for [front] in fronts)
    run(kind, scripts, fronts=fronts)
    for one, [front], [expected] in zip(scripts, fronts, undisturbed, strict=True):
        check(kind, one, front)
        assert (front.token_ids, front.num_rewinds) == (expected.token_ids, expected.num_rewinds)
        assert "".join(front.deltas) == "".join(expected.deltas)
