"""Steps on CUDA tensors that hold no values: every operator exists for them, and nothing waits for the device."""

from __future__ import annotations

import dataclasses
import importlib
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from server.encoder.forward import PaddedForward
from server.engine import batch_inputs
from server.engine.attention import cuda_flashinfer
from server.engine.attention.backend import AttentionBackend
from server.engine.attention.cuda_flash_attn import FlashAttention
from server.engine.attention.cuda_flashinfer import FlashInferAttention
from server.engine.attention.cuda_paged import PagedAttention
from server.engine.attention.cuda_triton import TritonAttention
from server.engine.attention.cuda_varlen import VarlenAttention, version_problem
from server.engine.attention.spans import grouped, spans_of
from server.engine.attention.torch_native import TorchNativeAttention
from server.engine.batch_inputs import Row
from server.engine.executors.fused import FusedRunner
from server.engine.executors.generic import GenericRunner, probe
from server.engine.executors.paged import PagedRunner
from server.engine.sampler import Sampler
from server.engine.sequence import Sequence
from server.modules import products
from server.modules.attention_calls import ATTENTION, set_attention
from server.modules.products import reduce_linears
from server.modules.recognise import recognise
from server.protocol import Encode
from tests.cuda.installed import IS_INSTALLED
from tests.engine import paged_kernels
from tests.engine.driving import generate
from tests.fake_cuda import DEVICE, BlockingCopies, fake_cuda, move_to_fake
from tests.tiny_encoders import tiny_encoder
from tests.tiny_models import VOCAB_SIZE, tiny_decoder

torch.set_num_threads(1)

BACKENDS: list[tuple[Any, int]] = [
    (TorchNativeAttention, 4),
    (VarlenAttention, 4),
    (FlashInferAttention, 4),
    (FlashAttention, 256),
    *([(TritonAttention, 32)] if IS_INSTALLED else []),
]
NUM_BLOCKS = 64
ROWS = [
    Row(key=0, token_ids=[1, 2, 3, 4, 5], num_computed=0, block_table=[0, 1]),
    Row(key=1, token_ids=[9], num_computed=6, block_table=[2, 3]),
    Row(key=2, token_ids=[9, 8], num_computed=30, block_table=range(10, 18)),
    Row(key=3, token_ids=[9], num_computed=50, block_table=range(20, 33)),
]


@pytest.fixture(autouse=True)
def kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """varlen_attn is torch's own operator, which knows tensors without values."""
    monkeypatch.setitem(sys.modules, "flash_attn", paged_kernels.FLASH_ATTN)
    monkeypatch.setitem(sys.modules, "flashinfer", paged_kernels.FLASHINFER)
    monkeypatch.setattr(cuda_flashinfer, "WORKSPACE_BYTES", 16)
    if IS_INSTALLED:
        # Where a step's tensors are is checked in `test_launches.py`.
        for name in ("attention", "place"):
            monkeypatch.setattr(importlib.import_module(f"server.cuda.{name}"), "launch", lambda *_, **__: None)


def skip_before_its_torch(make: Any) -> None:
    if make is VarlenAttention and (problem := version_problem()):
        pytest.skip(problem)


def family_module(family: str) -> tuple[Any, Any]:
    module = tiny_decoder(family)
    set_attention(module, ATTENTION)
    return module, probe(module)


def check_steps(runner: PagedRunner) -> None:
    for rows in (ROWS, ROWS[1:2], [ROWS[1], ROWS[3]]):
        logits = runner.forward(rows)
        assert logits.device == DEVICE
        assert logits.shape == (len(rows), VOCAB_SIZE)
    backend: AttentionBackend = runner.backend
    if isinstance(backend, PagedAttention):
        single = [ROWS[1], ROWS[3]]
        inputs = batch_inputs.build(single, runner.block_size, DEVICE)
        backend.begin_static(inputs, 32)
        assert runner.compute(inputs).shape == (2, VOCAB_SIZE)
    runner.copy_blocks([(1, 2)])
    runner.clear_blocks([1, 2])


@pytest.mark.parametrize(
    ("make", "block_size", "family"),
    [
        *((*backend, family) for backend in BACKENDS for family in ("llama", "mistral")),
        *((*BACKENDS[0], family) for family in ("gemma2", "opt", "gpt2")),
    ],
)
def test_a_step_of_the_generic_executor_never_waits_for_the_device(make: Any, block_size: int, family: str) -> None:
    skip_before_its_torch(make)
    module, specs = family_module(family)
    with fake_cuda() as fake:
        move_to_fake(module, fake)
        backend = make(specs, NUM_BLOCKS, block_size, torch.float32, DEVICE)
        check_steps(
            GenericRunner(module, specs, backend, num_blocks=NUM_BLOCKS, block_size=block_size, vocab_size=VOCAB_SIZE)
        )


def faked(value: Any, fake: FakeTensorMode) -> Any:
    """The same layout with its tensors and its modules' weights on the device."""
    if isinstance(value, Tensor):
        return torch.empty(value.shape, dtype=value.dtype, device=DEVICE)
    if isinstance(value, torch.nn.Module):
        move_to_fake(value, fake)
    if isinstance(value, tuple):
        return tuple(faked(part, fake) for part in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: faked(getattr(value, field.name), fake) for field in dataclasses.fields(value)}
        return dataclasses.replace(value, **fields)
    return value


@pytest.mark.parametrize(("make", "block_size"), BACKENDS)
@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2"])
def test_a_step_of_the_fused_executor_never_waits_for_the_device(family: str, make: Any, block_size: int) -> None:
    skip_before_its_torch(make)
    module, specs = family_module(family)
    layout = recognise(module, specs, [128])
    with fake_cuda() as fake:
        layout = faked(layout, fake)
        layers = tuple(products.pack_layer(layer) for layer in layout.layers)
        decoder: Any = dataclasses.replace(layout, layers=layers, head=products.pack(layout.head))  # type: ignore[arg-type]
        backend = make(layout.specs, NUM_BLOCKS, block_size, torch.float32, DEVICE)
        check_steps(FusedRunner(decoder, backend, num_blocks=NUM_BLOCKS, block_size=block_size, vocab_size=VOCAB_SIZE))


def test_rows_of_many_lengths_are_attended_in_few_groups_on_a_gpu() -> None:
    """Each group costs launches and copies in every layer."""
    inputs = batch_inputs.build(
        [Row(key=i, token_ids=[1], num_computed=100 + 180 * i, block_table=range(200)) for i in range(32)],
        32,
        torch.device("cpu"),
    )
    spans = spans_of(inputs, None, 32)
    assert len(grouped(spans, 10**6, "cpu")) > 10
    assert len(grouped(spans, 10**6, "cuda")) <= 4


def test_a_padded_encoder_step_waits_for_nothing_but_its_scores() -> None:
    module = tiny_encoder("bert", "classify")
    batch = [Encode(request_id=str(n), token_ids=list(range(5, 5 + n))) for n in (3, 9)]
    with fake_cuda() as fake:
        move_to_fake(module, fake)
        logits = PaddedForward(module, 0).logits(batch)
        assert logits.device == DEVICE
        assert logits.shape[0] == 2


def test_an_encoders_products_in_bfloat16_have_float32_around_them_on_a_gpu() -> None:
    module = tiny_encoder("bert", "classify")
    with fake_cuda() as fake:
        move_to_fake(module, fake)
        reduce_linears(module.base_model, torch.bfloat16, "none")
        logits = PaddedForward(module, 0).logits([Encode(request_id="r", token_ids=[5, 6, 7])])
        assert (logits.device, logits.dtype) == (DEVICE, torch.float32)
        product = module.base_model.encoder.layer[0].intermediate.dense
        assert (product.plain_weight.device, product.plain_weight.dtype) == (DEVICE, torch.bfloat16)


MIXED_DRAWS: list[list[dict[str, Any]]] = [
    [{}, {"do_sample": True}],
    [{"do_sample": True, "top_k": 5}, {"do_sample": True, "top_p": 0.9, "temperature": 0.7}, {}],
    [{"do_sample": True, "min_p": 0.1}, {"do_sample": True, "top_n_sigma": 1.0}],
    [{"do_sample": True, "typical_p": 0.9}, {"do_sample": True, "epsilon_cutoff": 0.01}, {"do_sample": True}],
    [{"repetition_penalty": 1.1}, {"presence_penalty": 0.5, "logit_bias": {5: 1.0}, "min_new_tokens": 30}, {}],
]


def draw_twice(monkeypatch: pytest.MonkeyPatch, params: list[dict[str, Any]]) -> tuple[int, list[tuple[int, ...]]]:
    """Copies to the host, and blocking copies from it, of the second draw of a batch."""
    copies = []

    def copied(values: Tensor) -> Any:
        """What a draw that is settled everywhere gives, and log-probabilities without ties."""
        assert isinstance(values, FakeTensor)
        copies.append(values.shape)
        fill = np.ones if values.dim() == 2 else np.zeros
        return SimpleNamespace(numpy=lambda: fill(values.shape))

    monkeypatch.setattr(Tensor, "cpu", copied)
    sequences = [
        Sequence(generate(f"r{i}", [3, 5, 7], [7, 2], max_new_tokens=40, **p), max_model_len=4096, block_size=32)
        for i, p in enumerate(params)
    ]
    with fake_cuda():
        sampler = Sampler()
        sampler.sample(torch.empty(len(sequences), VOCAB_SIZE, device=DEVICE), sequences)
        copies.clear()
        with BlockingCopies() as blocking:
            sampler.sample(torch.empty(len(sequences), VOCAB_SIZE, device=DEVICE), sequences)
    return len(copies), blocking.shapes


@pytest.mark.parametrize("params", MIXED_DRAWS)
def test_a_draw_copies_to_the_host_once(params: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    assert draw_twice(monkeypatch, params)[0] == 1


@pytest.mark.parametrize("params", MIXED_DRAWS)
def test_a_draw_waits_for_no_copy_from_the_host(params: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    assert draw_twice(monkeypatch, params)[1] == []


def test_log_probabilities_cost_one_more_copy_to_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {"logprobs": True, "top_n_tokens": 3}
    assert draw_twice(monkeypatch, [asked, {}, {"do_sample": True, **asked}]) == (2, [])
