"""Every kernel compiles for GPUs that are not here, at the shapes of models, and fits into their registers."""

from __future__ import annotations

import re
from pathlib import Path

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
}
"""Layers, and whether heads have norms."""


def launches(spec: LayerSpec, has_norm: bool, monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Of a step with a prompt and a single token behind 600 others, in bfloat16."""
    from server.cuda import attention, place
    from tests.cuda.ahead_of_time import Recorder

    recorder = Recorder()
    for module in (attention, place):
        monkeypatch.setattr(module, "launch", recorder)
    backend = TritonAttention([spec], 40, 32, torch.bfloat16, CPU)
    rows = [
        Row(key=0, token_ids=[0] * 70, num_computed=0, block_table=range(3)),
        Row(key=1, token_ids=[0], num_computed=600, block_table=range(10, 30)),
    ]
    inputs = batch_inputs.build(rows, 32, CPU)
    backend.begin(inputs)
    factors_PR = torch.zeros(700, spec.key_dim // 2)
    weight_D = torch.zeros(spec.key_dim)
    backend.attend_packed(
        0,
        torch.zeros(71, (spec.num_heads + 2 * spec.num_kv_heads) * spec.key_dim, dtype=torch.bfloat16),
        inputs.rotary_ids_T,
        rotary=Rotary(cos_PR=factors_PR, sin_PR=factors_PR),
        head_norm=HeadNorm(query_weight_D=weight_D, key_weight_D=weight_D, eps=1e-6) if has_norm else None,
    )
    return list(recorder.launches)


@pytest.mark.parametrize("capability", SHARED_BYTES)
@pytest.mark.parametrize("model", MODELS)
def test_every_kernel_fits_into_the_registers_and_the_shared_memory(
    model: str, capability: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from tests.cuda.ahead_of_time import Launch, compiled

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    started = [launch for launch in launches(*MODELS[model], monkeypatch) if isinstance(launch, Launch)]
    assert [launch.name for launch in started] == ["place", "prefill", "decode", "merge"]
    for launch in started:
        result = compiled(launch, capability, tmp_path)
        assert result.stack_bytes == 0, (launch.name, result.num_registers)
        assert result.shared_bytes <= SHARED_BYTES[capability], launch.name
        if launch.name == "prefill":
            # Tensor cores: of a warp group from capability 9.0 on.
            assert re.search(r"\bHGMMA" if capability == 90 else r"\bHMMA", result.sass)
        if launch.name == "decode":
            # Keys and values are read by 16 bytes, past the registers.
            assert re.search(r"\bLDGSTS\.E\.BYPASS\.128", result.sass)
