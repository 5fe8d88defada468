"""An engine over kernels on tiles: its tokens are those of transformers, however they came to be computed."""

from __future__ import annotations

from functools import cache

import pytest
import torch

from server.config import ModelConfig
from server.engine.engine import DecoderEngine
from server.engine.executors import build_runner
from server.models.packed_linear import pack_linears
from server.protocol import Generate
from tests.engine.driving import generate, run
from tests.native import variants
from tests.tiny_models import MAX_MODEL_LEN, tiny_decoder

torch.set_num_threads(1)

FAMILIES = ["qwen3", "gemma", "gemma2", "gemma3_text"]
"""Heads of 16: plain, and with windows and a softcap."""

MAX_NEW_TOKENS = 10

TOSS = 0.03
"""Of the spread of the logits: where the best two are nearer, bfloat16 may choose the other."""


@pytest.fixture(autouse=True)
def tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    variants.use("_tiles", monkeypatch)


def engine_of(family: str, max_batch_tokens: int, **settings: object) -> DecoderEngine:
    config = ModelConfig(name="m", path="unused", kv_cache_gib=0.02, **settings)  # type: ignore[arg-type]
    runner = build_runner(tiny_decoder(family).to(torch.bfloat16), config, MAX_MODEL_LEN, pack=pack_linears)
    assert runner.attention == "native"
    return DecoderEngine(
        runner, max_model_len=MAX_MODEL_LEN, max_batch_tokens=max_batch_tokens, max_running=8, prefix_cache=True
    )


@cache
def prompts() -> list[list[int]]:
    """Some begin alike, so that blocks are found in the cache."""
    stem = torch.randint(3, 380, (150,), generator=torch.Generator().manual_seed(5)).tolist()
    return [stem[:length] for length in (1, 33, 64, 97, 150)] + [stem[40:75]]


def commands() -> list[Generate]:
    return [generate(f"{i}", prompt, max_new_tokens=MAX_NEW_TOKENS) for i, prompt in enumerate(prompts())]


@torch.inference_mode()
def lost(family: str, prompt: list[int], answer: list[int]) -> float:
    """How far below the best logit the worst choice lies in float32, as a part of the spread of the logits."""
    module = tiny_decoder(family).to(torch.bfloat16).float()
    logits = module(torch.tensor([prompt + answer[:-1]])).logits[0, len(prompt) - 1 :]
    chosen = logits.gather(1, torch.tensor(answer)[:, None])[:, 0]
    return float(((logits.amax(1) - chosen) / logits.std(1)).max())


@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_are_those_of_transformers(family: str) -> None:
    found = run(engine_of(family, max_batch_tokens=64), commands())
    for i, prompt in enumerate(prompts()):
        assert lost(family, prompt, found[f"{i}"].token_ids) < TOSS


@pytest.mark.parametrize("family", ["qwen3", "gemma2"])
def test_tokens_are_the_same_in_chunks_of_any_size_and_one_request_at_a_time(family: str) -> None:
    in_chunks = run(engine_of(family, max_batch_tokens=11), commands())
    one_by_one = engine_of(family, max_batch_tokens=256)
    for command in commands():
        alone = run(one_by_one, [command])
        assert in_chunks[command.request_id].token_ids == alone[command.request_id].token_ids


@pytest.mark.parametrize("family", ["qwen3", "gemma2"])
def test_a_request_that_goes_on_after_a_restart_gives_the_tokens_that_would_have_come(family: str) -> None:
    whole = run(engine_of(family, max_batch_tokens=64), commands())
    resumed = [
        generate(f"{i}", prompt, whole[f"{i}"].token_ids[:4], max_new_tokens=MAX_NEW_TOKENS)
        for i, prompt in enumerate(prompts())
    ]
    rest = run(engine_of(family, max_batch_tokens=64), resumed)
    for name, outcome in whole.items():
        assert outcome.token_ids[4:] == rest[name].token_ids
