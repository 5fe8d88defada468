"""Random adds of several callers, aborts, steps, preemptions and kills.

No block is lost, and every output is that of a lone run.
"""

from __future__ import annotations

from typing import Any

import msgspec
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from server.engine.lengths import LengthRule
from server.protocol import Generate, Output
from tests.engine.driving import Outcome, generate, make_engine, run, step
from tests.engine.fake_runner import POISON, FakeRunner
from tests.engine.test_rewinds import LETTERS
from tests.fuzz.scale import SCALE

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


GROUPS = st.one_of(
    st.just({}),
    st.fixed_dictionaries({"num_return_sequences": st.integers(2, 3), "do_sample": st.just(True)}),
    st.fixed_dictionaries({"num_beams": st.integers(2, 4), "length_penalty": st.sampled_from([0.0, 1.0])}),
    st.fixed_dictionaries({"num_beams": st.just(2), "do_sample": st.just(True)}),
    st.fixed_dictionaries({"guidance_scale": st.sampled_from([0.5, 2.0]), "num_beams": st.sampled_from([1, 1, 2])}),
    st.fixed_dictionaries({"banned_phrases": st.just(("ab", "dd", "eca", "ge")), "max_rewinds": st.integers(0, 6)}),
    st.fixed_dictionaries(
        {
            "banned_phrases": st.sampled_from([(), ("bh", "ca")]),
            "max_rewinds": st.sampled_from([1, 64]),
            "num_return_sequences": st.just(2),
            "guidance_scale": st.sampled_from([1.0, 1.5]),
            "do_sample": st.just(True),
            "prompt_logprobs": st.booleans(),
        }
    ),
    st.fixed_dictionaries(
        {
            "banned_phrases": st.just(("bh", "ca")),
            "num_beams": st.just(2),
            "guidance_scale": st.sampled_from([1.0, 1.5]),
            "prompt_logprobs": st.booleans(),
        }
    ),
    st.fixed_dictionaries({"prompt_logprobs": st.just(True), "num_beams": st.sampled_from([1, 2])}),
)
"""What makes several rows of a request, or sends one back."""


RULES = (None, LengthRule(switch=13, is_by_prompt=False), LengthRule(switch=9, is_by_prompt=True))
"""Lengths at which a row's keys become those of another kind."""


class EngineMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.commands: dict[str, Generate] = {}
        self.outcomes: dict[str, Outcome] = {}
        self.num_added = 0
        self.dropped: set[str] = set()
        """Names of samples that nobody wants any more."""

    @initialize(
        num_blocks=st.sampled_from([14, 22, 40]),
        max_batch_tokens=st.sampled_from([4, 7, 32]),
        prefix_cache=st.booleans(),
        can_reuse_blocks=st.booleans(),
        length_rule=st.sampled_from(RULES),
    )
    def start(self, **limits: Any) -> None:
        self.limits = limits
        self.engine = self.fresh_engine(**limits)

    @staticmethod
    def fresh_engine(
        num_blocks: int, can_reuse_blocks: bool, length_rule: LengthRule | None = None, **limits: Any
    ) -> Any:
        runner = FakeRunner(num_blocks, can_reuse_blocks=can_reuse_blocks, length_rule=length_rule)
        return make_engine(runner, max_model_len=36, max_running=4, vocabulary=LETTERS, **limits)

    @rule(
        stem=st.sampled_from(STEMS),
        tail=st.one_of(st.sampled_from([[10], [10, 11, 12]]), st.lists(st.integers(0, 40), min_size=1, max_size=6)),
        max_new_tokens=st.integers(1, 14),
        stop=st.sampled_from([(), tuple(range(0, 60, 9))]),
        params=PARAMS,
        group=GROUPS,
        negative=st.one_of(st.just([]), st.sampled_from(STEMS[:-1])),
        caller=st.sampled_from(["", "a", "b", "c"]),
    )
    def add(
        self,
        stem: list[int],
        tail: list[int],
        max_new_tokens: int,
        stop: tuple[int, ...],
        params: Any,
        group: Any,
        negative: list[int],
        caller: str,
    ) -> None:
        params = {"max_new_tokens": max_new_tokens, "stop_token_ids": stop, **params, **group}
        command = generate(str(self.num_added), stem + tail, **params)
        command = msgspec.structs.replace(command, caller=caller, tenant=caller)
        if "guidance_scale" in group:
            command = msgspec.structs.replace(command, negative_prompt_ids=negative)
        self.num_added += 1
        self.commands[command.request_id] = command
        self.engine.add(command)

    def is_final(self, command: Generate) -> bool:
        """Whether every output has had its last reply."""
        outcomes = [self.outcomes.get(name, Outcome()) for name in names_of(command)]
        return outcomes[0].failure is not None or all(
            outcome.is_final or name in self.dropped for name, outcome in zip(names_of(command), outcomes, strict=True)
        )

    @precondition(lambda self: self.commands)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        request_id = data.draw(st.sampled_from(sorted(self.commands)))
        self.engine.abort(request_id)
        if not self.is_final(self.commands[request_id]):
            for name in names_of(self.commands.pop(request_id)):
                self.outcomes.pop(name, None)

    @precondition(lambda self: self.commands)
    @rule(data=st.data(), index=st.integers(0, 2))
    def abort_sample(self, data: st.DataObject, index: int) -> None:
        """The front does so when a sample it has tokens of has come to a stop string."""
        command = self.commands[data.draw(st.sampled_from(sorted(self.commands)))]
        names = names_of(command)
        if len(names) > index and names[index] in self.outcomes and command.params.num_beams == 1:
            self.engine.abort(command.request_id, index)
            self.dropped.add(names[index])

    @rule(count=st.integers(1, 6))
    def steps(self, count: int) -> None:
        for _ in range(count):
            step(self.engine, self.outcomes)

    @rule()
    def preempt(self) -> None:
        """As when memory has run out."""
        self.engine.scheduler.preempt_newest()

    @rule()
    def kill_and_resume(self) -> None:
        """Another worker continues every unfinished request from its prompt and the tokens already sent."""
        self.engine = self.fresh_engine(**self.limits)
        for command in self.commands.values():
            if self.is_final(command):
                continue
            outcomes = [self.outcomes.setdefault(name, Outcome()) for name in names_of(command)]
            outputs = []
            for name, outcome in zip(names_of(command), outcomes, strict=True):
                outcome.num_cached_tokens = None
                if command.params.num_beams > 1:
                    # It begins anew: the front would leave out what it has.
                    outcome.token_ids, outcome.prompt_logprobs = [], None
                else:
                    outputs.append(
                        Output(list(outcome.token_ids), outcome.is_final or name in self.dropped, outcome.num_rewinds)
                    )
            self.engine.add(msgspec.structs.replace(command, outputs=outputs))

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
        for command in self.commands.values():
            ours = [self.outcomes.get(name, Outcome()) for name in names_of(command)]
            if ours[0].failure == "insufficient_memory":
                assert self.limits["num_blocks"] < 40
                continue
            alone = run(self.fresh_engine(64, True, max_batch_tokens=256, prefix_cache=False), [command])
            expected = [alone.get(name, Outcome()) for name in names_of(command)]
            for name, one, other in zip(names_of(command), ours, expected, strict=True):
                assert name in self.dropped or told(one) == told(other)


def names_of(command: Generate) -> list[str]:
    """Of the outcomes of all its outputs."""
    return [
        f"{command.request_id}#{i}" if i else command.request_id for i in range(command.params.num_return_sequences)
    ]


def told(outcome: Outcome) -> tuple[Any, ...]:
    scores = outcome.prompt_logprobs.logprobs if outcome.prompt_logprobs else None
    return (
        outcome.token_ids,
        outcome.finish_reason,
        outcome.failure,
        outcome.num_rewinds,
        None if outcome.score is None else round(outcome.score, 4),
        None if scores is None else [round(score, 4) for score in scores],
    )


TestEngineMachine = EngineMachine.TestCase
TestEngineMachine.settings = settings(
    max_examples=80 * SCALE, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
)
