"""Beam searches as groups of rows in the continuous batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from server.protocol import Generate, Stats, Tokens
from tests.engine.driving import Outcome, generate, make_engine, run, run_alone, run_preempted, step
from tests.engine.fake_runner import POISON, FakeRunner
from tests.engine.test_engine_parity import engine_of
from tests.tiny_models import EOS_ID, PAD_ID, tiny_decoder

LONG = list(range(1, 31))
SEARCHES: list[dict[str, Any]] = [
    {"num_beams": 2},
    {"num_beams": 4, "num_return_sequences": 3, "length_penalty": 0.5},
    {"num_beams": 3, "early_stopping": True, "repetition_penalty": 1.4},
    {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.7},
    {"num_beams": 3, "do_sample": True, "seed": 5},
]


def commands() -> list[Generate]:
    return [
        generate(str(i), LONG[i : i + 6], max_new_tokens=10, end_token_ids=(3, 17, 40), **search)
        for i, search in enumerate(SEARCHES)
    ]


def alone() -> dict[str, Outcome]:
    outcomes: dict[str, Outcome] = {}
    for command in commands():
        outcomes |= run(make_engine(FakeRunner(64), max_batch_tokens=256, prefix_cache=False), [command])
    return outcomes


@pytest.mark.parametrize("can_reuse_blocks", [True, False])
@pytest.mark.parametrize("max_batch_tokens", [8, 64])
def test_searches_give_what_they_give_alone_preempted_and_in_any_batch(can_reuse_blocks, max_batch_tokens):
    engine = make_engine(FakeRunner(14, can_reuse_blocks=can_reuse_blocks), max_batch_tokens=max_batch_tokens)
    others = [generate(f"other{i}", LONG[i : i + 9], max_new_tokens=12, do_sample=True, seed=i) for i in range(3)]
    outcomes = run_preempted(engine, (*others, *commands()))
    expected = alone() | {command.request_id: run_alone(command) for command in others}
    assert {name: (outcome.token_ids, outcome.score) for name, outcome in outcomes.items()} == {
        name: (outcome.token_ids, outcome.score) for name, outcome in expected.items()
    }


def test_a_search_whose_prompt_is_not_finite_fails_once_and_alone():
    bad = generate("bad", [1, POISON, 3], max_new_tokens=5, num_beams=4)
    outcomes = run(make_engine(), [bad, commands()[0]])
    assert outcomes["bad"].failure == "numerical_error"
    assert outcomes["0"].token_ids == alone()["0"].token_ids


def test_a_search_that_forbids_every_token_fails_as_its_own_fault():
    outcomes = run(make_engine(), [generate("r", [1, 2], num_beams=2, allowed_token_ids=(), max_new_tokens=5)])
    assert outcomes["r"].failure == "no_token_left"


def test_four_beams_over_a_long_prompt_hold_little_more_than_one_sequence():
    engine = make_engine(FakeRunner(64, block_size=32), max_model_len=1100, max_batch_tokens=1100)
    engine.add(generate("r", [1 + i % 50 for i in range(1000)], max_new_tokens=30, num_beams=4))
    outcomes: dict[str, Outcome] = {}
    most = max(step(engine, outcomes).num_blocks_used for _ in range(29))
    assert 33 < most < 1.2 * 33


@pytest.fixture(scope="module", params=["llama", "bloom"])
def module(request: pytest.FixtureRequest) -> PreTrainedModel:
    torch.set_num_threads(1)
    return tiny_decoder(request.param)


def test_hypotheses_and_scores_are_those_of_transformers(module):
    generator = torch.Generator().manual_seed(3)
    prompts = [torch.randint(3, 380, (length,), generator=generator).tolist() for length in (5, 9, 13)]
    shapes = [(2, 1, 1.0), (4, 3, 0.6), (3, 2, 2.0)]
    searches = [
        generate(
            str(i),
            prompt,
            max_new_tokens=12,
            end_token_ids=(EOS_ID, 11),
            num_beams=num_beams,
            num_return_sequences=num_answers,
            length_penalty=length_penalty,
            logprobs=True,
        )
        for i, (prompt, (num_beams, num_answers, length_penalty)) in enumerate(zip(prompts, shapes, strict=True))
    ]
    outcomes = run(engine_of(module, max_batch_tokens=11), searches)
    for command in searches:
        params = command.params
        with torch.inference_mode():
            expected = module.generate(
                torch.tensor([command.prompt_ids]),
                attention_mask=torch.ones(1, len(command.prompt_ids), dtype=torch.int64),
                num_beams=params.num_beams,
                num_return_sequences=params.num_return_sequences,
                length_penalty=params.length_penalty,
                max_new_tokens=params.max_new_tokens,
                eos_token_id=list(params.end_token_ids),
                pad_token_id=PAD_ID,
                do_sample=False,
                return_dict_in_generate=True,
                output_scores=True,
            )
        for index in range(params.num_return_sequences):
            outcome = outcomes[f"{command.request_id}#{index}" if index else command.request_id]
            tokens = expected.sequences[index, len(command.prompt_ids) :].tolist()
            assert tokens[: len(outcome.token_ids)] == outcome.token_ids
            assert set(tokens[len(outcome.token_ids) :]) <= {PAD_ID}
            assert outcome.score == pytest.approx(float(expected.sequences_scores[index]), abs=1e-4)
            assert len(outcome.logprobs) == len(outcome.token_ids)


def test_what_is_certain_is_streamed_and_never_taken_back():
    engine = make_engine()
    engine.add(generate("r", LONG[:5], max_new_tokens=40, num_beams=2))
    sent: list[list[int]] = []
    while engine.has_work:
        *answers, stats = engine.step()
        assert isinstance(stats, Stats)
        sent += [answer.token_ids for answer in answers if isinstance(answer, Tokens)]
    assert len(sent) > 1, "nothing was certain before the end"
    expected = run(make_engine(), [generate("r", LONG[:5], max_new_tokens=40, num_beams=2)])["r"]
    assert [token_id for token_ids in sent for token_id in token_ids] == expected.token_ids
