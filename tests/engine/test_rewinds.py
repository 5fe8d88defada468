"""Sequences that go back to before a banned phrase, among others that do not."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
import torch

from server.protocol import Generate, Output, SamplingParams
from tests.engine.driving import Outcome, make_engine, run, run_preempted, step
from tests.engine.fake_runner import VOCAB_SIZE, FakeRunner
from tests.engine.test_engine_parity import engine_of
from tests.tiny_models import tiny_decoder

LONG = list(range(1, 31))
PHRASES = ("ab", "ca", "dd", "eca", "fg", "hbe", "ge", "bh", "afa")


class Letters:
    """Eight letters for all tokens: phrases come about often, and in several ways."""

    special_ids: frozenset[int] = frozenset()

    def token_bytes(self, token_id: int) -> bytes:
        return b"abcdefgh"[token_id % 8 : token_id % 8 + 1]

    def all_bytes(self) -> Iterable[bytes]:
        return [self.token_bytes(token_id) for token_id in range(VOCAB_SIZE)]

    def text(self, token_ids: list[int]) -> str:
        return b"".join(map(self.token_bytes, token_ids)).decode()


LETTERS = Letters()


def banned(request_id: str, prompt_ids: list[int], **params: Any) -> Generate:
    params = {"max_new_tokens": 24, "banned_phrases": PHRASES, **params}
    return Generate(request_id, prompt_ids, SamplingParams(**params))


def num_open(text: str, phrases: tuple[str, ...]) -> int:
    """Letters at the end that may still become a phrase."""
    beginnings = {phrase[:length] for phrase in phrases for length in range(1, len(phrase))}
    return max((length for length in range(1, 4) if text[-length:] in beginnings), default=0)


def reference(command: Generate) -> tuple[list[int], str, int]:
    """Greedy, token by token, with nothing but the rule: output, finish reason, rewinds."""
    output: list[int] = []
    forbidden: dict[int, set[int]] = {}
    num_rewinds = num_sent = 0
    while len(output) < command.params.max_new_tokens:
        prefix = np.array([[token, i] for i, token in enumerate([*command.prompt_ids, *output])])
        logits = FakeRunner.logits_of(prefix)
        logits[output] -= command.params.presence_penalty
        logits[sorted(forbidden.get(len(output), ()))] = -torch.inf
        output.append(int(logits.argmax()))
        text = LETTERS.text(output)
        starts = [len(text) - len(phrase) for phrase in command.params.banned_phrases if text.endswith(phrase)]
        if starts:
            place = max(min(starts), num_sent)
            forbidden = {at: ids for at, ids in forbidden.items() if at <= place}
            forbidden.setdefault(place, set()).add(output[place])
            del output[place:]
            num_rewinds += 1
            if num_rewinds > command.params.max_rewinds:
                return output, "banned_phrase", num_rewinds
        else:
            num_sent = max(num_sent, len(output) - num_open(text, command.params.banned_phrases))
    return output, "length", num_rewinds


def engine(runner: FakeRunner | None = None, **limits: Any) -> Any:
    return make_engine(runner, vocabulary=LETTERS, **limits)


def commands() -> list[Generate]:
    return [banned(str(i), LONG[i : 2 * i + 3], max_rewinds=40) for i in range(6)]


@pytest.mark.parametrize("prefix_cache", [True, False])
@pytest.mark.parametrize("can_reuse_blocks", [True, False])
def test_outputs_are_those_of_the_rule_in_any_batch_also_preempted(prefix_cache, can_reuse_blocks):
    served = engine(FakeRunner(20, can_reuse_blocks=can_reuse_blocks), prefix_cache=prefix_cache)
    outcomes = run_preempted(served, commands())
    for command in commands():
        outcome = outcomes[command.request_id]
        expected = reference(command)
        assert (outcome.token_ids, outcome.finish_reason, outcome.num_rewinds) == expected
        assert expected[2] > 0, "nothing was banned"
        assert not any(phrase in LETTERS.text(outcome.token_ids) for phrase in PHRASES)


def test_after_too_many_rewinds_the_sequence_ends_before_the_phrase():
    command = banned("r", LONG[:5], max_rewinds=1, max_new_tokens=60)
    outcome = run(engine(), [command])["r"]
    assert (outcome.token_ids, outcome.finish_reason, outcome.num_rewinds) == reference(command)
    assert outcome.finish_reason == "banned_phrase"


@pytest.mark.parametrize(
    "sampling",
    [
        {},
        {"do_sample": True, "seed": 5, "num_return_sequences": 2},
        {"do_sample": True, "seed": 5, "num_return_sequences": 2, "guidance_scale": 1.5},
    ],
)
def test_wherever_a_stream_is_cut_it_goes_on_as_it_would_have(sampling):
    command = banned("r", LONG[:6], max_rewinds=9, logprobs=True, **sampling)
    whole = run(engine(), [command])
    num_outputs = command.params.num_return_sequences
    names = ["r", "r#1"][:num_outputs]
    for num_steps in range(1, 60, 3):
        first, cut = engine(), {name: Outcome() for name in names}
        first.add(command)
        for _ in range(num_steps):
            step(first, cut)
        if not first.has_work:
            break
        sent = [Output(cut[n].token_ids, cut[n].finish_reason is not None, cut[n].num_rewinds) for n in names]
        rest = run(engine(), [Generate("r", command.prompt_ids, command.params, sent)])
        for name in names:
            more = rest.get(name, Outcome())
            assert cut[name].token_ids + more.token_ids == whole[name].token_ids
            assert cut[name].logprobs + more.logprobs == pytest.approx(whole[name].logprobs)
            assert (more.finish_reason or cut[name].finish_reason) == whole[name].finish_reason
            assert max(more.num_rewinds, cut[name].num_rewinds) == whole[name].num_rewinds
    assert num_steps > 20, "the stream was not cut often"


def test_penalties_forget_the_tokens_that_were_taken_back():
    command = banned("r", LONG[:5], presence_penalty=1000.0)
    outcome = run(engine(), [command])["r"]
    assert (outcome.token_ids, outcome.finish_reason, outcome.num_rewinds) == reference(command)
    assert outcome.num_rewinds > 0
    assert len(set(outcome.token_ids)) == len(outcome.token_ids)


def test_guided_sequences_go_back_with_their_shadows():
    guided = banned("r", LONG[:5], max_new_tokens=50, guidance_scale=2.0)
    alone = run(engine(FakeRunner(64), max_batch_tokens=256, prefix_cache=False), [guided])["r"]
    crowded = engine(FakeRunner(36), max_batch_tokens=8)
    outcomes = run(crowded, [*commands()[:3], guided])
    assert outcomes["r"].token_ids == alone.token_ids
    assert alone.num_rewinds > 0
    assert not any(phrase in LETTERS.text(alone.token_ids) for phrase in PHRASES)


@pytest.mark.parametrize("family", ["llama", "bloom", "mistral"])
def test_a_real_cache_after_a_rewind_is_that_of_the_tokens_that_stayed(family):
    torch.set_num_threads(1)
    module = tiny_decoder(family)
    served = engine_of(module, vocabulary=LETTERS)
    outcome = run(served, [banned("r", [9, 40, 7, 120, 33], max_rewinds=64)])["r"]
    assert outcome.num_rewinds > 0
    ids = torch.tensor([[9, 40, 7, 120, 33, *outcome.token_ids]])
    with torch.inference_mode():
        logits = module(ids).logits[0, 4:-1]
    likelier = sum(int((logits[i] > logits[i, token] + 1e-4).sum()) for i, token in enumerate(outcome.token_ids))
    assert 0 < likelier <= outcome.num_rewinds, "a token was chosen from other logits"
