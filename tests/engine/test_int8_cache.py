"""A KV cache in int8: what a token stores depends on that token alone, and attention reads it as float64 would."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch

from server.engine.attention.choose import bytes_per_block
from server.engine.attention.native import NativeAttention
from server.modules.attention import LayerSpec
from server.native import kernels, reference
from tests.engine.attention_driving import CPU, Scene, Told, dense_attention, layer_spec
from tests.engine.test_native_attention import BLOCK_SIZE, NUM_BLOCKS, SHAPES, variant

__all__ = ["variant"]

torch.set_num_threads(1)

# Of the largest value: queries and weights in 16 bits, and what bfloat16 loses in the result.
MARGINS = {torch.float32: 3e-4, torch.bfloat16: 4e-3}


def scene(spec: LayerSpec, dtype: torch.dtype = torch.bfloat16) -> Scene:
    backend = NativeAttention([spec], NUM_BLOCKS, BLOCK_SIZE, dtype, CPU, kv_dtype="int8")
    return Scene(backend, NUM_BLOCKS, BLOCK_SIZE, dtype)


def stored(x_THD: torch.Tensor) -> torch.Tensor:
    """As the cache holds it."""
    numbers, scales = reference.int8_bytes(x_THD)
    return numbers.double() * scales.double()[..., None]


def expected(place: Scene, told: Told) -> torch.Tensor:
    return dense_attention(place.spec, told.query, stored(told.key), stored(told.value), place.sinks)


def assert_close(ours: torch.Tensor, right: torch.Tensor) -> None:
    assert ours.isfinite().all()
    assert float((ours.double() - right).abs().max()) < MARGINS[ours.dtype] * float(right.abs().max())


@cache
def expected_of_700(name: str, dtype: torch.dtype) -> torch.Tensor:
    """The same for the kernels of every instruction set."""
    place = scene(SHAPES[name], dtype)
    return expected(place, place.sequence(700, seed=1))


@pytest.mark.parametrize("dtype", MARGINS, ids=str)
@pytest.mark.parametrize("name", SHAPES)
def test_attends_to_the_rounded_keys_and_values(name: str, dtype: torch.dtype) -> None:
    place = scene(SHAPES[name], dtype)
    told = place.sequence(700, seed=1)
    assert_close(place.run(told, (1, 6, 1, 27, 221, 1, 1, 320, 17, 1, 104)), expected_of_700(name, dtype))


def test_a_block_holds_the_numbers_and_scales_of_the_reference() -> None:
    spec = layer_spec((2, 2), (48, 32))
    place = scene(spec, torch.float32)
    told = place.sequence(BLOCK_SIZE, seed=2)
    told.key[3] = told.value[5] = 0
    told.key[4], told.value[6] = 1e-35, 1e30
    place.run(told, [7, 25])
    pool_NW = place.backend._pools_NW[0]  # type: ignore[attr-defined]
    for head, block_W in enumerate(pool_NW[told.table[0]].view(2, -1)):
        keys, values, scales = block_W.split([48 * 32, 32 * 32, 4 * 32])
        key_scales, value_scales = (
            (scales.numpy().view(np.uint16).astype(np.uint32) << 16).view(np.float32).reshape(2, 32)
        )
        right_keys, right_key_scales = reference.int8_bytes(told.key[:, head])
        right_values, right_value_scales = reference.int8_bytes(told.value[:, head])
        assert torch.equal(keys.view(12, 32, 4).transpose(0, 1).reshape(32, 48).int() - 128, right_keys.int())
        assert torch.equal(
            values.view(8, 32, 4).transpose(1, 2).reshape(32, 32).view(torch.int8).int(), right_values.int()
        )
        assert torch.equal(torch.from_numpy(key_scales), right_key_scales)
        assert torch.equal(torch.from_numpy(value_scales), right_value_scales)


@pytest.mark.parametrize("dtype", MARGINS, ids=str)
@pytest.mark.parametrize(
    "name", ["one head", "one for twenty", "narrow keys", "window past a partition", "all concurrent"]
)
def test_a_row_has_the_same_bits_in_any_chunk_batch_and_number_of_threads(name: str, dtype: torch.dtype) -> None:
    length = 600
    place = scene(SHAPES[name], dtype)
    told = place.sequence(length, seed=3)
    whole = place.run(told, [length])

    again = scene(SHAPES[name], dtype)
    told = again.sequence(length, seed=3)
    assert torch.equal(whole, again.run(told, (5, 251, 1, 1, 1, 30, 300, 10, 1)))

    kernels.set_num_threads(1)
    busy = scene(SHAPES[name], dtype)
    mates = [busy.sequence(400 * i, seed=i) for i in range(1, 4)]
    told = busy.sequence(length, seed=3)
    parts = [busy.step([(mates[0], 3), (told, 200), (mates[1], 100)])[1]]
    parts += [busy.step([(mates[2], 1000), (told, 397)])[1]]
    parts += [busy.step([(mates[0], 1), (mates[1], 1), (told, 1), (mates[2], 1)])[2] for _ in range(3)]
    assert torch.equal(whole, torch.cat(parts))


def test_what_lies_behind_the_last_token_of_a_block_changes_no_bit() -> None:
    outs = []
    for spread in (0.0, 1e30):
        place = scene(layer_spec((9, 3), (64, 64)))
        told = place.sequence(33, seed=4)
        before = place.sequence(64, seed=5)
        before.key, before.value = before.key * spread, before.value * spread
        before.table = told.table
        place.run(before, [64])
        outs.append(place.run(told, (30, 1, 1, 1)))
    assert torch.equal(*outs)


def test_a_token_that_is_rewound_leaves_nothing_behind() -> None:
    place, other = scene(layer_spec()), scene(layer_spec())
    told, right = place.sequence(100, seed=6), other.sequence(100, seed=6)
    place.run(told, [70])
    # What a wrong guess computed is overwritten: larger numbers do not change their neighbours' scales.
    wrong = place.sequence(100, seed=7)
    wrong.key, wrong.value, wrong.table, wrong.num_computed = 100 * wrong.key, 100 * wrong.value, told.table, 70
    place.run(wrong, [8])
    assert torch.equal(place.run(told, [5, 25]), other.run(right, [100])[70:])


def test_copied_blocks_serve_like_their_source_and_cleared_ones_are_zero() -> None:
    place = scene(layer_spec())
    told = place.sequence(100, seed=7)
    copy = place.sequence(100, seed=7)
    right = place.run(told, [90, 10])
    told.num_computed = copy.num_computed = 90
    place.backend.copy_blocks(list(zip(told.table, copy.table, strict=True)))
    place.backend.clear_blocks(told.table)
    assert torch.equal(place.run(copy, [10]), right[90:])
    cleared = place.run(told, [10])
    told.key[:90] = told.value[:90] = 0
    assert_close(cleared, expected(place, told)[90:])


@pytest.mark.parametrize("num_logits", [0, 1])
@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", ["key", "value"])
def test_a_row_whose_keys_or_values_are_not_finite_is_named_and_harms_no_other(
    where: str, poison: float, num_logits: int
) -> None:
    place = scene(layer_spec(window=5))
    good, bad = place.sequence(64, seed=8), place.sequence(64, seed=9)
    right = expected(place, good)
    getattr(bad, where)[3, 1, 7] = poison
    first = place.step([(good, 20), (bad, 20)], num_logits=num_logits)
    assert place.backend.failed_rows() == [1]
    assert_close(first[0], right[:20])
    assert first[1].isnan().all()
    heir = place.sequence(64, seed=10)
    heir.table = bad.table
    second = place.step([(good, 44), (heir, 64)], num_logits=num_logits)
    assert place.backend.failed_rows() == []
    assert_close(second[0], right[20:])
    assert_close(second[1], expected(place, heir))


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_query_that_is_no_number_shows_in_its_own_result(poison: float) -> None:
    place = scene(layer_spec())
    told = place.sequence(300, seed=11)
    told.query[290, 2, 5] = poison
    out = place.run(told, [300])
    assert out[290, 2].isnan().all()
    out[290, 2] = 0
    assert out.isfinite().all()


@pytest.mark.parametrize(("dims", "most"), [((64, 64), 0.52), ((128, 128), 0.51), ((192, 128), 0.51)], ids=str)
def test_blocks_take_half_the_memory(dims: tuple[int, int], most: float) -> None:
    specs = [layer_spec((4, 2), dims), layer_spec((4, 2), dims)]
    sizes = (specs, BLOCK_SIZE, torch.bfloat16, CPU)
    whole, half = bytes_per_block(*sizes), bytes_per_block(*sizes, kv_dtype="int8")
    assert 0.5 < half / whole < most
    cache = NativeAttention(specs, 9, BLOCK_SIZE, torch.bfloat16, CPU, kv_dtype="int8")
    assert cache.kv_cache_bytes == 9 * half
