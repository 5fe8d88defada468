"""Random adds, aborts, steps and kills: no block is lost or shared wrongly, and every output is the lone run's."""

from __future__ import annotations

from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from server.protocol import Generate, Output
from tests.engine.driving import Outcome, generate, make_engine, run_alone, step
from tests.engine.fake_runner import POISON, FakeRunner

STEMS = (
    [],
    [1, 2, 3, 4, 5, 6, 7, 8, 9],
    [9, 9, 9, 9, 5, 6, 7, 8, 9],
    [1, 2, 3, 4, 5, 6, 7, 8, 30, 31, 32, 33, 34],
    [POISON, 1, 2, 3],
)
"""Beginnings that prompts share; the last one makes the model fail."""

PARAMS = st.one_of(
    st.just({}),
    st.fixed_dictionaries(
        {
            "do_sample": st.just(True),
            "seed": st.integers(0, 2**63 - 1),
            "temperature": st.sampled_from([0.3, 1.0, 2.0]),
            "top_k": st.sampled_from([0, 5]),
            "top_p": st.sampled_from([0.5, 1.0]),
            "repetition_penalty": st.sampled_from([1.0, 1.5]),
            "frequency_penalty": st.sampled_from([0.0, 0.7]),
        }
    ),
)


class EngineMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.commands: dict[str, Generate] = {}
        self.outcomes: dict[str, Outcome] = {}
        self.num_added = 0

    @initialize(
        num_blocks=st.sampled_from([9, 14, 40]),
        max_batch_tokens=st.sampled_from([4, 7, 32]),
        prefix_cache=st.booleans(),
    )
    def start(self, **limits: Any) -> None:
        self.limits = limits
        self.engine = self.fresh_engine(**limits)

    @staticmethod
    def fresh_engine(num_blocks: int, **limits: Any) -> Any:
        return make_engine(FakeRunner(num_blocks), max_model_len=36, max_running=4, **limits)

    @rule(
        stem=st.sampled_from(STEMS),
        tail=st.one_of(st.sampled_from([[10], [10, 11, 12]]), st.lists(st.integers(0, 40), min_size=1, max_size=6)),
        max_new_tokens=st.integers(1, 14),
        stop=st.sampled_from([(), tuple(range(0, 60, 9))]),
        params=PARAMS,
    )
    def add(self, stem: list[int], tail: list[int], max_new_tokens: int, stop: tuple[int, ...], params: Any) -> None:
        command = generate(
            str(self.num_added), stem + tail, max_new_tokens=max_new_tokens, stop_token_ids=stop, **params
        )
        self.num_added += 1
        self.commands[command.request_id] = command
        self.engine.add(command)

    @precondition(lambda self: self.commands)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        request_id = data.draw(st.sampled_from(sorted(self.commands)))
        self.engine.abort(request_id)
        if not self.outcomes.get(request_id, Outcome()).is_final:
            self.commands.pop(request_id)
            self.outcomes.pop(request_id, None)

    @rule(count=st.integers(1, 6))
    def steps(self, count: int) -> None:
        for _ in range(count):
            step(self.engine, self.outcomes)

    @rule()
    def kill_and_resume(self) -> None:
        """Another worker continues every unfinished request from its prompt and the tokens already sent."""
        self.engine = self.fresh_engine(**self.limits)
        for request_id, command in self.commands.items():
            outcome = self.outcomes.setdefault(request_id, Outcome())
            if not outcome.is_final:
                outcome.num_cached_tokens = None
                self.engine.add(
                    Generate(request_id, command.prompt_ids, command.params, [Output(list(outcome.token_ids))])
                )

    @invariant()
    def is_consistent(self) -> None:
        if hasattr(self, "engine"):
            self.engine.check()

    def teardown(self) -> None:
        if not hasattr(self, "engine"):
            return
        for _ in range(2000):
            if not self.engine.has_work:
                break
            step(self.engine, self.outcomes)
        assert not self.engine.has_work, "the engine does not come to an end"
        assert self.engine.blocks.num_used == 0
        assert set(self.outcomes) == set(self.commands)
        for request_id, command in self.commands.items():
            alone = run_alone(command)
            outcome = self.outcomes[request_id]
            assert (outcome.token_ids, outcome.finish_reason, outcome.failure) == (
                alone.token_ids,
                alone.finish_reason,
                alone.failure,
            )


TestEngineMachine = EngineMachine.TestCase
TestEngineMachine.settings = settings(
    max_examples=50, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
)
