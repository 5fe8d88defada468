"""Guesses on real tiny models: the same tokens, from fewer passes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from server.engine.batch_inputs import Row
from server.engine.engine import DecoderEngine
from server.engine.model_runner import ModelRunner
from tests.engine.drafting import EagerDrafter
from tests.engine.driving import Outcome, generate, run
from tests.engine.test_runner_parity import MAX_MODEL_LEN, runner_of

torch.set_num_threads(1)

PARAMS: list[dict[str, Any]] = [
    {},
    {"repetition_penalty": 1.1},
    {"do_sample": True, "seed": 4, "temperature": 0.3},
    {"do_sample": True, "seed": 5, "temperature": 0.5, "top_p": 0.9, "frequency_penalty": 0.1},
]


def serve(runner: ModelRunner, drafter: EagerDrafter | None) -> tuple[dict[str, Outcome], int]:
    """What comes out, and the number of passes."""
    num_passes = 0
    forward = runner.forward

    def counted(rows: Sequence[Row]) -> Tensor:
        nonlocal num_passes
        num_passes += 1
        return forward(rows)

    runner.forward = counted  # type: ignore[method-assign]
    engine = DecoderEngine(
        runner, max_model_len=MAX_MODEL_LEN, max_batch_tokens=64, max_running=4, prefix_cache=True, drafter=drafter
    )
    generator = torch.Generator().manual_seed(9)
    stem = torch.randint(3, 380, (9,), generator=generator).tolist()
    commands = [
        generate(str(i), (stem[: 5 + i] * 4)[:24], max_new_tokens=60, ignore_eos=True, **params)
        for i, params in enumerate(PARAMS)
    ]
    outcomes = {command.request_id: run(engine, [command])[command.request_id] for command in commands}
    runner.forward = forward  # type: ignore[method-assign]
    return outcomes, num_passes


@pytest.mark.parametrize("executor", ["generic", "auto"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_model_says_the_same_with_guesses(family: str, executor: str) -> None:
    runner = runner_of(family, executor=executor)
    expected, num_plain = serve(runner, None)
    outcomes, num_drafted = serve(runner, EagerDrafter())
    assert {name: one.token_ids for name, one in outcomes.items()} == {
        name: one.token_ids for name, one in expected.items()
    }
    assert num_drafted < num_plain
