"""The native kernel attends as attention in float64 does, in every shape and at every place of the cache."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from importlib import import_module

import pytest
import torch

from server.engine.attention.backend import AttentionBackend
from server.engine.attention.choose import bytes_per_block, choose_attention
from server.engine.attention.native import NativeAttention
from server.modules.attention import HeadNorm, LayerSpec, Rotary
from server.native import kernels
from tests.engine.attention_driving import CPU, Scene, layer_spec
from tests.native import variants

torch.set_num_threads(1)

NUM_BLOCKS = 100
BLOCK_SIZE = 32

# Of the largest value: float32's sums, and what bfloat16 loses in the weights and in the result.
MARGINS = {torch.float32: 1e-5, torch.bfloat16: 1e-2}

SHAPES = {
    "one head": layer_spec((1, 1), (16, 16)),
    "each its own": layer_spec((3, 3), (48, 48)),
    "groups of three": layer_spec((9, 3), (64, 64)),
    "one for seven": layer_spec((7, 1), (112, 112)),
    "one for twenty": layer_spec((20, 1), (80, 80)),
    "wide": layer_spec((4, 2), (256, 256)),
    "narrow values": layer_spec((4, 4), (192, 128)),
    "narrow keys": layer_spec((4, 1), (32, 96)),
    "window": layer_spec(window=40),
    "window of one": layer_spec(window=1),
    "window past a partition": layer_spec(window=300),
    "softcap": layer_spec(softcap=3.0),
    "sinks": layer_spec(has_sinks=True),
    "all concurrent": layer_spec((6, 2), (48, 32), window=70, softcap=5.0, has_sinks=True),
}


@pytest.fixture(params=[*kernels.VARIANTS, *kernels.FOR_TESTS], autouse=True)
def variant(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The kernels of each instruction set that this processor has."""
    name = str(request.param)
    if missing := variants.lacking(name):
        pytest.skip(f"this processor lacks {missing}")
    module = kernels.load(name)
    monkeypatch.setattr(kernels._State, "module", module)
    module.set_num_threads(2)
    yield name
    module.set_num_threads(1)


def scene(spec: LayerSpec, dtype: torch.dtype = torch.bfloat16) -> Scene:
    return Scene(NativeAttention([spec], NUM_BLOCKS, BLOCK_SIZE, dtype, CPU), NUM_BLOCKS, BLOCK_SIZE, dtype)


def assert_close(ours: torch.Tensor, expected: torch.Tensor) -> None:
    assert ours.isfinite().all()
    assert float((ours.double() - expected).abs().max()) < MARGINS[ours.dtype] * float(expected.abs().max())


@cache
def expected_of_700(name: str, dtype: torch.dtype) -> torch.Tensor:
    """The same for the kernels of every instruction set."""
    place = scene(SHAPES[name], dtype)
    return place.expected(place.sequence(700, seed=1), 700)


@pytest.mark.parametrize("dtype", MARGINS, ids=str)
@pytest.mark.parametrize("name", SHAPES)
def test_chunks_of_any_length_attend_over_all_before_them(name: str, dtype: torch.dtype) -> None:
    place = scene(SHAPES[name], dtype)
    told = place.sequence(700, seed=1)
    assert_close(place.run(told, (1, 6, 1, 27, 221, 1, 1, 320, 17, 1, 104)), expected_of_700(name, dtype))


@pytest.mark.parametrize("dtype", MARGINS, ids=str)
@pytest.mark.parametrize("name", ["groups of three", "all concurrent"])
def test_a_batch_of_all_kinds_of_rows_attends_each_in_its_own_blocks(name: str, dtype: torch.dtype) -> None:
    place = scene(SHAPES[name], dtype)
    told = [place.sequence(length, seed=length) for length in (3, 40, 300, 900, 513)]
    outs: list[list[torch.Tensor]] = [[] for _ in told]
    for chunks in ((2, 40, 256, 1, 512), (1, 0, 44, 899, 1)):
        chosen = [i for i, chunk in enumerate(chunks) if chunk]
        for i, out in zip(chosen, place.step([(told[i], chunks[i]) for i in chosen]), strict=True):
            outs[i].append(out)
    for seq, out in zip(told, outs, strict=True):
        assert_close(torch.cat(out), place.expected(seq, len(seq)))


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("dtype", MARGINS, ids=str)
def test_a_row_has_the_same_bits_in_any_chunk_batch_and_number_of_threads(
    name: str, dtype: torch.dtype, variant: str
) -> None:
    length = 600
    place = scene(SHAPES[name], dtype)
    told = place.sequence(length, seed=3)
    whole = place.run(told, [length])

    again = scene(SHAPES[name], dtype)
    told = again.sequence(length, seed=3)
    assert torch.equal(whole, again.run(told, (5, 251, 1, 1, 1, 30, 300, 10, 1)))

    import_module(f"server.native.{variant}").set_num_threads(1)
    busy = scene(SHAPES[name], dtype)
    mates = [busy.sequence(400 * i, seed=i) for i in range(1, 4)]
    told = busy.sequence(length, seed=3)
    parts = [busy.step([(mates[0], 3), (told, 200), (mates[1], 100)])[1]]
    parts += [busy.step([(mates[2], 1000), (told, 397)])[1]]
    parts += [busy.step([(mates[0], 1), (mates[1], 1), (told, 1), (mates[2], 1)])[2] for _ in range(3)]
    assert torch.equal(whole, torch.cat(parts))


def test_what_lies_behind_the_last_token_of_a_block_changes_no_bit() -> None:
    spec = layer_spec((9, 3), (64, 64))
    outs = []
    for spread in (0.0, 1e30):
        place = scene(spec)
        told = place.sequence(33, seed=4)
        before = place.sequence(64, seed=5)
        before.key, before.value = before.key * spread, before.value * spread
        before.table = told.table
        place.run(before, [64])
        outs.append(place.run(told, (30, 1, 1, 1)))
    assert torch.equal(*outs)


def test_large_scores_give_the_value_of_the_best_key() -> None:
    place = scene(layer_spec((1, 1), (16, 16)), torch.float32)
    told = place.sequence(300, seed=6)
    told.query *= 1e4
    assert_close(place.run(told, [299, 1]), place.expected(told, 300))


def test_copied_blocks_serve_like_their_source_and_cleared_ones_are_zero() -> None:
    place = scene(layer_spec())
    told = place.sequence(100, seed=7)
    copy = place.sequence(100, seed=7)
    expected = place.run(told, [90, 10])
    told.num_computed = copy.num_computed = 90
    place.backend.copy_blocks(list(zip(told.table, copy.table, strict=True)))
    place.backend.clear_blocks(told.table)
    assert torch.equal(place.run(copy, [10]), expected[90:])
    # Keys of zero are all alike, and values of zero add nothing: what is left are the ten new tokens.
    cleared = place.run(told, [10])
    told.key[:90] = told.value[:90] = 0
    assert_close(cleared, place.expected(told, 100)[90:])


@pytest.mark.parametrize("num_logits", [0, 1])
@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", ["key", "value"])
def test_a_row_whose_keys_or_values_are_not_finite_is_named_and_harms_no_other(
    where: str, poison: float, num_logits: int
) -> None:
    place = scene(layer_spec(window=5))
    good, bad = place.sequence(64, seed=8), place.sequence(64, seed=9)
    expected = place.expected(good, 64)
    getattr(bad, where)[3, 1, 7] = poison
    first = place.step([(good, 20), (bad, 20)], num_logits=num_logits)
    assert place.backend.failed_rows() == [1]
    assert_close(first[0], expected[:20])
    assert first[1].isnan().all()
    # Whoever gets the blocks next finds nothing in them that spreads.
    heir = place.sequence(64, seed=10)
    heir.table = bad.table
    second = place.step([(good, 44), (heir, 64)], num_logits=num_logits)
    assert place.backend.failed_rows() == []
    assert_close(second[0], expected[20:])
    assert_close(second[1], place.expected(heir, 64))


def test_a_query_that_is_no_number_shows_in_its_own_result() -> None:
    place = scene(layer_spec())
    told = place.sequence(300, seed=11)
    told.query[290] = float("nan")
    out = place.run(told, [300])
    assert out[290].isnan().all()
    assert out[:290].isfinite().all()
    assert out[291:].isfinite().all()


@pytest.mark.parametrize("dtype", MARGINS, ids=str)
@pytest.mark.parametrize("rotated", [0, 5, 16, 24])
@pytest.mark.parametrize("is_normed", [False, True])
def test_packed_products_are_normed_and_rotated_as_by_torch(dtype: torch.dtype, rotated: int, is_normed: bool) -> None:
    spec = layer_spec((6, 2), (48, 32))
    place, other = scene(spec, dtype), scene(spec, dtype)
    tables, other_tables = ([s.sequence(length, seed=1) for length in (70, 33)] for s in (place, other))
    generator = torch.Generator().manual_seed(12)
    angles = torch.rand(100, max(rotated, 1), generator=generator) * 6.3
    rotary = Rotary(cos_PR=angles.cos() * 1.2, sin_PR=angles.sin() * 1.2) if rotated else None
    weights = torch.rand(2, 48, generator=generator) + 0.5
    norm = HeadNorm(query_weight_D=weights[0], key_weight_D=weights[1], eps=1e-5) if is_normed else None
    for counts in ((60, 2), (1, 1), (9, 30)):
        qkv = torch.randn(sum(counts), 8 * 48 + 2 * 32, generator=generator).to(dtype)
        positions = place.begin(list(zip(tables, counts, strict=True))).position_ids_T
        other.begin(list(zip(other_tables, counts, strict=True)))
        ours = place.backend.attend_packed(0, qkv, positions, rotary=rotary, head_norm=norm)
        plain = AttentionBackend.attend_packed(other.backend, 0, qkv, positions, rotary=rotary, head_norm=norm)
        assert_close(ours, plain.double())


def test_layers_that_the_kernel_was_not_made_for_are_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    def chosen(spec: LayerSpec, block_size: int = 32, dtype: torch.dtype = torch.float32) -> str:
        return choose_attention([layer_spec(), spec], 4, block_size, dtype, CPU).name

    assert chosen(layer_spec((4, 2), (256, 16))) == "native"
    assert chosen(layer_spec((4, 2), (24, 32))) == "torch"
    assert chosen(layer_spec((4, 2), (32, 272))) == "torch"
    assert chosen(layer_spec(), block_size=16) == "torch"
    assert chosen(layer_spec(), dtype=torch.float16) == "torch"
    monkeypatch.setattr(kernels._State, "module", None)
    assert chosen(layer_spec()) == "torch"


@pytest.mark.parametrize("block_size", [16, 32])
@pytest.mark.parametrize("dims", [(32, 32), (192, 128), (32, 96)], ids=str)
def test_a_cache_has_the_bytes_that_its_blocks_were_counted_by(dims: tuple[int, int], block_size: int) -> None:
    """Or a worker that replaces another, and is given its bytes, would have fewer blocks and serve less."""
    specs = [layer_spec(), layer_spec((4, 2), dims)]
    cache = choose_attention(specs, 9, block_size, torch.bfloat16, CPU)
    assert cache.kv_cache_bytes == 9 * bytes_per_block(specs, block_size, torch.bfloat16, CPU)
