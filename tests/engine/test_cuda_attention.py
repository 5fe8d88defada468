"""The back ends of CUDA kernels on the CPU: kernels are loops over blocks, everything else is what a GPU would run."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from server.engine import batch_inputs
from server.engine.attention import cuda, cuda_flashinfer, cuda_varlen
from server.engine.attention.cuda_flash_attn import FlashAttention
from server.engine.attention.cuda_flashinfer import FlashInferAttention
from server.engine.attention.cuda_paged import PagedAttention
from server.engine.attention.cuda_varlen import VarlenAttention
from server.engine.attention.torch_native import TorchNativeAttention
from server.engine.batch_inputs import Row
from server.modules.attention import LayerSpec
from tests.engine import paged_kernels

torch.set_num_threads(1)

CPU = torch.device("cpu")
NUM_BLOCKS = 14
BACKENDS = [(VarlenAttention, 4), (FlashInferAttention, 4), (FlashAttention, 256)]

PLAIN = LayerSpec(num_heads=2, num_kv_heads=2, key_dim=16, value_dim=16, scaling=0.25)
GROUPED = LayerSpec(num_heads=4, num_kv_heads=1, key_dim=8, value_dim=8, scaling=0.5)
WINDOWED = LayerSpec(num_heads=4, num_kv_heads=2, key_dim=8, value_dim=8, scaling=0.5, window=5)
CAPPED = LayerSpec(num_heads=2, num_kv_heads=2, key_dim=8, value_dim=8, scaling=0.5, softcap=2.0)

TABLES = ([3, 11, 0, 9, 5], [7, 2], [1, 12, 4, 13, 6], [8, 10])
STEPS = (
    [(0, 9), (0, 3), (0, 1)],
    [(9, 10), (3, 7), (1, 12)],
    [(10, 11), (7, 8), (12, 13), (0, 4)],
    [(11, 12), (8, 8), (13, 14), (4, 5)],
    [(12, 13), (8, 8), (14, 15)],
)
"""Of each sequence the tokens that a step computes: prompts, chunks among single tokens, single tokens alone."""


@pytest.fixture(autouse=True)
def kernels(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    paged_kernels.install(monkeypatch)
    with torch.inference_mode():
        yield


def rows_of(step: list[tuple[int, int]], **options: Any) -> list[Row]:
    return [
        Row(key=i, token_ids=[0] * (stop - start), num_computed=start, block_table=TABLES[i], **options)
        for i, (start, stop) in enumerate(step)
        if stop > start
    ]


def random_tensors(spec: LayerSpec, num_tokens: int) -> tuple[Tensor, Tensor, Tensor]:
    query, key, value = (
        torch.randn(1, heads, num_tokens, spec.key_dim)
        for heads in (spec.num_heads, spec.num_kv_heads, spec.num_kv_heads)
    )
    return query, key, value


def made(backend: type[PagedAttention], block_size: int, *specs: LayerSpec, deterministic: bool = False) -> Any:
    """A back end whose unwritten places are NaN, so that looking at one shows."""
    attention = backend(specs, NUM_BLOCKS, block_size, torch.float32, CPU, deterministic=deterministic)
    for pool in attention._pools:
        pool.fill_(torch.nan)
    return attention


@pytest.mark.parametrize(
    ("backend", "block_size", "spec"),
    [
        (backend, block_size, spec)
        for backend, block_size in BACKENDS
        for spec in (PLAIN, GROUPED, WINDOWED, CAPPED)
        if spec is not CAPPED or backend is not VarlenAttention
    ],
)
def test_a_paged_kernel_is_told_what_gives_torchs_results(
    backend: type[PagedAttention], block_size: int, spec: LayerSpec
) -> None:
    torch.manual_seed(0)
    paged = made(backend, block_size, spec, PLAIN)
    oracle = TorchNativeAttention((spec, PLAIN), NUM_BLOCKS, block_size, torch.float32, CPU)
    for step in STEPS:
        inputs = batch_inputs.build(rows_of(step), block_size, CPU)
        paged.begin(inputs)
        oracle.begin(inputs)
        for layer, layer_spec in enumerate((spec, PLAIN)):
            tensors = random_tensors(layer_spec, inputs.slots_T.shape[0])
            expected = oracle.attend(layer, *tensors, None)
            torch.testing.assert_close(paged.attend(layer, *tensors, None), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("backend", "block_size"), BACKENDS)
def test_replayed_steps_keep_their_tensors_and_give_the_results_of_plain_ones(
    backend: type[PagedAttention], block_size: int
) -> None:
    torch.manual_seed(0)
    paged, plain = made(backend, block_size, WINDOWED), made(backend, block_size, WINDOWED)
    prompt = [(0, 9), (0, 3), (0, 1)]
    addresses = set()
    for step in (prompt, *([(9 + i, 10 + i), (3 + i, 4 + i), (1 + i, 2 + i)] for i in range(5))):
        inputs = batch_inputs.build(rows_of(step), block_size, CPU)
        plain.begin(inputs)
        if step is prompt:
            paged.begin(inputs)
        else:
            paged.begin_static(inputs, 5)
            addresses.add(tuple(tensor.data_ptr() for tensor in (*paged.step.parts, paged.step.write_rows)))
            assert paged.step.host.most_tokens == 5 * block_size
        tensors = random_tensors(WINDOWED, inputs.slots_T.shape[0])
        torch.testing.assert_close(paged.attend(0, *tensors, None), plain.attend(0, *tensors, None))
    assert len(addresses) == 1


def test_a_replayed_flashinfer_plan_keeps_its_tensors_and_shares_its_wrapper_between_layers_that_are_alike() -> None:
    attention = made(FlashInferAttention, 4, PLAIN, WINDOWED, PLAIN)
    for start in (3, 4):
        inputs = batch_inputs.build(rows_of([(start, start + 1)] * 2), 4, CPU)
        attention.begin_static(inputs, 2)
    wrappers = [wrapper for (kind, rows, _), wrapper in attention._wrappers.items() if (kind, rows) == ("decode", 2)]
    assert len(wrappers) == 2
    for wrapper in wrappers:
        assert wrapper.indptr.tolist() == [0, 2, 4]
        assert wrapper.indptr is wrapper.buffers["indptr"]


@pytest.mark.parametrize(("backend", "block_size"), BACKENDS)
def test_a_row_with_infinite_keys_fails_alone_and_leaves_finite_ones_in_the_cache(
    backend: type[PagedAttention], block_size: int
) -> None:
    torch.manual_seed(0)
    paged = made(backend, block_size, PLAIN, PLAIN)
    inputs = batch_inputs.build(rows_of([(0, 5), (0, 3), (0, 2)], num_logits=0), block_size, CPU)
    paged.begin(inputs)
    query, key, value = random_tensors(PLAIN, 10)
    assert paged.attend(0, query, key, value, None).isfinite().all()
    assert paged.failed_rows() == []
    key[0, 1, 6, 3] = torch.inf
    value[0, 0, 6, 0] = -torch.inf
    out = paged.attend(1, query, key, value, None)[0]
    assert out[5:8].isnan().all()
    assert out[:5].isfinite().all()
    assert out[8:].isfinite().all()
    assert paged.failed_rows() == [1]
    written = paged._pools[1].view(2, -1, 2, 16)[:, inputs.slots_T]
    assert written.isfinite().all()
    single = batch_inputs.build(rows_of([(5, 6), (3, 4)]), block_size, CPU)
    paged.begin(single)
    query, key, value = random_tensors(PLAIN, 2)
    value[0, 0, 0, 0] = torch.nan
    out = paged.attend(0, query, key, value, None)[0]
    assert out[0].isnan().all()
    assert out[1].isfinite().all()


def test_blocks_are_copied_and_cleared_in_every_layer() -> None:
    paged = made(VarlenAttention, 4, PLAIN, GROUPED)
    for pool in paged._pools:
        pool.copy_(torch.randn(pool.shape))
    before = [pool.clone() for pool in paged._pools]
    paged.copy_blocks([(2, 5), (3, 6)])
    paged.clear_blocks([2, 9])
    for pool, old in zip(paged._pools, before, strict=True):
        assert torch.equal(pool[:, [5, 6]], old[:, [2, 3]])
        assert not pool[:, [2, 9]].any()
        kept = [i for i in range(NUM_BLOCKS + 1) if i not in (2, 5, 6, 9)]
        assert torch.equal(pool[:, kept], old[:, kept])


def test_deterministic_attention_never_splits_a_sequence(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[dict[str, Any]] = []

    def spy(*args: Any, **options: Any) -> Tensor:
        told.append(options)
        return paged_kernels.fake_varlen_attn(*args, **options)

    monkeypatch.setattr(cuda_varlen.varlen, "varlen_attn", spy)
    inputs = batch_inputs.build(rows_of([(0, 1)]), 4, CPU)
    for deterministic in (True, False):
        attention = made(VarlenAttention, 4, PLAIN, deterministic=deterministic)
        attention.begin(inputs)
        attention.attend(0, *random_tensors(PLAIN, 1), None)
        infer = made(FlashInferAttention, 4, PLAIN, deterministic=deterministic)
        infer.begin(inputs)
        (planned,) = infer._planned.values()
        assert planned.options["disable_split_kv"] is deterministic
    assert [options["num_splits"] for options in told] == [1, None]


HALF = LayerSpec(num_heads=4, num_kv_heads=2, key_dim=64, value_dim=64, scaling=0.125)


def chosen(caplog: pytest.LogCaptureFixture, block_size: int = 32, **changes: Any) -> tuple[str, str]:
    caplog.set_level("INFO", logger="sluice.engine")
    caplog.clear()
    spec = LayerSpec(**{**vars(HALF), **changes})
    return cuda.choose_cuda([spec], 3, block_size, torch.bfloat16, CPU).name, caplog.text


@pytest.fixture
def no_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU counts as a GPU of compute capability 8, for which torch has no paged kernel."""
    monkeypatch.setattr(cuda, "TRIED_LENGTHS", (5, 30))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: (8, 0))
    cuda_varlen.activation_problem.cache_clear()


@pytest.mark.usefixtures("no_device")
def test_the_first_kernel_that_fits_is_chosen_and_the_log_says_why_the_others_are_not(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    name, text = chosen(caplog)
    assert name == "flashinfer"
    assert "attention varlen is not used: it has no kernel for compute capability 8" in text
    monkeypatch.setitem(sys.modules, "flashinfer", None)
    name, text = chosen(caplog)
    assert name == "torch"
    assert "attention flashinfer is not used: it is not installed" in text
    assert "attention flash-attn is not used: block_size is 32 and must be a multiple of 256" in text
    assert chosen(caplog, block_size=256)[0] == "flash-attn"
    monkeypatch.setitem(sys.modules, "flash_attn", None)
    assert chosen(caplog, block_size=256)[0] == "torch"


@pytest.mark.usefixtures("no_device")
def test_a_torch_whose_varlen_attention_takes_no_block_table_is_named(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def varlen_attn_of_torch_2_11(query: Tensor, key: Tensor, value: Tensor, *, scale: float | None = None) -> Tensor:
        raise AssertionError("it is not tried")

    monkeypatch.setattr(cuda_varlen.varlen, "varlen_attn", varlen_attn_of_torch_2_11)
    assert chosen(caplog)[0] == "flashinfer"
    assert "attention varlen is not used: it needs torch 2.13: varlen_attn of torch 2." in caplog.text


@pytest.mark.usefixtures("no_device")
@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"has_sinks": True}, "it has no sinks"),
        ({"value_dim": 32}, "keys are 64 wide and values 32"),
        ({"key_dim": 20, "value_dim": 20}, "it has no heads that are 20 wide"),
    ],
)
def test_layers_that_no_kernel_can_do_are_attended_by_torch(
    caplog: pytest.LogCaptureFixture, changes: dict[str, Any], reason: str
) -> None:
    name, text = chosen(caplog, **changes)
    assert name == "torch"
    for kernel in ("varlen", "flashinfer", "flash-attn"):
        assert f"attention {kernel} is not used: {reason}" in text


@pytest.mark.usefixtures("no_device")
def test_a_kernel_that_fails_or_gives_other_results_is_passed_over(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    right = paged_kernels.BatchDecodeWithPagedKVCacheWrapper.run

    def blind(self: Any, q: Tensor, paged_kv_cache: tuple[Tensor, Tensor]) -> Tensor:
        self.last = self.last - (self.last > 1).int()
        return right(self, q, paged_kv_cache)

    def broken(*_args: Any) -> Tensor:
        raise RuntimeError("no kernel image is available")

    for run, reason in ((blind, "its results are "), (broken, "it fails (RuntimeError: no kernel image is available)")):
        monkeypatch.setattr(paged_kernels.BatchDecodeWithPagedKVCacheWrapper, "run", run)
        name, text = chosen(caplog)
        assert name == "torch"
        assert f"attention flashinfer is not used: {reason}" in text


@pytest.mark.usefixtures("no_device")
def test_a_kernel_that_forgets_the_window_is_passed_over(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(cuda, "TRIED_WINDOW", 8)
    assert chosen(caplog, window=4096)[0] == "flashinfer"
    monkeypatch.setattr(cuda_flashinfer, "window_of", lambda _spec: (-1, 0))
    assert chosen(caplog, window=4096)[0] == "torch"
    assert "its results are" in caplog.text
