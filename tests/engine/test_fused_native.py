"""The fused executor over our own kernels: quantised weights, and rows that do not feel one another."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from server.config import ModelConfig
from server.engine import quality
from server.engine.batch_inputs import Row
from server.engine.executors import build_runner, cache_type
from server.engine.model_runner import ModelRunner
from server.errors import ConfigurationError
from server.models.packed_linear import pack_linears
from server.native import kernels
from tests.tiny_models import VOCAB_SIZE, tiny_decoder

torch.set_num_threads(1)


@pytest.fixture
def native() -> Iterator[None]:
    if kernels.use("auto", 1) == "torch":
        pytest.skip("no kernels for this processor")
    yield
    kernels.use("torch", 1)


def config(**settings: object) -> ModelConfig:
    fields = {"name": "m", "path": "unused", "kv_cache_gib": 0.02, **settings}
    return ModelConfig(**fields)  # type: ignore[arg-type]


@torch.inference_mode()
def last_logits(runner: ModelRunner, lengths: list[int], chunk: int = 1000) -> list[torch.Tensor]:
    """Of sequences of these lengths, all in the same steps."""
    generator = torch.Generator().manual_seed(1)
    ids = [torch.randint(380, (200,), generator=generator).tolist()[:length] for length in (40, 7, 90)]
    found = {}
    for start in range(0, max(lengths), chunk):
        rows = [
            Row(key=i, token_ids=ids[i][start : min(start + chunk, length)], num_computed=start,
                block_table=range(3 * i, 3 * i + 3))
            for i, length in enumerate(lengths) if start < length
        ]  # fmt: skip
        for row, logits in zip(rows, runner.forward(rows), strict=True):
            found[row.key] = logits
    return [found[i] for i in sorted(found)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_rows_logits_are_bitwise_the_same_alone_together_and_in_chunks(native: None, dtype: torch.dtype) -> None:
    runner = build_runner(tiny_decoder("qwen3").to(dtype), config(deterministic=True), 96)
    assert (runner.name, runner.attention, type(runner).__name__) == ("fused", "native", "FusedRunner")
    assert runner.is_row_invariant
    together = last_logits(runner, [40, 7, 90])
    assert torch.equal(together[0], last_logits(runner, [40, 0, 0])[0])
    assert torch.equal(together[1], last_logits(runner, [0, 7, 0])[0])
    assert all(map(torch.equal, together, last_logits(runner, [40, 7, 90], chunk=13)))


def test_without_kernels_of_our_own_a_deterministic_model_runs_row_by_row() -> None:
    runner = build_runner(tiny_decoder("qwen3"), config(deterministic=True), 96, pack=pack_linears)
    assert (runner.name, type(runner).__name__) == ("generic", "DeterministicRunner")
    with pytest.raises(ConfigurationError, match="cannot run in the fused executor: its products have no kernels"):
        build_runner(tiny_decoder("qwen3"), config(deterministic=True, executor="fused"), 96)


@pytest.mark.parametrize(("family", "executor"), [("llama", "fused"), ("gpt2", "generic"), ("bloom", "compat")])
def test_int8_weights_move_the_logits_a_little_and_the_loss_is_told(native: None, family: str, executor: str) -> None:
    texts = [[5, 6, 7, 8, 9, 10, 11], [90, 80, 70, 60]]
    plain = build_runner(tiny_decoder(family), config(executor=executor), 64, pack=pack_linears)
    assert plain.quantization_kl is None
    runner = build_runner(
        tiny_decoder(family), config(executor=executor, quantize="int8"), 64, pack=pack_linears, quality_ids=texts
    )
    assert runner.name == executor
    lost = quality.loss(quality.logprobs(plain, texts), quality.logprobs(runner, texts))
    assert runner.quantization_kl == pytest.approx(lost.kl, rel=1e-3)
    assert 0 < lost.kl < 0.05


@pytest.mark.parametrize(("family", "executor"), [("qwen3", "fused"), ("gemma", "generic")])
def test_reports_what_an_int8_cache_loses(native: None, family: str, executor: str) -> None:
    texts = [[5, 6, 7, 8, 9, 10, 11], [90, 80, 70, 60]]
    plain = build_runner(tiny_decoder(family), config(executor=executor), 64, pack=pack_linears)
    assert plain.kv_cache_kl is None
    settings = config(executor=executor, kv_dtype="int8")
    runner = build_runner(tiny_decoder(family), settings, 64, pack=pack_linears, quality_ids=texts)
    assert runner.name == executor
    lost = quality.loss(quality.logprobs(plain, texts), quality.logprobs(runner, texts))
    assert runner.kv_cache_kl == pytest.approx(lost.kl, rel=1e-3)
    assert 0 < lost.kl < 0.01
    assert runner.quantization_kl is None


def test_an_int8_cache_has_twice_the_blocks(native: None) -> None:
    sizes = {"dtype": "bfloat16", "kv_cache_gib": 0.002, "max_running": 200}
    whole, half = (
        build_runner(tiny_decoder("qwen3").bfloat16(), config(kv_dtype=kv_dtype, **sizes), 96)
        for kv_dtype in ("auto", "int8")
    )
    assert half.num_blocks > 1.75 * whole.num_blocks
    assert half.kv_cache_bytes <= 0.002 * 2**30


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_with_an_int8_cache_a_rows_logits_are_the_same_alone_together_and_in_chunks(
    native: None, dtype: torch.dtype
) -> None:
    runner = build_runner(tiny_decoder("qwen3").to(dtype), config(deterministic=True, kv_dtype="int8"), 96)
    assert runner.is_row_invariant
    together = last_logits(runner, [40, 7, 90])
    assert torch.equal(together[0], last_logits(runner, [40, 0, 0])[0])
    assert torch.equal(together[1], last_logits(runner, [0, 7, 0])[0])
    assert all(map(torch.equal, together, last_logits(runner, [40, 7, 90], chunk=13)))


@pytest.mark.parametrize(
    ("family", "settings", "reason"),
    [
        ("bloom", {}, "its forward takes no position_ids"),
        ("llama", {}, "heads of width 12 are no multiple of 16 up to 256"),
        ("qwen3", {"block_size": 16}, "block_size is 16 and not 32"),
        ("qwen3", {"dtype": torch.float16}, "its numbers are torch.float16"),
        ("qwen3", {"kernels": None}, "there are no kernels for it"),
    ],
    ids=str,
)
def test_refuses_an_int8_cache_without_native_attention(
    native: None, family: str, settings: dict[str, Any], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "kernels" in settings:
        monkeypatch.setattr(kernels._State, "module", None)
    module = tiny_decoder(family).to(settings.get("dtype", torch.float32))
    with pytest.raises(ConfigurationError) as error:
        build_runner(module, config(kv_dtype="int8", block_size=settings.get("block_size", 32)), 64, pack=pack_linears)
    assert str(error.value) == f"Model m cannot have its KV cache in int8: {reason}. Set kv_dtype to auto."


def test_refuses_an_int8_cache_on_a_gpu() -> None:
    with pytest.raises(ConfigurationError, match="its device is cuda:0, and int8 requires the CPU kernels"):
        cache_type.require(tiny_decoder("qwen3"), config(kv_dtype="int8"), torch.bfloat16, torch.device("cuda:0"))


def test_weights_that_cannot_be_quantised_are_a_configuration_error() -> None:
    with pytest.raises(ConfigurationError, match=r"cannot be quantised to int8: .* Set quantize to none"):
        build_runner(tiny_decoder("llama"), config(quantize="int8"), 64, pack=pack_linears)


def test_the_loss_of_a_distribution_against_itself_is_nothing() -> None:
    logprobs = torch.randn(5, VOCAB_SIZE, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    assert quality.loss([logprobs], [logprobs]) == quality.Loss(kl=0.0, same_top=1.0)
    other = logprobs.flip(-1)
    worse = quality.loss([logprobs], [other])
    assert worse.kl == pytest.approx(float((logprobs.exp() * (logprobs - other)).sum(-1).mean()))
    assert worse.same_top < 1.0


def test_texts_become_prompts_that_the_model_has_positions_for() -> None:
    prompts = quality.token_ids(lambda text: list(text.encode()), 16)
    assert [len(ids) for ids in prompts] == [16] * len(quality.TEXTS)
    assert quality.token_ids(lambda text: [], 16) == []
