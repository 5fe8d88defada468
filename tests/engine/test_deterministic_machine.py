"""With `deterministic`, a row is cut where it would be cut alone, whatever the batch, the cache and the past are.

The runner's logits are a hash of the tokens *and* of the parts in which they were computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings

from server.engine import engine as engine_module
from server.engine.batch_inputs import Row
from server.engine.engine import DecoderEngine
from server.engine.lengths import LengthRule
from server.protocol import Generate, Output, SamplingParams
from tests.engine.driving import make_engine, run
from tests.engine.fake_runner import FakeRunner
from tests.engine.test_engine_machine import EngineMachine
from tests.engine.test_rewinds import LETTERS
from tests.fuzz.scale import SCALE

CHUNK = 8
"""Tokens, of which two blocks hold that many."""


class CutRunner(FakeRunner):
    """Tells from its logits in which parts the tokens before were computed."""

    def __init__(self, num_blocks: int = 64, length_rule: LengthRule | None = None) -> None:
        super().__init__(num_blocks, length_rule=length_rule)
        self.cuts = np.full(len(self.slots), -1, dtype=np.int64)

    def forward(self, rows: Sequence[Row]) -> torch.Tensor:
        for row in rows:
            for i in range(len(row.token_ids)):
                self.cuts[self._slot(row, row.num_computed + i)] = row.num_computed * 100 + len(row.token_ids)
        return super().forward(rows)

    def copy_blocks(self, pairs: Sequence[tuple[int, int]]) -> None:
        super().copy_blocks(pairs)
        blocks = self.cuts.reshape(self.num_blocks, self.block_size)
        sources, destinations = np.array(pairs).T
        blocks[destinations] = blocks[sources]

    def _slot(self, row: Row, i: int) -> int:
        return int(row.block_table[i // self.block_size]) * self.block_size + i % self.block_size

    def _prefix(self, row: Row, stop: int) -> np.ndarray:
        slots = [self._slot(row, i) for i in range(stop)]
        return np.concatenate([self.slots[slots], self.cuts[slots][:, None]], axis=1)


@pytest.fixture(autouse=True)
def _short_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "FIXED_CHUNK_TOKENS", CHUNK)


def engine_of(num_blocks: int = 64, length_rule: LengthRule | None = None, **limits: Any) -> DecoderEngine:
    runner = CutRunner(num_blocks, length_rule)
    return make_engine(runner, **{"deterministic": True, "vocabulary": LETTERS, **limits})


class DeterministicMachine(EngineMachine):
    @staticmethod
    def fresh_engine(
        num_blocks: int, can_reuse_blocks: bool, length_rule: LengthRule | None = None, **limits: Any
    ) -> DecoderEngine:
        return engine_of(num_blocks, length_rule, max_model_len=36, max_running=4, **limits)


TestDeterministicMachine = DeterministicMachine.TestCase
TestDeterministicMachine.settings = settings(
    max_examples=30 * SCALE, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)


@pytest.mark.parametrize("budget", [2, 5, 10, 30])
def test_a_guided_row_and_its_shadow_end_their_prompts_in_one_step_however_small_it_is(budget: int) -> None:
    params = SamplingParams(max_new_tokens=4, guidance_scale=2.0)
    command = Generate("r", list(range(1, 22)), params, negative_prompt_ids=list(range(30, 36)))
    expected = run(engine_of(max_batch_tokens=256), [command])
    other = Generate("other", list(range(1, 40)), SamplingParams(max_new_tokens=9))
    assert run(engine_of(max_batch_tokens=budget, max_running=2), [command]) == expected
    busy = run(engine_of(max_batch_tokens=max(3, budget), max_running=3), [other, command])
    assert busy["r"].token_ids == expected["r"].token_ids


def test_a_resumed_sample_without_a_token_gets_its_prompt_in_the_same_parts() -> None:
    params = SamplingParams(max_new_tokens=6, num_return_sequences=2, do_sample=True, seed=3)
    command = Generate("r", list(range(1, 14)), params)
    whole = run(engine_of(), [command])
    begun = [Output(whole["r"].token_ids[:3]), Output()]
    rest = run(engine_of(), [Generate("r", command.prompt_ids, params, begun)])
    assert whole["r"].token_ids[3:] == rest["r"].token_ids
    assert whole["r#1"].token_ids == rest["r#1"].token_ids


def test_an_output_is_not_found_in_a_prompt_that_was_computed_otherwise() -> None:
    """A conversation's next turn has the answer in its prompt, while the answer is still being resumed elsewhere."""
    params = SamplingParams(max_new_tokens=30)
    command = Generate("r", list(range(1, 7)), params)
    whole = run(engine_of(), [command])["r"].token_ids
    engine = engine_of()
    run(engine, [Generate("next", [*command.prompt_ids, *whole[:20]], SamplingParams(max_new_tokens=2))])
    resumed = Generate("r", command.prompt_ids, params, [Output(whole[:20])])
    assert run(engine, [resumed])["r"].token_ids == whole[20:]
