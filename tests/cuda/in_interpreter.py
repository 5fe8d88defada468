"""Triton's kernels against attention in float64, run on the host by Triton's interpreter: see `test_interpreted.py`.

No bfloat16: the interpreter multiplies its bits. Pages that nothing was written to, and results, are NaN beforehand.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from server.cuda import attention, rows, rows_trial
from server.engine import batch_inputs
from server.engine.attention.backend import AttentionBackend
from server.engine.attention.cuda_triton import TritonAttention
from server.engine.attention.torch_native import TorchNativeAttention
from server.engine.batch_inputs import Row
from server.modules.attention import HeadNorm, LayerSpec, Rotary
from server.native import reference
from tests.engine.attention_driving import CPU, Scene, layer_spec

torch.set_num_threads(1)

NUM_BLOCKS, BLOCK_SIZE = 30, 16
TOLERANCE = {torch.float32: 1e-5, torch.float16: 3e-3}
"""Of a token's result, as a part of its length."""

SPECS = {
    "grouped": layer_spec((9, 3), (64, 64)),
    "one head each, 80 wide": layer_spec((2, 2), (80, 80)),
    "window, 96 wide": layer_spec((4, 2), (96, 96), window=20),
    "softcap": layer_spec((7, 1), (32, 32), softcap=5.0),
    "sinks and twelve in a group": layer_spec((12, 1), (16, 16), has_sinks=True),
    "values narrower than keys": layer_spec((2, 1), (64, 32), window=20, softcap=4.0, has_sinks=True),
    "values wider than keys": layer_spec((2, 1), (32, 48)),
    "192 and 128 wide": layer_spec((2, 1), (192, 128)),
    "256 wide": layer_spec((2, 1), (256, 256)),
    "more than sixteen in a group": layer_spec((17, 1), (16, 16), window=1),
}
"""By what is special about them."""


@pytest.fixture(autouse=True)
def small_splits(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Of these short sequences some have several splits, and some more than the most, which are longer then."""
    monkeypatch.setattr(attention, "SPLIT", 32)
    monkeypatch.setattr(attention, "MOST_SPLITS", 3)
    monkeypatch.setattr(attention, "MERGED", 2)
    with torch.inference_mode():
        yield


def made(*specs: LayerSpec, dtype: torch.dtype = torch.float32) -> TritonAttention:
    backend = TritonAttention(specs, NUM_BLOCKS, BLOCK_SIZE, dtype, CPU)
    backend.poison()
    return backend


def scene(spec: LayerSpec, dtype: torch.dtype = torch.float32) -> Scene:
    return Scene(made(spec, dtype=dtype), NUM_BLOCKS, BLOCK_SIZE, dtype)


def worst_distance(found: Tensor, expected: Tensor) -> float:
    return float(((found.double() - expected).norm(dim=-1) / expected.norm(dim=-1)).max())


CASES = [(name, torch.float16) for name in SPECS]
CASES += [(name, torch.float32) for name in ("grouped", "values narrower than keys")]


@pytest.mark.parametrize(("name", "dtype"), CASES, ids=str)
def test_prompts_chunks_and_single_tokens_get_what_attention_in_float64_gives(name: str, dtype: torch.dtype) -> None:
    place = scene(SPECS[name], dtype)
    sequences = [place.sequence(length, seed) for seed, length in enumerate((103, 20, 1))]
    outs: list[list[Tensor]] = [[] for _ in sequences]
    for step in ([(0, 40), (1, 5)], [(0, 58), (1, 14), (2, 1)], [(0, 1), (1, 1)], [(0, 4)]):
        for (i, _), out in zip(step, place.step([(sequences[i], new) for i, new in step]), strict=True):
            outs[i].append(out)
    for sequence, out in zip(sequences, outs, strict=True):
        expected = place.expected(sequence, sequence.num_computed)
        assert worst_distance(torch.cat(out), expected) <= TOLERANCE[dtype]


@pytest.mark.parametrize("spec", [SPECS["grouped"], SPECS["window, 96 wide"]], ids=["grouped", "window"])
def test_a_single_token_has_the_same_bits_alone_and_beside_others(spec: LayerSpec) -> None:
    together, alone = scene(spec, torch.float16), scene(spec, torch.float16)
    others = [together.sequence(length, 7) for length in (3, 98, 20)]
    for place in (together, alone):
        place.run(place.sequence(1, 0), [1])
    subjects = [place.sequence(66, 1) for place in (together, alone)]
    together.step([(other, len(other) - 1) for other in others])
    for place, subject in zip((together, alone), subjects, strict=True):
        place.step([(subject, 65)])
    (expected,) = alone.step([(subjects[1], 1)])
    found = together.step([(others[0], 1), (others[1], 1), (subjects[0], 1), (others[2], 1)])[2]
    assert torch.equal(found, expected)


def packed(backend: AttentionBackend, spec: LayerSpec, rows: list[Row], qkv_TX: Tensor, **options: Any) -> Tensor:
    inputs = batch_inputs.build(rows, BLOCK_SIZE, CPU)
    backend.begin(inputs)
    return backend.attend_packed(0, qkv_TX, inputs.rotary_ids_T, **options)


@pytest.mark.parametrize("has_norm", [False, True])
@pytest.mark.parametrize("num_pairs", [0, 10, 32])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_heads_are_normed_rotated_and_written_as_in_the_reference(
    dtype: torch.dtype, num_pairs: int, has_norm: bool
) -> None:
    spec = layer_spec((6, 2), (64, 64))
    torch.manual_seed(0)
    angles_PR = torch.rand(64, num_pairs) * 6
    options: dict[str, Any] = {
        "rotary": Rotary(cos_PR=angles_PR.cos(), sin_PR=angles_PR.sin()) if num_pairs else None,
        "head_norm": HeadNorm(query_weight_D=torch.rand(64), key_weight_D=torch.rand(64) + 1, eps=1e-5)
        if has_norm
        else None,
    }
    ours, oracle = made(spec, dtype=dtype), TorchNativeAttention([spec], NUM_BLOCKS, BLOCK_SIZE, torch.float64, CPU)
    tables, done = [[3, 9], [5, 1]], [0, 0]
    for new in ((18, 1), (1, 3), (1, 1)):
        rows = [
            Row(key=i, token_ids=[0] * num_new, num_computed=done[i], block_table=tables[i])
            for i, num_new in enumerate(new)
        ]
        done = [before + num_new for before, num_new in zip(done, new, strict=True)]
        qkv_TX = torch.randn(sum(new), 10 * 64).to(dtype)
        expected = packed(oracle, spec, rows, qkv_TX.double(), **options)
        assert worst_distance(packed(ours, spec, rows, qkv_TX, **options), expected) <= 2 * TOLERANCE[dtype]


def test_a_row_with_infinite_keys_fails_alone_and_leaves_finite_ones_in_the_cache() -> None:
    spec = layer_spec((4, 2), (32, 32))
    place = scene(spec)
    sequences = [place.sequence(length, length) for length in (5, 40, 33)]
    sequences[1].key[20, 1, 3] = torch.inf
    sequences[2].value[32, 0, 0] = torch.nan
    first, second, third = place.step([(sequences[0], 4), (sequences[1], 39), (sequences[2], 32)], num_logits=0)
    assert second.isnan().all()
    assert first.isfinite().all()
    assert third.isfinite().all()
    assert place.backend.failed_rows() == [1]
    first, second, third = place.step([(sequence, 1) for sequence in sequences], num_logits=0)
    assert third.isnan().all()
    assert first.isfinite().all()
    assert second.isfinite().all()
    assert place.backend.failed_rows() == [2]


def test_replayed_steps_keep_their_tensors_and_give_the_results_of_plain_ones() -> None:
    spec = layer_spec((4, 2), (32, 32), window=20)
    plain, replayed = made(spec), made(spec)
    tables = [[3, 11, 0, 9], [7, 2], [1, 12, 4]]
    done, addresses = [40, 17, 1], set()
    generator = torch.Generator().manual_seed(0)
    for number in range(4):
        new = done if number == 0 else [1] * 3
        rows = [
            Row(key=i, token_ids=[0] * new[i], num_computed=0 if number == 0 else done[i], block_table=tables[i])
            for i in range(3)
        ]
        if number:
            done = [before + 1 for before in done]
        inputs = batch_inputs.build(rows, BLOCK_SIZE, CPU)
        plain.begin(inputs)
        if number == 0:
            replayed.begin(inputs)
        else:
            replayed.begin_static(inputs, 8)
            step = replayed.step
            tensors = (*step.parts, step.write_rows, replayed._failed_B)
            addresses.add(tuple(tensor.data_ptr() for tensor in tensors))
        query, key, value = (torch.randn(1, heads, sum(new), 32, generator=generator) for heads in (4, 2, 2))
        expected = plain.attend(0, query, key, value, None)
        assert torch.equal(replayed.attend(0, query, key, value, None), expected)
    assert len(addresses) == 1


@pytest.mark.parametrize("has_residual", [False, True])
@pytest.mark.parametrize("is_centred", [False, True])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_norms_are_those_of_the_reference(dtype: torch.dtype, is_centred: bool, has_residual: bool) -> None:
    torch.manual_seed(0)
    x, residual = (torch.randn(3, 2, 80).to(dtype) for _ in range(2))
    weight, bias = torch.rand(80) + 0.5, torch.randn(80) if is_centred else None
    given = residual if has_residual else None
    found = rows.norm(x, weight, bias, 1e-5, is_centred=is_centred, residual=given)
    wide = reference.layer_norm if is_centred else reference.rms_norm
    arguments = (x.double(), weight, bias, 1e-5) if is_centred else (x.double(), weight, 1e-5)
    expected = wide(*arguments) + (residual.double() if has_residual else 0)
    assert found.dtype == dtype
    assert worst_distance(found, expected) <= TOLERANCE[dtype]


# An exponential that is infinite makes the 0 that is meant.
@pytest.mark.filterwarnings("ignore:.*overflow encountered in exp:RuntimeWarning")
@pytest.mark.parametrize("activation", [None, *reference.ACTIVATIONS])
@pytest.mark.parametrize(("is_gated", "has_bias", "has_residual"), [(True, False, False), (False, True, True)])
def test_what_follows_a_product_is_that_of_the_reference(
    activation: str | None, is_gated: bool, has_bias: bool, has_residual: bool
) -> None:
    is_gated = is_gated and activation is not None
    torch.manual_seed(0)
    product = torch.randn(3, 160).half() * 3
    bias = torch.randn(160) if has_bias else None
    residual = torch.randn(3, 80 if is_gated else 160).half() if has_residual else None
    options = {"is_gated": is_gated, "residual": residual}
    expected = reference.finish(product, bias, activation, **options)
    for dtype in (torch.float32, torch.float16):
        found = rows.finish(product, bias, activation, **options, dtype=dtype)
        assert found.dtype == dtype
        assert worst_distance(found, expected.double()) <= TOLERANCE[dtype]


def test_the_trial_of_norms_and_activations_knows_right_from_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    assert rows_trial.problem(CPU) is None
    monkeypatch.setitem(reference.ACTIVATIONS, "gelu", torch.relu)
    assert str(rows_trial.problem(CPU)).startswith("their results are ")
