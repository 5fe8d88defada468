"""The load check notices wrong windows of thousands of tokens, without computing thousands of tokens."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.cache_utils import DynamicSlidingWindowLayer

from server.config import ModelConfig
from server.engine import selfcheck
from server.engine.attention.native import NativeAttention
from server.engine.executors import build, build_runner
from server.engine.executors.fused.runner import FusedRunner
from server.engine.executors.generic import probe
from server.engine.short_windows import ShortWindows
from server.errors import ConfigurationError
from server.modules.attention import LayerSpec
from server.modules.rotary import RotaryTables
from server.native import kernels
from tests.engine.test_more_families import LLAMA4
from tests.tiny_models import _IDS, _ROTARY, scramble

torch.set_num_threads(1)

WINDOW = 4096
MAX_MODEL_LEN = 8000
KINDS = {"layer_types": ["sliding_attention", "full_attention"]}
EXPERTS = {"num_local_experts": 2, "num_experts_per_tok": 1}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "mistral": ("fused", {}),
    "phi3": ("fused", {}),
    "qwen2": ("fused", {"use_sliding_window": True, "max_window_layers": 1}),
    "gemma2": ("fused", {**KINDS, "head_dim": 16, "query_pre_attn_scalar": 16}),
    "gemma3_text": ("fused", {**KINDS, "head_dim": 16, "query_pre_attn_scalar": 16}),
    "cohere2": ("generic", {**KINDS, "head_dim": 12}),
    "gpt_oss": ("generic", {**KINDS, **EXPERTS, "head_dim": 12}),
    "phimoe": ("compat", EXPERTS),  # only its masks know its windows
    "llama4_text": ("compat", {**LLAMA4, "attention_chunk_size": WINDOW, "floor_scale": 8192}),
}
PAGED = [family for family, (executor, _) in FAMILIES.items() if executor != "compat"]
MIXED = ["qwen2", "gemma2", "gemma3_text", "cohere2", "gpt_oss"]
"""With layers of both kinds."""


def decoder(family: str, window: int = WINDOW, **fields: Any) -> PreTrainedModel:
    settings = {**_ROTARY, "max_position_embeddings": 8192, "sliding_window": window, **FAMILIES[family][1], **fields}
    torch.manual_seed(0)  # some families draw biases, to which noise is added
    module = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(family, **{**_IDS, **settings}), dtype=torch.float32, attn_implementation="eager"
    )
    scramble(module, 0)
    return module.eval()


def config(**settings: object) -> ModelConfig:
    fields = {"name": "tiny", "path": "unused", "kv_cache_gib": 0.02, **settings}
    return ModelConfig(**fields)  # type: ignore[arg-type]


def with_windows(monkeypatch: pytest.MonkeyPatch, change: Callable[[list[int | None]], Sequence[int | None]]) -> None:
    """Executors get the windows that ``change`` makes of a module's own."""

    def wrong(module: PreTrainedModel) -> list[LayerSpec]:
        specs = probe(module)
        windows = change([spec.window for spec in specs])
        return [dataclasses.replace(spec, window=window) for spec, window in zip(specs, windows, strict=True)]

    monkeypatch.setattr(build, "probe", wrong)


def forget(windows: list[int | None]) -> list[int | None]:
    return [None] * len(windows)


def lengthen(windows: list[int | None]) -> list[int | None]:
    return [window and window + 1 for window in windows]


def shorten(windows: list[int | None]) -> list[int | None]:
    return [window and window - 1 for window in windows]


def exchange(windows: list[int | None]) -> list[int | None]:
    return windows[::-1]


def refused(family: str, module: PreTrainedModel, match: str = "with short windows|computes something else") -> None:
    executor = FAMILIES[family][0]
    with pytest.raises(ConfigurationError, match=match):
        build_runner(module, config(executor=executor), MAX_MODEL_LEN)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_with_a_wide_window_runs_in_the_executor_that_treats_it_right(family: str) -> None:
    assert build_runner(decoder(family), config(), MAX_MODEL_LEN).name == FAMILIES[family][0]


@pytest.mark.parametrize("change", [forget, lengthen, shorten])
@pytest.mark.parametrize("family", PAGED)
def test_a_wide_window_that_is_forgotten_or_off_by_one_is_noticed(
    monkeypatch: pytest.MonkeyPatch, family: str, change: Callable[[list[int | None]], list[int | None]]
) -> None:
    with_windows(monkeypatch, change)
    refused(family, decoder(family))


@pytest.mark.parametrize("family", MIXED)
def test_a_window_of_another_kind_of_layer_is_noticed(monkeypatch: pytest.MonkeyPatch, family: str) -> None:
    with_windows(monkeypatch, exchange)
    refused(family, decoder(family))


@pytest.mark.parametrize("change", [forget, lengthen, shorten])
@pytest.mark.parametrize("family", ["mistral", "gemma2"])
def test_single_layers_show_a_wrong_window_in_16_bits(
    monkeypatch: pytest.MonkeyPatch, family: str, change: Callable[[list[int | None]], list[int | None]]
) -> None:
    with_windows(monkeypatch, change)
    refused(family, decoder(family).to(torch.bfloat16), "its layer 0 computes something else")


@pytest.fixture
def native() -> Iterator[None]:
    kernels.use("auto", 1)
    if not kernels.has("chain"):
        kernels.use("torch", 1)
        pytest.skip("no kernels for this processor that make a chain")
    yield
    kernels.use("torch", 1)


@pytest.mark.usefixtures("native")
def test_a_chain_of_kernels_with_a_window_that_is_off_by_one_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The chain has calls of its own, which a check of single layers does not read."""
    runner = build_runner(decoder("mistral", head_dim=16), config(block_size=32), MAX_MODEL_LEN)
    assert isinstance(runner, FusedRunner) and runner._chained is not None
    right = NativeAttention.packed_call

    def wrong(self: NativeAttention, layer: int, *args: Any) -> tuple[int, int]:
        self._layers[layer].window += 1
        return right(self, layer, *args)

    monkeypatch.setattr(NativeAttention, "packed_call", wrong)
    with pytest.raises(ConfigurationError, match="with short windows"):
        build_runner(decoder("mistral", head_dim=16), config(block_size=32, executor="fused"), MAX_MODEL_LEN)


@pytest.mark.parametrize("family", ["phimoe", "llama4_text"])
def test_a_cache_of_the_model_itself_that_drops_a_token_too_many_is_noticed(
    monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    right = DynamicSlidingWindowLayer.update

    def wrong(self: DynamicSlidingWindowLayer, *args: Any, **options: Any) -> Any:
        found = right(self, *args, **options)
        if self.keys.shape[-2] == self.sliding_window - 1:
            self.keys = self.keys.clone()
            self.keys[:, :, 0] = 0
        return found

    monkeypatch.setattr(DynamicSlidingWindowLayer, "update", wrong)
    refused(family, decoder(family), "with short windows")


@pytest.mark.parametrize("family", FAMILIES)
def test_modules_and_configs_have_their_own_windows_after_the_check(family: str) -> None:
    module = decoder(family)

    def windows() -> list[tuple[int, str, Any]]:
        owners = [*module.modules(), *(part.config for part in module.modules() if hasattr(part, "config"))]
        return [
            (id(owner), name, value)
            for owner in owners
            for name, value in vars(owner).items()
            if "window" in name or "chunk" in name
        ]

    before = windows()
    runner = build_runner(module, config(), MAX_MODEL_LEN)
    assert windows() == before
    backend = getattr(runner, "backend", None)
    assert backend is None or {spec.window for spec in backend.specs} - {None} == {WINDOW}


def test_a_forward_pass_that_fails_leaves_the_windows_as_they_were() -> None:
    module = decoder("mistral")
    with pytest.raises(KeyError), ShortWindows([WINDOW]).set_in(module):
        assert module.config.sliding_window == module.model.config.sliding_window == 10
        raise KeyError
    assert module.config.sliding_window == WINDOW


def test_the_check_computes_a_few_hundred_tokens_however_wide_the_window() -> None:
    expected = selfcheck.reference(decoder("mistral"), MAX_MODEL_LEN)
    samples = (*expected.samples, *expected.far, *expected.windowed)
    assert expected.windowed
    assert sum(len(sample.token_ids) for sample in samples) < 300


def test_a_window_that_no_served_sequence_leaves_is_not_made_short() -> None:
    expected = selfcheck.reference(decoder("mistral"), WINDOW)
    assert not expected.windowed and not expected.short
    assert build_runner(decoder("mistral"), config(), WINDOW).name == "fused"


def test_a_window_that_cannot_be_checked_is_left_to_the_model_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """The module's config does not name it."""
    with_windows(monkeypatch, lambda windows: [2048 for _ in windows])
    module = decoder("gemma2", layer_types=["full_attention"] * 2)
    refused("gemma2", module, "its window of 2048 tokens cannot be checked")
    assert build_runner(module, config(), MAX_MODEL_LEN).name == "compat"


def test_rotary_factors_of_another_kind_of_layer_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gemma 3 has a rotary base for layers with a window and another one for the rest."""
    right = RotaryTables.of_layer
    monkeypatch.setattr(RotaryTables, "of_layer", lambda self, index: right(self, 1 - index))
    refused("gemma3_text", decoder("gemma3_text"), "its layer 0 computes something else")


def test_queries_that_are_scaled_from_a_position_on_are_checked_there() -> None:
    expected = selfcheck.reference(decoder("llama4_text", max_position_embeddings=32768), 30000)
    assert {8192 - 12, 8192 - 6} <= {sample.first_position for sample in expected.far}


def test_several_widths_stay_different() -> None:
    short = ShortWindows([4096, 1024])
    assert [short.length(window) for window in (1023, 1024, 4096, 4097)] == [9, 10, 18, 19]
