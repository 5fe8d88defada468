"""Log-probabilities of the prompt's own tokens."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from server.protocol import Generate, Output
from tests.engine.driving import Outcome, generate, make_engine, run, run_preempted, step
from tests.engine.fake_runner import FakeRunner
from tests.engine.test_engine_parity import engine_of
from tests.tiny_models import tiny_decoder

LONG = list(range(1, 31))


def expected(prompt_ids: list[int]) -> list[float]:
    prefix = np.array([[token, i] for i, token in enumerate(prompt_ids)])
    return [
        float(FakeRunner.logits_of(prefix[: i + 1]).log_softmax(-1)[token]) for i, token in enumerate(prompt_ids[1:])
    ]


@pytest.mark.parametrize("max_batch_tokens", [8, 13, 64])
@pytest.mark.parametrize("search", [{}, {"num_return_sequences": 3, "do_sample": True}, {"num_beams": 2}])
def test_every_prompt_token_after_the_first_has_its_log_probability(max_batch_tokens, search):
    engine = make_engine(max_batch_tokens=max_batch_tokens)
    run(engine, [generate("before", LONG)])
    commands = [
        generate("r", LONG, prompt_logprobs=True, top_n_tokens=2, **search),
        generate("plain", LONG[3:]),
        generate("one", [5], prompt_logprobs=True),
    ]
    outcomes = run(engine, commands)
    scores = outcomes["r"].prompt_logprobs
    assert scores is not None
    assert scores.logprobs == pytest.approx(expected(LONG), abs=1e-5)
    assert scores.top_logprobs is not None
    assert [len(top) for top in scores.top_logprobs] == [2] * 29
    assert outcomes["r"].num_cached_tokens == 0
    assert outcomes["plain"].prompt_logprobs is None
    assert outcomes["one"].prompt_logprobs is not None
    assert outcomes["one"].prompt_logprobs.logprobs == []
    assert [name for name in outcomes if name.startswith("r#") and outcomes[name].prompt_logprobs] == []
    assert outcomes["r"].token_ids == run(make_engine(), [generate("r", LONG, **search)])["r"].token_ids


@pytest.mark.parametrize("family", ["llama", "bloom"])
def test_prompt_log_probabilities_are_those_of_a_plain_forward_pass(family):
    torch.set_num_threads(1)
    module = tiny_decoder(family)
    prompt = torch.randint(3, 380, (25,), generator=torch.Generator().manual_seed(1)).tolist()
    engine = engine_of(module, max_batch_tokens=10)
    scores = run(engine, [generate("r", prompt, prompt_logprobs=True)])["r"].prompt_logprobs
    assert scores is not None
    with torch.inference_mode():
        logprobs = module(torch.tensor([prompt])).logits[0, :-1].float().log_softmax(-1)
    assert scores.logprobs == pytest.approx(
        logprobs.gather(1, torch.tensor(prompt[1:])[:, None])[:, 0].tolist(), abs=1e-4
    )


def test_a_prompt_that_is_preempted_half_scored_is_scored_once():
    # The first one grows until the second, in its prompt, has to go.
    engine = make_engine(FakeRunner(11), max_batch_tokens=8, prefix_cache=False)
    outcomes: dict[str, Outcome] = {}
    engine.add(generate("old", LONG[:5], max_new_tokens=30))
    for _ in range(8):
        step(engine, outcomes)
    new = generate("new", LONG[:24], prompt_logprobs=True, max_new_tokens=2)
    run_preempted(engine, [new], outcomes)
    scores = outcomes["new"].prompt_logprobs
    assert scores is not None
    assert scores.logprobs == pytest.approx(expected(LONG[:24]), abs=1e-5)


def test_a_resumed_request_whose_first_tokens_were_sent_does_not_score_its_prompt_again():
    whole = run(make_engine(), [generate("r", LONG[:5], prompt_logprobs=True)])["r"]
    command = generate("r", LONG[:5], prompt_logprobs=True)
    rest = run(make_engine(), [Generate("r", LONG[:5], command.params, [Output(whole.token_ids[:3])])])["r"]
    assert rest.prompt_logprobs is None
    assert whole.token_ids[:3] + rest.token_ids == whole.token_ids
