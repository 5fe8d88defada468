"""Tokens that attend to an encoder's results in blocks of their own, and scores with a bias by distance."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from server.config import KvDtype
from server.engine.attention.backend import AttentionBackend, SourceRow
from server.engine.attention.native import NativeAttention
from server.engine.attention.torch_native import TorchNativeAttention
from server.modules.attention import DistanceBias, LayerSpec
from server.native import kernels
from tests.engine.attention_driving import CPU, Scene, Told, dense_attention, layer_spec
from tests.native import variants

torch.set_num_threads(1)

NUM_BLOCKS, BLOCK_SIZE = 100, 32
MARGINS = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
INT8_MARGIN = 0.03

SHAPES = {
    "each its own": layer_spec((8, 8), (64, 64)),
    "groups of three": layer_spec((9, 3), (64, 64)),
    "one for twenty": layer_spec((20, 1), (80, 80)),
    "narrow values": layer_spec((4, 4), (192, 128)),
    "narrow keys": layer_spec((4, 1), (32, 96)),
}


@pytest.fixture(params=["torch", *kernels.VARIANTS, *kernels.FOR_TESTS])
def variant(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Torch alone, and the kernels of each instruction set that this processor has."""
    variants.use(request.param, monkeypatch)
    yield request.param
    kernels.set_num_threads(1)


@pytest.fixture
def native(variant: str) -> str:
    if variant == "torch":
        pytest.skip("no kernels")
    return variant


def backend(variant: str, spec: LayerSpec, dtype: torch.dtype, kv_dtype: KvDtype = "auto") -> AttentionBackend:
    if variant == "torch":
        return TorchNativeAttention([spec], NUM_BLOCKS, BLOCK_SIZE, dtype, CPU)
    return NativeAttention([spec], NUM_BLOCKS, BLOCK_SIZE, dtype, CPU, kv_dtype=kv_dtype)


def draw(num_tokens: int, heads: int, width: int, dtype: torch.dtype, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num_tokens, heads, width, generator=generator).to(dtype)


class Source:
    def __init__(self, spec: LayerSpec, length: int, first_block: int, dtype: torch.dtype) -> None:
        self.key = draw(length, spec.num_kv_heads, spec.key_dim, dtype, seed=length)
        self.value = draw(length, spec.num_kv_heads, spec.value_dim, dtype, seed=length + 1)
        # Blocks in no order.
        self.table = [first_block + i for i in range(-(-length // BLOCK_SIZE))][::-1]

    def row(self, num_tokens: int) -> SourceRow:
        return SourceRow(num_tokens, len(self.key), self.table)

    @property
    def kv(self) -> Tensor:
        return torch.cat((self.key.flatten(1), self.value.flatten(1)), dim=1)

    def expected(self, spec: LayerSpec, query: Tensor) -> Tensor:
        group = spec.num_heads // spec.num_kv_heads
        key, value = (x.double().repeat_interleave(group, dim=1) for x in (self.key, self.value))
        weights = (torch.einsum("qhd,khd->hqk", query.double(), key) * spec.scaling).softmax(-1)
        return torch.einsum("hqk,khd->qhd", weights, value)


def write(place: AttentionBackend, sources: list[Source]) -> None:
    place.begin_sources([source.row(len(source.key)) for source in sources])
    place.write_source(0, torch.cat([source.kv for source in sources]))


def attend(place: AttentionBackend, rows: list[tuple[Source, Tensor]]) -> list[Tensor]:
    """Each row's queries over its source."""
    spec = place.specs[0]
    place.begin_cross([source.row(len(query)) for source, query in rows])
    out_TX = place.attend_source(0, torch.cat([query.flatten(1) for _, query in rows]))
    return list(out_TX.unflatten(1, (spec.num_heads, spec.value_dim)).split([len(query) for _, query in rows]))


def assert_close(ours: Tensor, expected: Tensor, margin: float | None = None) -> None:
    assert ours.isfinite().all()
    allowed = MARGINS[ours.dtype] if margin is None else margin
    assert float((ours.double() - expected).abs().max()) < allowed * float(expected.abs().max())


LENGTHS = (1, 31, 32, 33, 130, 300)


def sources_of(spec: LayerSpec, dtype: torch.dtype) -> list[Source]:
    found, first = [], 0
    for length in LENGTHS:
        found.append(Source(spec, length, first, dtype))
        first += len(found[-1].table)
    return found


@pytest.mark.parametrize("dtype", MARGINS, ids=str)
@pytest.mark.parametrize("name", SHAPES)
def test_every_token_sees_all_of_its_source_and_nothing_else(variant: str, name: str, dtype: torch.dtype) -> None:
    spec = SHAPES[name]
    place = backend(variant, spec, dtype)
    sources = sources_of(spec, dtype)
    write(place, sources[:4])
    write(place, sources[4:])
    rows = [
        (source, draw(count, spec.num_heads, spec.key_dim, dtype, seed=90 + i))
        for i, (source, count) in enumerate(
            zip([*sources, sources[4], sources[4]], (1, 4, 2, 1, 40, 3, 1, 2), strict=True)
        )
    ]
    for (source, query), out in zip(rows, attend(place, rows), strict=True):
        assert_close(out, source.expected(spec, query))


@pytest.mark.parametrize("dtype", MARGINS, ids=str)
def test_an_int8_cache_holds_sources_too(native: str, dtype: torch.dtype) -> None:
    spec = SHAPES["groups of three"]
    place = backend(native, spec, dtype, "int8")
    sources = sources_of(spec, dtype)
    write(place, sources)
    rows = [(source, draw(3, spec.num_heads, spec.key_dim, dtype, seed=7)) for source in sources]
    for (source, query), out in zip(rows, attend(place, rows), strict=True):
        assert_close(out, source.expected(spec, query), INT8_MARGIN)


@pytest.mark.parametrize("kv_dtype", ["auto", "int8"])
@pytest.mark.parametrize("dtype", MARGINS, ids=str)
@pytest.mark.parametrize("name", SHAPES)
def test_a_token_has_the_same_bits_alone_and_among_others_of_its_source(
    native: str, name: str, dtype: torch.dtype, kv_dtype: KvDtype
) -> None:
    spec = SHAPES[name]
    place = backend(native, spec, dtype, kv_dtype)
    sources = sources_of(spec, dtype)
    write(place, sources)
    queries = draw(29, spec.num_heads, spec.key_dim, dtype, seed=3)
    for source in sources:
        [alone] = attend(place, [(source, queries)])
        singles = [(source, query[None]) for query in queries]
        assert torch.equal(torch.cat(attend(place, singles)), alone)
        mixed = [(sources[4], queries[:5]), (source, queries[:2]), (sources[5], queries), (source, queries[2:])]
        _, first, _, rest = attend(place, mixed)
        assert torch.equal(torch.cat((first, rest)), alone)
        kernels.set_num_threads(1)
        assert torch.equal(torch.cat([attend(place, [each])[0] for each in singles]), alone)
        kernels.set_num_threads(2)


def test_attending_to_a_source_writes_nothing(variant: str) -> None:
    spec = SHAPES["each its own"]
    place = backend(variant, spec, torch.float32)
    source = Source(spec, 40, 3, torch.float32)
    write(place, [source])
    query = draw(4, spec.num_heads, spec.key_dim, torch.float32, seed=1)
    [first] = attend(place, [(source, query)])
    attend(place, [(source, 5 * query)])
    assert torch.equal(attend(place, [(source, query)])[0], first)


def test_a_source_that_is_not_finite_is_named_and_harms_no_other(variant: str) -> None:
    spec = SHAPES["each its own"]
    place = backend(variant, spec, torch.float32)
    sources = [Source(spec, length, first, torch.float32) for length, first in ((40, 0), (33, 5), (70, 9))]
    sources[1].value[32, 2, 3] = float("nan")
    write(place, sources)
    assert place.failed_sources() == [1]
    query = draw(2, spec.num_heads, spec.key_dim, torch.float32, seed=1)
    for source in (sources[0], sources[2]):
        assert_close(attend(place, [(source, query)])[0], source.expected(spec, query))
    write(place, sources[:1])
    assert place.failed_sources() == []


def test_a_sequence_and_its_source_share_a_pool(variant: str) -> None:
    spec = layer_spec((8, 8), (64, 64))
    place = backend(variant, spec, torch.float32)
    scene = Scene(place, NUM_BLOCKS, BLOCK_SIZE, torch.float32)
    told = scene.sequence(70, seed=1)
    source = Source(spec, 64, 0, torch.float32)
    source.table = [scene.free.pop(), scene.free.pop()]
    write(place, [source])
    out = scene.run(told, (40, 1, 29))
    assert_close(out, scene.expected(told, 70))
    assert_close(attend(place, [(source, told.query[:5])])[0], source.expected(spec, told.query[:5]))


# Values by distance, from 40 tokens before the query on; a decoder never asks for those behind it.
NUM_BEFORE, NUM_BEHIND = 40, 17


def biased(heads: int = 6, width: int = 64, *, scaling: float = 1.0) -> LayerSpec:
    values = draw(heads, 1, NUM_BEFORE + 1 + NUM_BEHIND, torch.float32, seed=5)[:, 0] * 3
    bias = DistanceBias.of(values, NUM_BEFORE)
    return replace(layer_spec((heads, heads), (width, width)), scaling=scaling, bias=bias)


def expected_with_bias(spec: LayerSpec, told: Told, num_tokens: int) -> Tensor:
    places = torch.arange(num_tokens)
    distances = places - places[:, None]
    assert spec.bias is not None
    scores = torch.einsum("qhd,khd->hqk", told.query[:num_tokens].double(), told.key[:num_tokens].double())
    scores = scores * spec.scaling + spec.bias.at(distances).double()
    weights = scores.masked_fill(distances > 0, -torch.inf).softmax(-1)
    return torch.einsum("hqk,khd->qhd", weights, told.value[:num_tokens].double())


def test_a_bias_beyond_its_table_is_that_of_the_end() -> None:
    bias = DistanceBias.of(torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0]]), 3)
    distances = torch.tensor([-1000, -4, -3, -2, -1, 0, 1, 2, 1000])
    assert bias.at(distances).tolist() == [[1, 1, 1, 2, 3, 4, 5, 5, 5]]


@pytest.mark.parametrize("dtype", MARGINS, ids=str)
def test_scores_have_the_bias_of_the_distance(variant: str, dtype: torch.dtype) -> None:
    spec = biased(scaling=0.2)
    place = Scene(backend(variant, spec, dtype), NUM_BLOCKS, BLOCK_SIZE, dtype)
    told = place.sequence(400, seed=1)
    out = place.run(told, (1, 6, 1, 27, 65, 1, 1, 280, 17, 1))
    assert_close(out, expected_with_bias(spec, told, 400))
    # The bias matters: without it the result is another.
    plain = dense_attention(replace(spec, bias=None), told.query, told.key, told.value, None)
    assert float((out.double() - plain).abs().max()) > 0.1


@pytest.mark.parametrize("kv_dtype", ["auto", "int8"])
@pytest.mark.parametrize("dtype", MARGINS, ids=str)
def test_a_row_with_a_bias_has_the_same_bits_in_any_chunk_and_batch(
    native: str, dtype: torch.dtype, kv_dtype: KvDtype
) -> None:
    spec = biased()
    place = Scene(backend(native, spec, dtype, kv_dtype), NUM_BLOCKS, BLOCK_SIZE, dtype)
    told = place.sequence(300, seed=3)
    whole = place.run(told, [300])
    busy = Scene(backend(native, spec, dtype, kv_dtype), NUM_BLOCKS, BLOCK_SIZE, dtype)
    mates = [busy.sequence(400 * i, seed=i) for i in (1, 2)]
    told = busy.sequence(300, seed=3)
    parts = [busy.step([(mates[0], 3), (told, 200), (mates[1], 100)])[1], busy.step([(mates[1], 400), (told, 97)])[1]]
    parts += [busy.step([(mates[0], 1), (told, 1), (mates[1], 1)])[1] for _ in range(3)]
    assert torch.equal(whole, torch.cat(parts))
