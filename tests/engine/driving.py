"""Engines over the fake runner, and ways to drive them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from server.engine.engine import DecoderEngine
from server.protocol import (
    AdapterState,
    Failed,
    FinishReason,
    Generate,
    Output,
    PromptLogprobs,
    Reply,
    SamplingParams,
    Stats,
    TokenLogprob,
    Tokens,
)
from tests.engine.fake_runner import FakeRunner


def make_engine(runner: FakeRunner | None = None, **limits: Any) -> DecoderEngine:
    defaults = {"max_model_len": 128, "max_batch_tokens": 16, "max_running": 8, "prefix_cache": True}
    return DecoderEngine(runner or FakeRunner(), **{**defaults, **limits})


def generate(request_id: str, prompt_ids: list[int], output_ids: list[int] | None = None, **params: Any) -> Generate:
    params.setdefault("max_new_tokens", 8)
    return Generate(request_id, prompt_ids, SamplingParams(**params), [Output(output_ids)] if output_ids else [])


@dataclass
class Outcome:
    """All that was answered to one request."""

    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    top_logprobs: list[list[TokenLogprob]] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    num_cached_tokens: int | None = None
    failure: str | None = None
    score: float | None = None
    num_rewinds: int = 0
    prompt_logprobs: PromptLogprobs | None = None

    def take(self, reply: Reply) -> None:
        assert self.finish_reason is None, "a reply after the last"
        assert self.failure is None, "a reply after the last"
        if isinstance(reply, Failed):
            self.failure = reply.code
        elif isinstance(reply, Tokens):
            if reply.num_cached_tokens is not None:
                assert self.num_cached_tokens is None, "told twice"
                self.num_cached_tokens = reply.num_cached_tokens
            self.token_ids += reply.token_ids
            self.logprobs += reply.logprobs or []
            self.finish_reason = reply.finish_reason
            self.score = reply.score
            assert reply.num_rewinds >= self.num_rewinds
            self.num_rewinds = reply.num_rewinds
            self.top_logprobs += reply.top_logprobs or []
            if reply.prompt_logprobs is not None:
                assert self.prompt_logprobs is None, "told twice"
                self.prompt_logprobs = reply.prompt_logprobs

    @property
    def is_final(self) -> bool:
        return self.finish_reason is not None or self.failure is not None


def name_of(reply: Reply) -> str:
    """Of the outcome that a reply belongs to: the request's id, with the output's number from the second on."""
    index = getattr(reply, "index", 0)
    return f"{reply.request_id}#{index}" if index else reply.request_id  # type: ignore[union-attr]


def step(engine: DecoderEngine, outcomes: dict[str, Outcome]) -> Stats:
    """One checked step."""
    *replies, stats = engine.step()
    assert isinstance(stats, Stats)
    for reply in replies:
        if not isinstance(reply, AdapterState):
            outcomes.setdefault(name_of(reply), Outcome()).take(reply)
    engine.check()
    return stats


def run(engine: DecoderEngine, commands: Iterable[Generate]) -> dict[str, Outcome]:
    """Serve the commands to the end, all added at once."""
    outcomes: dict[str, Outcome] = {}
    for command in commands:
        engine.add(command)
    num_steps = 0
    while engine.has_work:
        step(engine, outcomes)
        num_steps += 1
        assert num_steps < 5000, "the engine does not come to an end"
    assert engine.blocks.num_used == 0
    return outcomes


def run_alone(command: Generate) -> Outcome:
    """The undisturbed run: its own engine, room for everything, the prompt in one piece, no prefix cache."""
    engine = make_engine(FakeRunner(64), max_batch_tokens=256, prefix_cache=False)
    return run(engine, [command])[command.request_id]


def run_preempted(
    engine: DecoderEngine, commands: Iterable[Generate], outcomes: dict[str, Outcome] | None = None
) -> dict[str, Outcome]:
    """Serve the commands to the end, in a cache that is too small for all of them; ``outcomes`` go on."""
    outcomes = {} if outcomes is None else outcomes
    for command in commands:
        engine.add(command)
    num_preemptions = 0
    while engine.has_work:
        num_preemptions += step(engine, outcomes).num_preemptions
    assert num_preemptions > 0
    return outcomes
