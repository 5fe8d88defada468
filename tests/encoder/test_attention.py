"""Attention of texts end to end: as in float64, and for each text what it gets alone."""

from __future__ import annotations

import math
import random

import pytest
import torch
from torch import Tensor

from server.modules.attention import DistanceBias
from server.modules.text_attention import attend
from server.modules.texts import Texts
from server.native import kernels
from tests.encoder.random_texts import random_texts, states
from tests.fuzz.scale import SCALE
from tests.native import variants

torch.set_num_threads(1)

# Of the largest value: float32's sums, and what bfloat16 loses in the weights and in the result.
MARGINS = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
LENGTHS = (3, 200, 1, 33, 64, 150, 31)
NUM_TRIALS = 50 * SCALE

# Heads of queries, of keys, and their width.
SHAPES = {
    "one head": (1, 1, 16),
    "each its own": (4, 4, 32),
    "odd sixteens": (3, 3, 48),
    "groups of three": (6, 2, 80),
    "one for twenty": (20, 1, 64),
    "wide": (2, 2, 256),
}


@pytest.fixture(params=variants.HERE, autouse=True)
def variant(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    variants.use(request.param, monkeypatch)


def dense(q_THD: Tensor, k_THD: Tensor, v_THD: Tensor, window: int | None, bias: DistanceBias | None = None) -> Tensor:
    group = q_THD.shape[1] // k_THD.shape[1]
    k_THD, v_THD = (x.double().repeat_interleave(group, dim=1) for x in (k_THD, v_THD))
    scores = torch.einsum("qhd,khd->hqk", q_THD.double(), k_THD) * q_THD.shape[-1] ** -0.5
    places = torch.arange(len(k_THD))
    if bias is not None:
        scores = scores + bias.at(places - places[:, None]).double()
    if window is not None:
        scores = scores.masked_fill((places[:, None] - places).abs() >= window, -math.inf)
    return torch.einsum("hqk,khd->qhd", scores.softmax(-1), v_THD)


@pytest.mark.parametrize("dtype", MARGINS, ids=str)
@pytest.mark.parametrize("window", [None, 1, 9, 100])
@pytest.mark.parametrize("name", SHAPES)
def test_each_text_attends_to_itself(name: str, window: int | None, dtype: torch.dtype) -> None:
    texts = Texts(LENGTHS)
    q, k, v = states(SHAPES[name], sum(LENGTHS), dtype, seed=1)
    ours = attend(q, k, v, texts, scaling=q.shape[-1] ** -0.5, window=window)
    for begin, end in zip(texts.starts, texts.starts[1:], strict=False):
        expected = dense(q[begin:end], k[begin:end], v[begin:end], window)
        difference = (ours[begin:end].double() - expected).abs().max()
        assert float(difference) < MARGINS[dtype] * float(expected.abs().max())


def bias_of(num_heads: int) -> DistanceBias:
    """Of distances from -40 to 25: most texts are longer."""
    generator = torch.Generator().manual_seed(9)
    return DistanceBias.of(3 * torch.randn(num_heads, 66, generator=generator), 40)


@pytest.mark.parametrize("kind", ["torch", "kernel"])
@pytest.mark.parametrize("dtype", MARGINS, ids=str)
@pytest.mark.parametrize("name", SHAPES)
def test_a_bias_is_added_by_the_distance_in_either_direction(
    name: str, dtype: torch.dtype, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind == "torch":
        variants.use("torch", monkeypatch)
    texts = Texts(LENGTHS)
    q, k, v = states(SHAPES[name], sum(LENGTHS), dtype, seed=1)
    bias = bias_of(q.shape[1])
    ours = attend(q, k, v, texts, scaling=q.shape[-1] ** -0.5, bias=bias)
    parts = [each.split(LENGTHS) for each in (q, k, v, ours)]
    for q_one, k_one, v_one, ours_one in zip(*parts, strict=True):
        expected = dense(q_one, k_one, v_one, None, bias)
        assert float((ours_one.double() - expected).abs().max()) < MARGINS[dtype] * float(expected.abs().max())
        if kind == "kernel":
            alone = attend(q_one, k_one, v_one, Texts([len(q_one)]), scaling=q.shape[-1] ** -0.5, bias=bias)
            assert torch.equal(alone, ours_one)


@pytest.mark.parametrize("dtype", MARGINS, ids=str)
def test_a_text_has_the_same_bits_alone_and_in_any_batch(dtype: torch.dtype) -> None:
    for trial in range(NUM_TRIALS):
        drawn, chance = random_texts(trial, dtype, 300), random.Random(trial)
        kernels.set_num_threads(chance.randint(1, 3))
        together = drawn.together()
        kernels.set_num_threads(chance.randint(1, 3))
        for ours, alone in zip(together, drawn.alone(), strict=True):
            assert torch.equal(ours, alone), (trial, drawn.texts.lengths)


@pytest.mark.parametrize("dtype", MARGINS, ids=str)
@pytest.mark.parametrize("window", [None, 40])
@pytest.mark.parametrize("every", [1, 2], ids=["all texts", "half of the texts"])
def test_first_tokens_alone_get_the_same_bits_as_among_all(every: int, window: int | None, dtype: torch.dtype) -> None:
    texts = Texts(LENGTHS, first_only=[i % every == 0 for i in range(len(LENGTHS))])
    q, k, v = states((4, 2, 112), sum(LENGTHS), dtype, seed=2)
    among_all = attend(q, k, v, texts, scaling=0.2, window=window)[texts.wanted_places]
    first = attend(q[texts.wanted_places], k, v, texts, scaling=0.2, window=window, only_wanted=True)
    assert torch.equal(first, among_all)


@pytest.mark.parametrize("dtype", MARGINS, ids=str)
@pytest.mark.parametrize("place", [0, 1, 2])
def test_numbers_that_are_not_finite_stay_in_their_text(place: int, dtype: torch.dtype) -> None:
    texts = Texts(LENGTHS)
    given = states((2, 2, 48), sum(LENGTHS), dtype, seed=3)
    expected = attend(*given, texts, scaling=0.2)
    given[place][210:230] = math.nan  # in the fourth text
    ours = attend(*given, texts, scaling=0.2)
    begin, end = texts.starts[3:5]
    assert not ours[begin:end].isfinite().all()
    assert torch.equal(ours[:begin], expected[:begin])
    assert torch.equal(ours[end:], expected[end:])
