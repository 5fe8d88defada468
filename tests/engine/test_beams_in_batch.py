"""Beam searches inside the engine, beside everything else, against searches over a dense forward pass."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from server.engine.engine import DecoderEngine
from server.protocol import Generate, SamplingParams
from tests.engine.beam_driving import Forward, Run, dense, drive
from tests.engine.driving import Outcome, generate, run, run_preempted
from tests.engine.test_beams_text import LETTERS
from tests.engine.test_engine_parity import engine_of
from tests.tiny_models import tiny_decoder

TOLD: dict[str, Any] = {"logprobs": True}
SEARCHES: list[dict[str, Any]] = [
    {"num_beams": 2, "num_return_sequences": 2, "end_token_ids": (2, 11, 40), **TOLD},
    {"num_beams": 4, "num_return_sequences": 3, "length_penalty": 0.6, "repetition_penalty": 1.4},
    {"num_beams": 3, "early_stopping": True, "end_token_ids": tuple(range(2, 40)), "top_n_tokens": 2},
    {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.8, "num_return_sequences": 4, **TOLD},
    {"num_beams": 3, "do_sample": True, "temperature": 1.5, "seed": 4, "num_return_sequences": 3},
    {"num_beams": 4, "stop_strings": ("xy", "e"), "banned_phrases": ("A", "tt"), "num_return_sequences": 2},
    {"num_beams": 8, "early_stopping": "never", "no_repeat_ngram_size": 1, "min_new_tokens": 5, "end_token_ids": (7,)},
]
OTHERS: list[dict[str, Any]] = [
    {},
    {"do_sample": True, "seed": 3, "top_p": 0.9, "logprobs": True},
    {"do_sample": True, "seed": 8, "num_return_sequences": 3, "temperature": 1.3},
    {"repetition_penalty": 1.3, "end_token_ids": (2, 11)},
]


@pytest.fixture(scope="module", params=["llama", "gpt2", "bloom"])
def module(request: pytest.FixtureRequest) -> PreTrainedModel:
    torch.set_num_threads(1)
    return tiny_decoder(request.param)


def prompt_of(number: int) -> list[int]:
    """Some begin alike, over more than a block."""
    stem = torch.randint(3, 380, (17,), generator=torch.Generator().manual_seed(3)).tolist()
    return [*stem[: 3 * (number % 5)], 20 + number, 7]


def searches() -> list[Generate]:
    return [generate(f"beams{i}", prompt_of(i), max_new_tokens=12, **params) for i, params in enumerate(SEARCHES)]


def others() -> list[Generate]:
    return [generate(f"other{i}", prompt_of(i + 2), max_new_tokens=14, **params) for i, params in enumerate(OTHERS)]


def engine(module: PreTrainedModel, **limits: Any) -> DecoderEngine:
    return engine_of(module, vocabulary=LETTERS, **{"max_running": 24, **limits})


def assert_answers(outcomes: dict[str, Outcome], command: Generate, expected: Run) -> None:
    for index, hypothesis in enumerate(expected.results):
        outcome = outcomes[f"{command.request_id}#{index}" if index else command.request_id]
        assert outcome.token_ids == hypothesis.token_ids.tolist()
        assert outcome.finish_reason == hypothesis.finish_reason
        assert outcome.score == pytest.approx(hypothesis.score, abs=1e-4)
        if command.params.logprobs or command.params.top_n_tokens:
            assert outcome.logprobs == pytest.approx(hypothesis.logprobs.tolist(), abs=1e-4)
        for top, told in zip(outcome.top_logprobs, hypothesis.top_logprobs, strict=True):
            assert [entry.token_id for entry in top] == [entry.token_id for entry in told]


@pytest.fixture(scope="module")
def expected(module: PreTrainedModel) -> dict[str, Run]:
    return {
        command.request_id: drive([Run(command.prompt_ids, command.params, LETTERS)], dense(module))[0]
        for command in searches()
    }


def test_searches_alone_and_all_at_once_beside_samples_give_the_dense_answers(module, expected):
    lone = engine(module)
    for command in searches():
        assert_answers(run(lone, [command]), command, expected[command.request_id])
    commands = [command for pair in zip(searches(), [*others(), *others()], strict=False) for command in pair]
    for number, command in enumerate(commands):
        commands[number] = Generate(f"{number}{command.request_id}", command.prompt_ids, command.params)
    together = run(lone, commands)
    if lone.blocks.prefix_cache:
        assert sum(outcome.num_cached_tokens or 0 for outcome in together.values()) > 0
    alone = {command.request_id: run(engine(module), [command]) for command in others()}
    for command in commands:
        name = command.request_id.lstrip("0123456789")
        if name in expected:
            assert_answers(together, command, expected[name])
        else:
            assert together[command.request_id].token_ids == alone[name][name].token_ids


@pytest.mark.parametrize(("num_blocks", "max_batch_tokens"), [(60, 24), (45, 64)])
def test_searches_that_are_preempted_and_chunked_give_the_dense_answers(module, expected, num_blocks, max_batch_tokens):
    small = engine(module, num_blocks=num_blocks, max_batch_tokens=max_batch_tokens)
    outcomes = run_preempted(small, (*others(), *searches()))
    for command in searches():
        assert_answers(outcomes, command, expected[command.request_id])


def guided(module: PreTrainedModel, prompt_ids: list[int], negative_ids: list[int], scale: float) -> Forward:
    """Two dense passes; the result is not normalised."""

    def forward(rows: list[list[int]]) -> Tensor:
        with_it = dense(module)(rows).log_softmax(-1)
        without = dense(module)([negative_ids + row[len(prompt_ids) :] for row in rows]).log_softmax(-1)
        return scale * (with_it - without) + without

    return forward


def test_guided_beams_rank_guided_scores_and_tell_the_models_own_log_probabilities(module):
    prompt_ids, negative_ids, scale = prompt_of(3), [9, 200, 31], 1.6
    params = SamplingParams(
        num_beams=3,
        num_return_sequences=3,
        max_new_tokens=8,
        end_token_ids=(11,),
        guidance_scale=scale,
        top_n_tokens=2,
    )
    command = Generate("r", prompt_ids, params, negative_prompt_ids=negative_ids)
    outcomes = run(engine(module), [command, *others()])
    found = drive([Run(prompt_ids, params)], guided(module, prompt_ids, negative_ids, scale))[0]
    for index, hypothesis in enumerate(found.results):
        outcome = outcomes[f"r#{index}" if index else "r"]
        assert outcome.token_ids == hypothesis.token_ids.tolist()
        assert outcome.score == pytest.approx(hypothesis.score, abs=1e-3)
        forward = guided(module, prompt_ids, negative_ids, scale)
        ranked = [
            float(forward([prompt_ids + outcome.token_ids[:i]])[0, token_id])
            for i, token_id in enumerate(outcome.token_ids)
        ]
        assert outcome.score == pytest.approx(sum(ranked) / len(ranked), abs=1e-3), "guided scores as they are"
        for i, token_id in enumerate(outcome.token_ids):
            own = dense(module)([prompt_ids + outcome.token_ids[:i]]).log_softmax(-1)[0]
            assert outcome.logprobs[i] == pytest.approx(own[token_id].item(), abs=1e-4)
            assert [entry.token_id for entry in outcome.top_logprobs[i]] == own.topk(2).indices.tolist()
