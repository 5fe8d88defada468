"""One seed gives one text wherever `reproducible` is true; where it is not, `deterministic` makes it so."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from server.config import ModelConfig
from server.engine import reproducibility
from server.engine.engine import DecoderEngine
from server.engine.executors.build import build_runner
from server.engine.model_runner import ModelRunner
from server.models.packed_linear import pack_linears
from server.native import kernels
from server.protocol import Generate
from tests.engine.driving import generate, run
from tests.tiny_models import tiny_decoder

MAX_MODEL_LEN = 256

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def native() -> Iterator[None]:
    if kernels.use("auto", 1) == "torch":
        pytest.skip("there are no kernels for this processor")
    yield
    kernels.use("torch", 1)


NATIVE, ODD_HEADS, COMPAT_ONLY = "qwen3", "llama", "bloom"
"""Heads of 16 are for the native kernels, heads of 12 are not."""


def runner_of(family: str, *, deterministic: bool = False) -> ModelRunner:
    """Of a model that is loaded anew, as after a restart."""
    config = ModelConfig(name="m", path="unused", kv_cache_gib=0.05, deterministic=deterministic)
    return build_runner(tiny_decoder(family).to(torch.bfloat16), config, MAX_MODEL_LEN, pack=pack_linears)


def engine_of(runner: ModelRunner, *, deterministic: bool = False, max_batch_tokens: int = 64) -> DecoderEngine:
    return DecoderEngine(
        runner,
        max_model_len=MAX_MODEL_LEN,
        max_batch_tokens=max_batch_tokens,
        max_running=32,
        prefix_cache=True,
        deterministic=deterministic,
    )


def commands() -> list[Generate]:
    """Their prompts begin alike."""
    stem = torch.randint(3, 380, (150,), generator=torch.Generator().manual_seed(5)).tolist()
    lengths = [1, 7, 33, 64, 65, 97, 150, 40, 5, 128]
    return [
        generate(f"{i}", stem[:length], do_sample=True, seed=i, temperature=1.2, max_new_tokens=40)
        for i, length in enumerate(lengths)
    ]


@pytest.mark.parametrize(("family", "deterministic"), [(NATIVE, False), (NATIVE, True), (ODD_HEADS, True)], ids=str)
def test_one_seed_gives_one_text_alone_in_every_batch_and_after_a_restart(family: str, deterministic: bool) -> None:
    first = runner_of(family, deterministic=deterministic)
    assert reproducibility.problem(first, deterministic=deterministic) is None
    alone = {}
    for command in commands():
        engine = engine_of(first, deterministic=deterministic)
        alone[command.request_id] = run(engine, [command])[command.request_id].token_ids
    again = engine_of(runner_of(family, deterministic=deterministic), deterministic=deterministic)
    for batch in (commands(), commands()[::-1], commands()[::3], commands()[1::2]):
        for name, outcome in run(again, batch).items():
            assert outcome.token_ids == alone[name]


def test_a_model_outside_of_the_native_kernels_is_not_called_reproducible() -> None:
    problem = reproducibility.problem(runner_of(ODD_HEADS), deterministic=False)
    assert problem is not None
    assert "Set deterministic" in problem


def test_a_model_that_deterministic_does_not_take_is_not_promised_it() -> None:
    problem = reproducibility.problem(runner_of(COMPAT_ONLY), deterministic=False)
    assert problem is not None
    assert "No setting" in problem
