"""Rows in the middle of a prompt pay for no logits, and still fail where what they computed is not finite."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from server.engine.batch_inputs import Row
from server.engine.model_runner import ModelRunner
from tests.engine.driving import generate, make_engine, run
from tests.engine.fake_runner import FakeRunner
from tests.engine.test_runner_parity import runner_of

torch.set_num_threads(1)

EXECUTORS: dict[str, dict[str, Any]] = {
    "generic": {"executor": "generic"},
    "deterministic": {"executor": "generic", "deterministic": True},
    "compat": {"executor": "compat"},
}


@pytest.fixture(scope="module", params=list(EXECUTORS))
def runner(request: pytest.FixtureRequest) -> ModelRunner:
    return runner_of("llama", **EXECUTORS[request.param])


def rows_of(first_key: int, num_logits: tuple[int, int]) -> list[Row]:
    """Two prompts of six and nine tokens."""
    return [
        Row(
            key=first_key + i,
            token_ids=range(20 + i, 26 + 4 * i),
            num_computed=0,
            block_table=[3 * i, 3 * i + 1, 3 * i + 2],
            num_logits=num_logits[i],
        )
        for i in range(2)
    ]


def forward(runner: ModelRunner, rows: list[Row]) -> torch.Tensor:
    with torch.inference_mode():
        logits = runner.forward(rows)
    for row in rows:
        runner.release(row.key)
    return logits


@pytest.mark.parametrize("num_logits", [(0, 0), (0, 1), (1, 0), (0, 3)])
def test_a_row_has_as_many_logits_as_it_asks_for(runner: ModelRunner, num_logits: tuple[int, int]) -> None:
    everything = torch.split(forward(runner, rows_of(0, (6, 9))), [6, 9])
    logits = forward(runner, rows_of(2, num_logits))
    expected = torch.cat([part[len(part) - n :] for part, n in zip(everything, num_logits, strict=True)])
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
    assert list(runner.failed_rows) == []


@pytest.mark.parametrize("settings", EXECUTORS.values(), ids=list(EXECUTORS))
def test_a_row_without_logits_that_is_not_finite_is_told(settings: dict[str, Any]) -> None:
    runner = runner_of("llama", **settings)
    weight = getattr(runner, "_runner", runner)._module.get_input_embeddings().weight
    weight.data[20:26:2] = torch.nan
    for num_logits in ((0, 0), (0, 1)):
        rows = rows_of(0, num_logits)
        # The second row knows nothing of the first one's bad token.
        rows[1] = Row(key=1, token_ids=range(40, 49), num_computed=0, block_table=[3, 4, 5], num_logits=num_logits[1])
        assert forward(runner, rows).isfinite().all()
        assert list(runner.failed_rows) == [0]


def test_only_the_last_chunk_of_a_prompt_asks_for_logits() -> None:
    runner = FakeRunner()
    run(make_engine(runner, max_batch_tokens=4), [generate("r", list(range(1, 12)), max_new_tokens=2)])
    assert [[row.num_logits for row in rows] for rows in runner.batches] == [[0], [0], [1], [1]]


@pytest.mark.parametrize(
    "params", [{"num_beams": 2}, {"guidance_scale": 2.0}, {"num_return_sequences": 2, "do_sample": True}], ids=str
)
def test_groups_ask_for_logits_only_where_a_token_is_chosen(params: dict[str, object]) -> None:
    runner = FakeRunner()
    engine = make_engine(runner, max_batch_tokens=4)
    run(engine, [generate("r", list(range(1, 12)), max_new_tokens=3, **params)])
    for rows in runner.batches:
        assert {row.num_logits for row in rows} in ({0}, {1})
    assert {row.num_logits for row in runner.batches[0]} == {0}
