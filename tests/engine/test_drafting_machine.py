"""Random adds, aborts, steps and kills while everything is drafted: every output is that of a lone run without."""

from __future__ import annotations

from typing import Any

from hypothesis import HealthCheck, settings

from server.engine.lengths import LengthRule
from tests.engine.drafting import EagerDrafter, RepeatingRunner
from tests.engine.driving import make_engine
from tests.engine.test_engine_machine import EngineMachine
from tests.engine.test_rewinds import LETTERS
from tests.fuzz.scale import SCALE

LONE_BLOCKS = 64
"""The cache of the lone runs that outputs are compared with."""


class DraftingMachine(EngineMachine):
    @staticmethod
    def fresh_engine(
        num_blocks: int, can_reuse_blocks: bool, length_rule: LengthRule | None = None, **limits: Any
    ) -> Any:
        runner = RepeatingRunner(num_blocks, can_reuse_blocks=can_reuse_blocks, length_rule=length_rule)
        drafter = None if num_blocks == LONE_BLOCKS else EagerDrafter(num_blocks)
        return make_engine(runner, max_model_len=36, max_running=4, vocabulary=LETTERS, drafter=drafter, **limits)


TestDraftingMachine = DraftingMachine.TestCase
TestDraftingMachine.settings = settings(
    max_examples=40 * SCALE, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
)
