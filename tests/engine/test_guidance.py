"""Classifier-free guidance against transformers, and guided requests among others."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
import torch
from transformers import PreTrainedModel

from server.protocol import Generate, Output, SamplingParams
from tests.engine.driving import Outcome, make_engine, run, run_preempted
from tests.engine.fake_runner import POISON, FakeRunner
from tests.engine.test_engine_parity import engine_of
from tests.tiny_models import PAD_ID, tiny_decoder

PROMPT = [9, 40, 7, 120, 33, 5, 21]
NEGATIVES = [[], [200, 31, 7], [50, 51, 52, 53, 54, 55, 56, 57, 58, 59, 60]]


def guided(
    request_id: str, prompt_ids: list[int], negative_ids: list[int], outputs: list[Output] | None = None, **params: Any
) -> Generate:
    params = {"max_new_tokens": 12, "guidance_scale": 2.5, **params}
    return Generate(
        request_id, prompt_ids, SamplingParams(**params), outputs=outputs or [], negative_prompt_ids=negative_ids
    )


@pytest.fixture(scope="module", params=["llama", "gpt2", "bloom"])
def module(request: pytest.FixtureRequest) -> PreTrainedModel:
    torch.set_num_threads(1)
    return tiny_decoder(request.param)


def expected(module: PreTrainedModel, negative_ids: list[int], scale: float, penalty: float) -> list[int]:
    prompt = torch.tensor([PROMPT])
    negative = {"negative_prompt_ids": torch.tensor([negative_ids])} if negative_ids else {}
    with torch.inference_mode():
        output = module.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            guidance_scale=scale,
            max_new_tokens=12,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=PAD_ID,
            repetition_penalty=penalty,
            **negative,
        )
    return output[0, len(PROMPT) :].tolist()


@pytest.mark.parametrize("negative_ids", NEGATIVES)
@pytest.mark.parametrize(("scale", "penalty"), [(1.5, 1.0), (4.0, 1.3)])
def test_guided_tokens_are_those_of_transformers(module, negative_ids, scale, penalty):
    commands = [
        guided("r", PROMPT, negative_ids, guidance_scale=scale, repetition_penalty=penalty),
        guided("other", PROMPT[2:], [8, 9], guidance_scale=3.0),
    ]
    outcomes = run(engine_of(module, max_batch_tokens=9), commands)
    assert outcomes["r"].token_ids == expected(module, negative_ids, scale, penalty)


def test_told_log_probabilities_are_the_models_own(module):
    outcome = run(engine_of(module), [guided("r", PROMPT, NEGATIVES[1], logprobs=True, top_n_tokens=3)])["r"]
    ids = torch.tensor([[*PROMPT, *outcome.token_ids]])
    with torch.inference_mode():
        logprobs = module(ids).logits[0, len(PROMPT) - 1 : -1].float().log_softmax(-1)
    chosen = logprobs.gather(1, torch.tensor(outcome.token_ids)[:, None])[:, 0]
    assert outcome.logprobs == pytest.approx(chosen.tolist(), abs=1e-4)
    assert [[top.token_id for top in place] for place in outcome.top_logprobs] == logprobs.topk(3).indices.tolist()


def lone(command: Generate) -> dict[str, Outcome]:
    return run(make_engine(FakeRunner(64), max_batch_tokens=256, prefix_cache=False), [command])


def commands() -> list[Generate]:
    return [
        guided("greedy", [1, 2, 3, 4, 5, 6], [30, 31]),
        guided("samples", [1, 2, 3, 4, 7], [40, 41, 42, 43, 44, 45], num_return_sequences=2, do_sample=True, seed=4),
        guided("beams", [5, 4, 3], [30], num_beams=2),
        guided("long", [11], list(range(1, 21)), do_sample=True, seed=9),
    ]


@pytest.mark.parametrize("can_reuse_blocks", [True, False])
@pytest.mark.parametrize("max_batch_tokens", [8, 64])
def test_guided_groups_give_what_they_give_alone_also_preempted(can_reuse_blocks, max_batch_tokens):
    engine = make_engine(FakeRunner(17, can_reuse_blocks=can_reuse_blocks), max_batch_tokens=max_batch_tokens)
    outcomes = run_preempted(engine, commands())
    alone: dict[str, Outcome] = {}
    for command in commands():
        alone |= lone(command)
    assert {name: outcome.token_ids for name, outcome in outcomes.items()} == {
        name: outcome.token_ids for name, outcome in alone.items()
    }


def test_a_resumed_guided_request_goes_on_as_if_nothing_had_happened():
    whole = lone(commands()[3])["long"].token_ids
    resumed = guided("long", [11], list(range(1, 21)), [Output(whole[:5])], do_sample=True, seed=9)
    assert whole[:5] + lone(resumed)["long"].token_ids == whole


@pytest.mark.parametrize("num_sent", [(5, 5, 5), (1, 7, 3), (6, 0, 2)])
def test_each_resumed_sample_is_guided_by_its_own_output(num_sent: tuple[int, ...]) -> None:
    command = guided("r", [11], list(range(1, 21)), do_sample=True, seed=9, num_return_sequences=3)
    names = ["r", "r#1", "r#2"]
    whole = [lone(command)[name].token_ids for name in names]
    sent = [Output(token_ids[:count]) for token_ids, count in zip(whole, num_sent, strict=True)]
    rest = lone(msgspec.structs.replace(command, outputs=sent))
    assert [output.token_ids + rest[name].token_ids for name, output in zip(names, sent, strict=True)] == whole


def test_a_resumed_sample_is_guided_by_its_own_output_after_another_has_ended() -> None:
    command = guided("r", [11], [4, 5], do_sample=True, seed=9, num_return_sequences=2)
    whole = lone(command)
    sent = [Output(whole["r"].token_ids, is_finished=True), Output(whole["r#1"].token_ids[:4])]
    rest = lone(msgspec.structs.replace(command, outputs=sent))
    assert sent[1].token_ids + rest["r#1"].token_ids == whole["r#1"].token_ids


def test_a_negative_prompt_that_is_not_finite_fails_the_request_alone():
    bad = guided("bad", [1, 2, 3], [4, POISON])
    outcomes = run(make_engine(), [bad, commands()[0]])
    assert outcomes["bad"].failure == "numerical_error"
    assert outcomes["greedy"].token_ids == lone(commands()[0])["greedy"].token_ids


def test_a_guided_request_ends_before_its_negative_prompt_outgrows_the_model():
    engine = make_engine(max_model_len=20)
    outcome = run(engine, [guided("r", [1, 2], list(range(1, 16)), max_new_tokens=50)])["r"]
    assert (len(outcome.token_ids), outcome.finish_reason) == (5, "length")
