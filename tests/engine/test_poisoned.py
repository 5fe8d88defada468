"""One row of a request that is not finite fails that request once, and leaves nothing behind."""

from __future__ import annotations

from typing import Any

import pytest

from tests.engine.driving import generate, make_engine, run
from tests.engine.fake_runner import POISON, FakeRunner

OTHER = generate("other", [1, 2, 3, 4, 5, 6, 7], max_new_tokens=12)
KINDS: list[dict[str, Any]] = [
    {"num_beams": 2},
    {"num_beams": 4, "num_return_sequences": 3},
    {"num_beams": 2, "guidance_scale": 2.0},
    {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 5.0},
    {"num_return_sequences": 4, "do_sample": True, "temperature": 100.0, "seed": 2},
]


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_a_row_that_is_not_finite_fails_its_own_request_alone(kind: dict[str, Any], deterministic: bool) -> None:
    # The model fails for whoever has chosen the one of these tokens, and not for the other.
    command = generate("r", [1, 2, 3, 4, 5], logit_bias={POISON: 1e9}, allowed_token_ids=(POISON, 8), **kind)
    expected = run(make_engine(FakeRunner(), deterministic=deterministic), [OTHER])["other"]
    runner = FakeRunner()
    outcomes = run(make_engine(runner, deterministic=deterministic), [command, OTHER])
    assert outcomes["r"].failure == "numerical_error"
    assert outcomes["other"].token_ids == expected.token_ids
    assert runner.live == {}
