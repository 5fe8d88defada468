"""Every kernel compiles for GPUs that are not here, at the shapes of models, and fits into their registers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from server.engine import batch_inputs
from server.engine.attention.cuda_triton import TritonAttention
from server.engine.batch_inputs import Row
from server.modules.attention import HeadNorm, LayerSpec, Rotary
from tests.cuda.installed import needs_triton
from tests.engine.attention_driving import CPU, layer_spec

pytestmark = needs_triton

SHARED_BYTES = {80: 99 * 1024, 90: 227 * 1024}
"""Of a program, by compute capability. That of 8.6, which runs what is compiled for 8.0, is the least."""

MODELS = {
    "Llama-3.1-8B": (layer_spec((32, 8), (128, 128)), False),
    "SmolLM2-135M": (layer_spec((9, 3), (64, 64)), False),
    "Qwen3-0.6B": (layer_spec((16, 8), (128, 128)), True),
    "gemma-2-2b": (layer_spec((8, 4), (256, 256), window=4096, softcap=50.0), False),
    "values narrower than keys": (layer_spec((4, 2), (192, 128)), True),
}
"""Layers, and whether heads have norms."""


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Any:
    from server.cuda import attention, place, rows
    from tests.cuda.ahead_of_time import Recorder

    recorder = Recorder()
    for module in (attention, place, rows):
        monkeypatch.setattr(module, "launch", recorder)
    return recorder


def step(spec: LayerSpec, has_norm: bool, spans: Sequence[tuple[int, int]]) -> None:
    """One layer in bfloat16; of each sequence, the first and the last of its new tokens."""
    backend = TritonAttention([spec], 200, 32, torch.bfloat16, CPU)
    rows = [
        Row(key=i, token_ids=[0] * (stop - start), num_computed=start, block_table=range(40))
        for i, (start, stop) in enumerate(spans)
    ]
    inputs = batch_inputs.build(rows, 32, CPU)
    backend.begin(inputs)
    factors_PR = torch.zeros(700, spec.key_dim // 2)
    weight_D = torch.zeros(spec.key_dim)
    width = sum(spec.projected_widths)
    backend.attend_packed(
        0,
        torch.zeros(len(inputs.slots_T), width, dtype=torch.bfloat16),
        inputs.rotary_ids_T,
        rotary=Rotary(cos_PR=factors_PR, sin_PR=factors_PR),
        head_norm=HeadNorm(query_weight_D=weight_D, key_weight_D=weight_D, eps=1e-6) if has_norm else None,
    )


def test_other_numbers_of_tokens_and_sequences_compile_nothing_anew(recorder: Any) -> None:
    from tests.cuda.ahead_of_time import described

    spec, has_norm = MODELS["gemma-2-2b"]
    for single in ([600], [600, 700], [600, 3, 800, 900, 1000], [600] * 16):
        for chunks in ([], [(0, 9)], [(0, 64), (30, 41)], [(3, 300)] * 7):
            step(spec, has_norm, [*chunks, *((length, length + 1) for length in single)])
    for name in ("place", "prefill", "decode", "merge"):
        kinds = [described(launch) for launch in recorder.launches if launch.name == name]
        assert len(kinds) > 10
        assert all(kind == kinds[0] for kind in kinds), name


@pytest.mark.parametrize("capability", SHARED_BYTES)
@pytest.mark.parametrize("model", MODELS)
def test_every_kernel_fits_into_the_registers_and_the_shared_memory(
    model: str, capability: int, recorder: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from tests.cuda.ahead_of_time import compiled

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    step(*MODELS[model], [(0, 70), (600, 601)])
    assert [launch.name for launch in recorder.launches] == ["place", "prefill", "decode", "merge"]
    for launch in recorder.launches:
        result = compiled(launch, capability, tmp_path)
        assert result.stack_bytes == 0, (launch.name, result.num_registers)
        assert result.shared_bytes <= SHARED_BYTES[capability], launch.name
        if launch.name == "prefill":
            # Tensor cores: of a warp group from capability 9.0 on.
            assert re.search(r"\bHGMMA" if capability == 90 else r"\bHMMA", result.sass)
        if launch.name == "decode":
            # Keys and values are read by 16 bytes, past the registers.
            assert re.search(r"\bLDGSTS\.E\.BYPASS\.128", result.sass)


@pytest.mark.parametrize("capability", SHARED_BYTES)
def test_norms_and_activations_of_wide_models_fit_into_the_registers(
    capability: int, recorder: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from server.cuda import rows
    from tests.cuda.ahead_of_time import compiled

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    x, weight_D = torch.zeros(2, 8192, dtype=torch.bfloat16), torch.zeros(8192)
    rows.norm(x, weight_D, weight_D, 1e-5, is_centred=True, residual=x)
    rows.norm(x[:, :576], weight_D[:576], None, 1e-5, is_centred=False)
    for activation in ("silu", "gelu", "gelu_tanh", "relu"):
        rows.finish(x, weight_D, activation, is_gated=True, residual=x[:, :4096], dtype=torch.bfloat16)
    for launch in recorder.launches:
        result = compiled(launch, capability, tmp_path)
        assert result.stack_bytes == 0, launch.name
        assert re.search(r"\bLDG\.E\.(64|128)", result.sass), launch.name
