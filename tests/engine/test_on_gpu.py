"""On a GPU the product gives what it gives on a CPU: attention, draws, whole requests, encoders, a server over HTTP.

Needs nothing but torch. The kernels of packages are tried in `test_cuda_gpu.py`.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import torch
from torch import Tensor

from server.config import ModelConfig
from server.encoder.build import Wishes, build_forward
from server.engine import batch_inputs
from server.engine.attention.torch_native import TorchNativeAttention
from server.engine.batch_inputs import Row
from server.engine.engine import DecoderEngine
from server.engine.executors import build_runner
from server.engine.sampler import Sampler
from server.engine.sequence import Sequence
from server.models.device import use_device
from server.models.packed_linear import pack_linears
from server.modules.attention import LayerSpec
from server.protocol import Encode
from tests.engine.driving import Outcome, generate, run
from tests.server_process import running_server
from tests.tiny_encoders import tiny_encoder
from tests.tiny_models import tiny_decoder

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)

PLAIN = LayerSpec(num_heads=8, num_kv_heads=2, key_dim=64, value_dim=64, scaling=0.125)
WINDOWED = LayerSpec(num_heads=8, num_kv_heads=2, key_dim=64, value_dim=64, scaling=0.125, window=9)
CAPPED = LayerSpec(num_heads=4, num_kv_heads=4, key_dim=64, value_dim=64, scaling=0.125, softcap=5.0)
TABLES = ([3, 11, 0, 9, 5], [7, 2], [1, 12, 4, 13, 6])
STEPS = ([(0, 9), (0, 3), (0, 1)], [(9, 10), (3, 7), (1, 12)], [(10, 11), (7, 8), (12, 13)])


@pytest.fixture(autouse=True)
def _device() -> Iterator[None]:
    """Set up as a worker sets it up."""
    before = torch.backends.cuda.cudnn_sdp_enabled()
    use_device(GPU)
    with torch.inference_mode():
        yield
    torch.backends.cuda.enable_cudnn_sdp(before)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 5e-5), (torch.float16, 4e-3), (torch.bfloat16, 3e-2)])
@pytest.mark.parametrize("spec", [PLAIN, WINDOWED, CAPPED], ids=["plain", "window", "softcap"])
def test_torchs_attention_gives_the_cpus_results(spec: LayerSpec, dtype: torch.dtype, tolerance: float) -> None:
    exact = TorchNativeAttention([spec], 14, 4, torch.float32, CPU)
    ours = TorchNativeAttention([spec], 14, 4, dtype, GPU)
    generator = torch.Generator().manual_seed(0)
    for step in STEPS:
        rows = [
            Row(key=i, token_ids=[0] * (stop - start), num_computed=start, block_table=TABLES[i])
            for i, (start, stop) in enumerate(step)
        ]
        num_tokens = sum(stop - start for start, stop in step)
        tensors = [
            torch.randn(1, heads, num_tokens, 64, generator=generator).to(dtype)
            for heads in (spec.num_heads, spec.num_kv_heads, spec.num_kv_heads)
        ]
        results = []
        for attention, device, width in ((exact, CPU, torch.float32), (ours, GPU, dtype)):
            attention.begin(batch_inputs.build(rows, 4, device))
            results.append(attention.attend(0, *(each.to(device, width) for each in tensors), None).float().cpu())
        expected, found = results
        assert float(((found - expected).norm(dim=-1) / expected.norm(dim=-1)).max()) <= tolerance


DRAWS: list[list[dict[str, Any]]] = [
    [{}],
    [{"do_sample": True, "temperature": 0.7}],
    [{"do_sample": True, "top_k": 20, "top_p": 0.9}, {}, {"do_sample": True, "min_p": 0.05}],
    [{"do_sample": True, "typical_p": 0.9}, {"do_sample": True, "top_n_sigma": 1.5}],
    [{"repetition_penalty": 1.3, "do_sample": True}, {"logit_bias": {5: 4.0}, "min_new_tokens": 9}],
]


@pytest.mark.parametrize("params", DRAWS)
def test_the_same_logits_and_seeds_draw_the_cpus_tokens(params: list[dict[str, Any]]) -> None:
    logits = 4 * torch.randn(12, 5000, generator=torch.Generator().manual_seed(1))

    def drawn(device: torch.device) -> tuple[list[int], list[float]]:
        sequences = [
            Sequence(
                generate(
                    f"r{i}", [3, 5, 7], [7, 2], max_new_tokens=40, seed=i, logprobs=True, **params[i % len(params)]
                ),
                max_model_len=4096,
                block_size=32,
            )
            for i in range(len(logits))
        ]
        sampled = Sampler().sample(logits.to(device, copy=True), sequences)
        assert all(sampled.is_finite)
        return sampled.token_ids, sampled.logprobs

    (ids, logprobs), (expected_ids, expected_logprobs) = drawn(GPU), drawn(CPU)
    assert ids == expected_ids
    assert logprobs == pytest.approx(expected_logprobs, abs=1e-4)


REQUESTS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sampled": {"do_sample": True, "seed": 3, "top_p": 0.9},
    "samples": {"do_sample": True, "seed": 4, "num_return_sequences": 3},
    "beams": {"num_beams": 4, "num_return_sequences": 2},
    "logprobs": {"logprobs": True, "top_n_tokens": 3},
    "prompt": {"prompt_logprobs": True, "logprobs": True},
}


def served(family: str, executor: str, device: torch.device) -> dict[str, Outcome]:
    module = copy.deepcopy(tiny_decoder(family)).to(device)
    config = ModelConfig(name="m", path="unused", kv_cache_gib=0.02, block_size=4, executor=executor)
    runner = build_runner(module, config, 256, pack=pack_linears)
    engine = DecoderEngine(runner, max_model_len=256, max_batch_tokens=24, max_running=16, prefix_cache=True)
    prompt = list(range(3, 33))
    commands = [generate(name, prompt, max_new_tokens=12, **params) for name, params in REQUESTS.items()]
    return run(engine, commands)


@pytest.mark.parametrize("executor", ["fused", "generic", "compat"])
@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_requests_of_every_kind_get_the_cpus_tokens_and_logprobs(family: str, executor: str) -> None:
    found, expected = served(family, executor, GPU), served(family, executor, CPU)
    assert {name: one.token_ids for name, one in found.items()} == {n: one.token_ids for n, one in expected.items()}
    for name, outcome in found.items():
        assert outcome.logprobs == pytest.approx(expected[name].logprobs, abs=1e-3)


@pytest.mark.parametrize("wishes", [Wishes(), Wishes(has_tf32=True), Wishes(dtype=torch.bfloat16)], ids=str)
@pytest.mark.parametrize("family", ["bert", "modernbert"])
def test_an_encoder_gives_the_cpus_scores(family: str, wishes: Wishes) -> None:
    commands = [Encode(str(n), [2, *range(5, 5 + n), 3]) for n in (3, 17, 40)]

    def scores(device: torch.device, wishes: Wishes) -> Tensor:
        module = tiny_encoder(family, "classify").to(device)
        forward = build_forward(module, pad_token_id=0, max_model_len=64, wishes=wishes, pack=lambda _: None)
        return forward.logits(commands).float().softmax(-1).cpu()

    before = torch.get_float32_matmul_precision()
    try:
        found = scores(GPU, wishes)
    finally:
        torch.set_float32_matmul_precision(before)
    tolerance = 1e-4 if wishes == Wishes() else 0.03
    torch.testing.assert_close(found, scores(CPU, Wishes()), rtol=0, atol=tolerance)


def test_a_server_on_the_gpu_answers_over_http(tiny_llama: Path, tiny_classifier: Path) -> None:
    models = ("--model", f"chat={tiny_llama}", "--model", f"mood={tiny_classifier}")
    with running_server(*models, "--device", str(GPU), "--kv-cache-gib", "0.05") as server:
        devices = [model["device"] for model in httpx2.get(f"{server.url}/info").json()["models"]]
        assert devices == [str(GPU)] * 2
        body = {"inputs": "The river runs past the mill", "model": "chat", "parameters": {"max_new_tokens": 8}}
        answers = [httpx2.post(f"{server.url}/generate", json=body, timeout=60) for _ in range(2)]
        assert [answer.status_code for answer in answers] == [200, 200]
        assert answers[0].json() == answers[1].json()
        labelled = httpx2.post(f"{server.url}/classify", json={"inputs": "Good.", "model": "mood"}, timeout=60)
        assert labelled.status_code == 200
