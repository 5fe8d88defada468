"""Models whose rotary factors follow from a sequence's length: every executor gives the tokens of `generate` alone.

The oracle is made anew for every prompt: transformers' own modules keep the factors of the longest sequence so far.
"""

from __future__ import annotations

import dataclasses
from functools import cache
from typing import Any

import msgspec
import pytest
import torch

from server.config import ModelConfig
from server.engine import selfcheck
from server.engine.engine import DecoderEngine
from server.engine.executors import build_runner
from server.engine.lengths import LengthRule
from server.engine.model_runner import ModelRunner
from server.errors import ConfigurationError
from server.native import kernels
from server.protocol import Generate, Output
from tests.engine.drafting import EagerDrafter
from tests.engine.driving import generate, run, run_preempted
from tests.tiny_models import lengthwise_decoder

SWITCH = 64
MAX_MODEL_LEN = 192
CASES = [
    ("longrope", "fused"),
    ("longrope", "generic"),
    ("longrope", "compat"),
    ("dynamic", "generic"),
    ("dynamic", "compat"),
]

torch.set_num_threads(1)


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def case(request: pytest.FixtureRequest) -> tuple[str, str]:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def kind(case: tuple[str, str]) -> str:
    return case[0]


@pytest.fixture(scope="module")
def runner(case: tuple[str, str]) -> ModelRunner:
    kind, executor = case
    return runner_of(kind, executor)


def runner_of(kind: str, executor: str = "auto", num_blocks: int = 0, **settings: Any) -> ModelRunner:
    config = ModelConfig(
        name=kind, path="unused", block_size=4, executor=executor, **{"kv_cache_gib": 0.02, **settings}
    )
    runner = build_runner(lengthwise_decoder(kind), config, MAX_MODEL_LEN)
    if num_blocks:
        runner.num_blocks = num_blocks
    return runner


def engine_of(runner: ModelRunner, **limits: Any) -> DecoderEngine:
    defaults = {"max_model_len": MAX_MODEL_LEN, "max_batch_tokens": 256, "max_running": 16, "prefix_cache": True}
    return DecoderEngine(runner, **{**defaults, **limits})


def prompt(length: int) -> list[int]:
    """Prompts begin alike."""
    generator = torch.Generator().manual_seed(3)
    return torch.randint(3, 380, (MAX_MODEL_LEN,), generator=generator).tolist()[:length]


LENGTHS = ((20, 8), (SWITCH - 9, 24), (SWITCH - 1, 8), (SWITCH, 8), (SWITCH + 1, 8), (100, 8), (130, 8))
"""Prompt tokens and new ones: before, across and behind the switch."""


def commands(**params: Any) -> list[Generate]:
    return [generate(str(size), prompt(size), max_new_tokens=count, **params) for size, count in LENGTHS]


@cache
def expected(kind: str, size: int, count: int, num_beams: int = 1) -> list[int]:
    ids = torch.tensor([prompt(size)])
    with torch.inference_mode():
        output = lengthwise_decoder(kind).generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=count,
            num_beams=num_beams,
            do_sample=False,
            eos_token_id=None,
            # Below 5.20 transformers loses the prompt where it computes the cache again with other factors.
            use_cache=kind != "longrope",
        )
    new: list[int] = output[0, size:].tolist()
    return new


def test_each_sequence_alone_gives_the_tokens_of_generate(kind: str, runner: ModelRunner) -> None:
    for command, (size, count) in zip(commands(), LENGTHS, strict=True):
        outcomes = run(engine_of(runner, prefix_cache=False), [command])
        assert outcomes[command.request_id].token_ids == expected(kind, size, count)


@pytest.mark.parametrize("budget", [17, 1024])
def test_batch_mates_chunks_and_cached_blocks_change_nothing(kind: str, runner: ModelRunner, budget: int) -> None:
    engine = engine_of(runner, max_batch_tokens=budget)
    for _ in range(2):
        outcomes = run(engine, commands())
        for size, count in LENGTHS:
            assert outcomes[str(size)].token_ids == expected(kind, size, count)
    hits = outcomes[str(SWITCH)].num_cached_tokens
    assert hits == (SWITCH - 4 if runner.can_reuse_blocks else 0)


@pytest.mark.parametrize("num_sent", [1, 8, 9, 10, 15])
def test_resumed_requests_go_on_as_they_would_have(kind: str, runner: ModelRunner, num_sent: int) -> None:
    size, count = LENGTHS[1]
    whole = expected(kind, size, count)
    command = msgspec.structs.replace(commands()[1], outputs=[Output(whole[:num_sent])])
    assert run(engine_of(runner), [command])[str(size)].token_ids == whole[num_sent:]


def test_preempted_requests_give_the_same_tokens(kind: str, case: tuple[str, str]) -> None:
    runner = runner_of(*case, num_blocks=33)
    some = [(SWITCH - 9, 24), (SWITCH - 1, 8)]
    chosen = [generate(str(size), prompt(size), max_new_tokens=count) for size, count in some]
    outcomes = run_preempted(engine_of(runner, prefix_cache=False), chosen)
    for size, count in some:
        assert outcomes[str(size)].token_ids == expected(kind, size, count)


def test_drafts_end_where_the_factors_change(kind: str, runner: ModelRunner) -> None:
    if not runner.can_reuse_blocks:
        pytest.skip("this executor drafts nothing")
    engine = engine_of(runner, drafter=EagerDrafter(1), prefix_cache=False)
    outcomes = run(engine, commands())
    for size, count in LENGTHS:
        assert outcomes[str(size)].token_ids == expected(kind, size, count)


def test_beams_across_the_switch_equal_generate(kind: str, runner: ModelRunner) -> None:
    size, count = LENGTHS[1]
    command = generate("beams", prompt(size), max_new_tokens=count, num_beams=3)
    assert run(engine_of(runner), [command, *commands()])["beams"].token_ids == expected(kind, size, count, 3)


def test_samples_of_one_prompt_cross_as_each_alone_does(runner: ModelRunner) -> None:
    command = generate("s", prompt(SWITCH - 9), max_new_tokens=24, do_sample=True, seed=5, num_return_sequences=3)
    alone = run(engine_of(runner, prefix_cache=False), [command])
    busy = run(engine_of(runner, max_batch_tokens=7, max_running=11), [command, *commands()])
    for name in ("s", "s#1", "s#2"):
        assert busy[name].token_ids == alone[name].token_ids
        # What is sampled up to the switch decides what comes after it as in a fresh request.
        resumed = msgspec.structs.replace(
            command, outputs=[Output(alone[each].token_ids[:12]) for each in ("s", "s#1", "s#2")]
        )
        assert run(engine_of(runner), [resumed])[name].token_ids == alone[name].token_ids[12:]


def test_blocks_of_short_and_long_sequences_never_mix(kind: str, runner: ModelRunner) -> None:
    if not runner.can_reuse_blocks:
        pytest.skip("this executor shares no blocks")
    engine = engine_of(runner)
    run(engine, [generate("short", prompt(SWITCH), max_new_tokens=1)])
    longer = run(engine, [generate("long", prompt(SWITCH + 20), max_new_tokens=1)])["long"]
    again = run(engine, [generate("again", prompt(SWITCH + 20), max_new_tokens=1)])["again"]
    longest = run(engine, [generate("longest", prompt(SWITCH + 40), max_new_tokens=1)])["longest"]
    assert (longer.num_cached_tokens, again.num_cached_tokens) == (0, SWITCH + 16)
    # The factors of a longer prompt are its own with dynamic NTK, and those of all long ones with longrope.
    assert longest.num_cached_tokens == (SWITCH + 20 if kind == "longrope" else 0)


def test_runs_in_the_fastest_executor_that_has_the_factors(kind: str) -> None:
    runner = runner_of(kind)
    assert runner.name == ("fused" if kind == "longrope" else "generic")
    assert runner.length_rule == LengthRule(switch=SWITCH, is_by_prompt=kind == "dynamic")


def test_a_limit_below_the_switch_leaves_one_set_of_factors() -> None:
    config = ModelConfig(name="short", path="unused", kv_cache_gib=0.02)
    assert build_runner(lengthwise_decoder("longrope"), config, SWITCH).length_rule is None


def test_the_native_kernel_reads_the_factors_of_each_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels._State, "module", None)
    if kernels.use("auto", num_threads=1) == "torch":
        pytest.skip("there are no kernels for this processor")
    module = lengthwise_decoder("longrope", hidden_size=64)
    runner = build_runner(module, ModelConfig(name="native", path="unused", kv_cache_gib=0.02), MAX_MODEL_LEN)
    assert (runner.name, runner.attention) == ("fused", "native")
    outcomes = run(engine_of(runner), commands())
    for size, count in LENGTHS:
        ids = torch.tensor([prompt(size)])
        module = lengthwise_decoder("longrope", hidden_size=64)
        options = {"attention_mask": torch.ones_like(ids), "eos_token_id": None, "use_cache": False}
        output = module.generate(ids, max_new_tokens=count, do_sample=False, **options)
        assert outcomes[str(size)].token_ids == output[0, size:].tolist()


@pytest.mark.parametrize("executor", ["fused", "generic"])
def test_the_load_check_notices_factors_of_the_wrong_length(executor: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """However far out the switch is, and only there."""
    far = 20_000
    config = ModelConfig(name="far", path="unused", kv_cache_gib=0.2, executor=executor)
    right = selfcheck.reference

    def beside(*args: Any) -> selfcheck.Reference:
        expected = right(*args)
        wrong = [dataclasses.replace(sample, deciding_length=0) for sample in expected.far]
        return selfcheck.Reference(samples=expected.samples, far=wrong, rule=expected.rule)

    module = lengthwise_decoder("longrope", switch=far, max_position_embeddings=2 * far)
    assert build_runner(module, config, 2 * far).name == executor
    monkeypatch.setattr(selfcheck, "reference", beside)
    module = lengthwise_decoder("longrope", switch=far, max_position_embeddings=2 * far)
    with pytest.raises(ConfigurationError, match="at far positions, logits differ"):
        build_runner(module, config, 2 * far)
