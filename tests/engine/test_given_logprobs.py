"""Log-probabilities of token ids that a request names, against transformers' own in float32."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from server.engine import native_draw
from server.engine.logprobs import Distribution
from server.engine.reductions import Scratch
from server.engine.sampler import Sampler
from server.protocol import Generate, Output, SamplingParams
from tests.engine.driving import Outcome, generate, make_engine, run, run_preempted
from tests.engine.fake_runner import FakeRunner
from tests.engine.test_engine_parity import engine_of
from tests.engine.test_logprobs import KINDS, sample
from tests.engine.test_sampler import logits_of, processed, sequence
from tests.tiny_models import tiny_decoder

PROMPT = [9, 40, 7, 120, 33, 5, 21]
IDS = (300, 7, 0, 119, 12)
KINDS_OF_REQUEST: dict[str, dict[str, Any]] = {
    "greedy": {},
    "draw": {"do_sample": True, "seed": 4, "temperature": 0.8, "top_k": 20},
    "samples": {"do_sample": True, "seed": 5, "num_return_sequences": 3},
    "rules": {"repetition_penalty": 1.7, "logit_bias": {7: 4.0}, "suppress_tokens": (300,)},
    "beams": {"num_beams": 3, "num_return_sequences": 2},
    "scored": {"prompt_logprobs": True, "top_n_tokens": 2},
}


@pytest.fixture(scope="module", params=["llama", "bloom"])
def module(request: pytest.FixtureRequest) -> PreTrainedModel:
    torch.set_num_threads(1)
    return tiny_decoder(request.param)


def models_own(module: PreTrainedModel, prompt_ids: list[int], output_ids: list[int]) -> Tensor:
    """The log-probabilities of the whole vocabulary at each place of the output."""
    with torch.inference_mode():
        logits = module(torch.tensor([[*prompt_ids, *output_ids]])).logits[0, len(prompt_ids) - 1 : -1]
    return logits.float().log_softmax(-1)


def check(outcome: Outcome, module: PreTrainedModel, prompt_ids: list[int], ids: tuple[int, ...]) -> None:
    expected = models_own(module, prompt_ids, outcome.token_ids)[:, list(ids)]
    assert len(outcome.top_logprobs) == len(outcome.token_ids) > 0
    for told, wanted in zip(outcome.top_logprobs, expected.tolist(), strict=True):
        assert [one.token_id for one in told] == list(ids)
        assert [one.logprob for one in told] == pytest.approx(wanted, abs=1e-4)


def test_given_tokens_are_told_as_transformers_has_them_in_a_batch_of_all_kinds(module: PreTrainedModel) -> None:
    commands = [
        generate(kind, PROMPT[i % 3 :], max_new_tokens=6, logprob_token_ids=IDS[: 2 + i % 4], **params)
        for i, (kind, params) in enumerate(KINDS_OF_REQUEST.items())
    ]
    others = [generate("plain", PROMPT), generate("top", PROMPT[1:], top_n_tokens=4, max_new_tokens=6)]
    outcomes = run(engine_of(module, max_batch_tokens=16), [*commands, *others])
    for i, command in enumerate(commands):
        names = [name for name in outcomes if name.partition("#")[0] == command.request_id]
        assert len(names) == command.params.num_return_sequences
        for name in names:
            check(outcomes[name], module, command.prompt_ids, IDS[: 2 + i % 4])
    assert {len(place) for place in outcomes["top"].top_logprobs} == {4}
    assert not outcomes["plain"].top_logprobs


def test_given_tokens_of_a_guided_request_are_told_of_the_model_alone(module: PreTrainedModel) -> None:
    params = SamplingParams(max_new_tokens=6, guidance_scale=2.5, logprob_token_ids=IDS)
    command = Generate("r", PROMPT, params, negative_prompt_ids=[200, 31, 7])
    check(run(engine_of(module), [command])["r"], module, PROMPT, IDS)


def test_a_resumed_request_goes_on_with_its_given_tokens(module: PreTrainedModel) -> None:
    params: dict[str, Any] = {"max_new_tokens": 8, "logprob_token_ids": IDS, "do_sample": True, "seed": 8}
    whole = run(engine_of(module), [generate("r", PROMPT, **params)])["r"]
    resumed = Generate("r", PROMPT, SamplingParams(**params), outputs=[Output(token_ids=whole.token_ids[:3])])
    rest = run(engine_of(module), [resumed])["r"]
    assert rest.token_ids == whole.token_ids[3:]
    check(rest, module, [*PROMPT, *whole.token_ids[:3]], IDS)


def test_preempted_requests_are_told_what_they_are_told_alone() -> None:
    def commands() -> list[Generate]:
        kinds = [{}, {"do_sample": True, "seed": 3}, {"num_beams": 2}]
        return [
            generate(f"r{i}", [1 + i, 2, 3, 4, 5, 6, 7], max_new_tokens=24, logprob_token_ids=(30, 4 + i), **kind)
            for i, kind in enumerate(kinds)
        ]

    outcomes = run_preempted(make_engine(FakeRunner(20), max_batch_tokens=16, prefix_cache=False), commands())
    for command in commands():
        alone = run(make_engine(FakeRunner(64), prefix_cache=False), [command])[command.request_id]
        assert outcomes[command.request_id].top_logprobs == alone.top_logprobs
        assert {len(place) for place in alone.top_logprobs} == {2}


@pytest.mark.parametrize("draws_natively", [True, False])
@pytest.mark.parametrize("mode", ["raw", "processed"])
def test_given_tokens_are_of_the_distribution_that_was_asked_for(
    mode: str, draws_natively: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not draws_natively:
        monkeypatch.setattr(native_draw, "can_draw", lambda logits: False)
    ids = (3, 39, 5, 17)
    logits = logits_of(len(KINDS), 3001, seed=2, scale=2.0)
    rows = [sequence(seed=i, logprob_token_ids=ids, logprobs_mode=mode, **kind) for i, kind in enumerate(KINDS)]
    sampled = sample(logits, rows)
    for i, row in enumerate(rows):
        expected = (logits[i] if mode == "raw" else processed(logits[i], row)).double().log_softmax(-1)[list(ids)]
        assert [told.token_id for told in sampled.top_logprobs[i]] == list(ids)
        assert [told.logprob for told in sampled.top_logprobs[i]] == pytest.approx(
            expected.tolist(), rel=1e-6, abs=3e-6
        )


def test_a_given_token_has_the_same_float_as_the_chosen_one() -> None:
    logits = logits_of(len(KINDS), 700, seed=1)
    plain = Sampler().sample(logits.clone(), [sequence(seed=i, **kind) for i, kind in enumerate(KINDS)])
    rows = [
        sequence(seed=i, logprob_token_ids=(token_id,), **kind)
        for i, (kind, token_id) in enumerate(zip(KINDS, plain.token_ids, strict=True))
    ]
    sampled = sample(logits, rows)
    assert sampled.token_ids == plain.token_ids
    assert [place[0].logprob for place in sampled.top_logprobs] == sampled.logprobs


def test_a_given_token_outside_the_candidates_cannot_be_chosen() -> None:
    scores = torch.tensor([[2.0, 1.0], [0.5, 0.25]])
    columns = torch.tensor([[4, 9], [9, 30]])
    told = Distribution(scores, Scratch()).given([(0, (9, 30)), (1, ()), (1, (30,))], columns)
    assert [[one.token_id for one in place] for place in told] == [[9, 30], [], [30]]
    assert told[0][0].logprob == pytest.approx(scores[0].log_softmax(-1)[1].item())
    assert told[0][1].logprob == -torch.inf
    assert told[2][0].logprob == pytest.approx(scores[1].log_softmax(-1)[1].item())
