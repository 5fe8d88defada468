"""Products of which some rows have adapters: every set of kernels, every kind of weight, against torch in float32."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from server.native.adapted import AdaptedRows, Deltas, Runs, adapting
from server.native.deltas import Change, Delta, rank_panels
from server.native.linear import Linear
from server.native.reference import ACTIVATIONS
from tests.native import variants

torch.set_num_threads(1)

WIDTH, OUTPUTS, RANK = 64, 100, 5
RUNS = ((1, 2, 0), (3, 9, 1), (15, 2, 2), (17, 1, 0), (18, 3, 3))
"""Start, number of rows, and adapter; the rows between have none."""
NUM_ROWS = 25
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 0.02}


@pytest.fixture(params=["torch", *variants.HERE], autouse=True)
def _kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    variants.use(request.param, monkeypatch)


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def changes(num_rows: int) -> list[Change]:
    a_RK, b_NR = random(RANK, WIDTH, seed=1) / 8, random(num_rows, RANK, seed=2) / 2
    scale_N, added_N, in_K = random(num_rows, seed=3) + 1, random(num_rows, seed=4), random(WIDTH, seed=5)
    return [
        Change(a_RK=a_RK, b_NR=b_NR),
        Change(a_RK=a_RK.flip(0), b_NR=-b_NR, scale_N=scale_N, added_N=added_N),
        Change(in_scale_K=in_K, scale_N=scale_N),
        Change(added_N=added_N),
    ]


def expected(linear: Linear, x_MK: Tensor, residual: Tensor, *, activation: str | None, is_gated: bool) -> Tensor:
    """In float32, from the weight as it is held."""
    weight_NK, bias_N = linear.dense_weight().float(), linear.bias
    assert bias_N is not None
    found = []
    owner = {start + i: number for start, count, number in RUNS for i in range(count)}
    made = changes(linear.num_rows)
    for row, x_K in enumerate(x_MK.float()):
        change = made[owner[row]] if row in owner else Change()
        scaled_K = x_K if change.in_scale_K is None else x_K * change.in_scale_K
        y_N = weight_NK @ scaled_K
        y_N = y_N if change.scale_N is None else y_N * change.scale_N
        if change.a_RK is not None and change.b_NR is not None:
            y_N = y_N + change.b_NR @ (change.a_RK @ x_K)
        y_N = y_N + bias_N.float() + (0 if change.added_N is None else change.added_N)
        if is_gated:
            gate, up = y_N.chunk(2)
            y_N = up * ACTIVATIONS[activation or ""](gate)
        elif activation is not None:
            y_N = ACTIVATIONS[activation](y_N)
        found.append(y_N)
    return torch.stack(found) + residual.float()


@pytest.mark.parametrize(("activation", "is_gated"), [(None, False), ("gelu", False), ("silu", True)])
@pytest.mark.parametrize(
    ("dtype", "quantize"), [(torch.float32, "none"), (torch.bfloat16, "none"), (torch.bfloat16, "int8"),
                            (torch.float32, "int4")],
)  # fmt: skip
def test_each_row_gets_what_its_adapter_changes_and_nothing_of_others(
    dtype: torch.dtype, quantize: Any, activation: str | None, is_gated: bool
) -> None:
    num_rows = OUTPUTS * (1 + is_gated)
    weight_NK, bias_N = (random(num_rows, WIDTH, seed=6) / 8).to(dtype), random(num_rows, seed=7).to(dtype)
    try:
        linear = Linear(weight_NK, bias_N, activation=activation, is_gated=is_gated, quantize=quantize)
    except ValueError:
        pytest.skip("no kernels for quantised weights")
    linear.number = 0
    deltas = [Deltas({0: Delta(linear, change)}, 1) for change in changes(num_rows)]
    x_MK, residual = random(NUM_ROWS, WIDTH, seed=8).to(dtype), random(NUM_ROWS, OUTPUTS, seed=9).to(dtype)
    runs = Runs([AdaptedRows(start, count, deltas[number]) for start, count, number in RUNS])
    with adapting({NUM_ROWS: runs}):
        ours = linear(x_MK, residual, out_float=True)
    theirs = expected(linear, x_MK, residual, activation=activation, is_gated=is_gated)
    tolerance = TOLERANCE[dtype] if quantize != "int8" else 0.03
    assert float((ours - theirs).abs().max()) <= tolerance * float(theirs.abs().max())
    without = linear(x_MK, residual, out_float=True)
    if not linear.is_row_invariant:
        return
    for row in range(NUM_ROWS):
        own = next(((start, count, number) for start, count, number in RUNS if start <= row < start + count), None)
        by_count = {1: Runs([] if own is None else [AdaptedRows(0, 1, deltas[own[2]])])}
        with adapting(by_count):
            alone = linear(x_MK[row : row + 1], residual[row : row + 1], out_float=True)
        assert torch.equal(alone[0], ours[row])
        assert own is not None or torch.equal(without[row], ours[row])


@pytest.mark.parametrize("num_rows", [1, 3, 9, 40])
@pytest.mark.parametrize(
    ("dtype", "quantize"), [(torch.float32, "none"), (torch.bfloat16, "none"), (torch.bfloat16, "int8")]
)
def test_what_is_added_is_bit_by_bit_what_its_two_products_give(
    request: pytest.FixtureRequest, dtype: torch.dtype, quantize: Any, num_rows: int
) -> None:
    variant = request.node.callspec.params["_kernels"]
    if variant in ("torch", "_amx", "_tiles"):
        pytest.skip("whole products are summed in another order there")
    # Two layers in one product: the rows of each meet their own half of A x, and zeros.
    b_NR = torch.zeros(OUTPUTS, 32)
    b_NR[:70, :16], b_NR[70:, 16:] = random(70, 16, seed=2), random(30, 16, seed=3)
    change = Change(a_RK=random(32, WIDTH, seed=1) / 8, b_NR=b_NR)
    linear = Linear((random(OUTPUTS, WIDTH, seed=6) / 8).to(dtype), quantize=quantize)
    linear.number = 0
    x_MK = random(num_rows, WIDTH, seed=8).to(dtype)
    runs = Runs([AdaptedRows(0, num_rows, Deltas({0: Delta(linear, change)}, 1))])
    with adapting({num_rows: runs}):
        ours = linear(x_MK, out_float=True)
    a, b = Linear(change.a_RK.to(dtype)), Linear(change.b_NR.to(dtype))
    assert torch.equal(ours, linear(x_MK, out_float=True) + b(a(x_MK), out_float=True))


def test_holds_no_words_of_b_that_are_zero() -> None:
    b_PR = torch.zeros(144, 32, dtype=torch.bfloat16)
    b_PR[:48, :16], b_PR[50, 18], b_PR[90, 25] = 1, 2, 3
    words, parts = rank_panels(b_PR)
    assert parts[:2].tolist() == [[0, 0, 8], [8 * 48, 9, 4]]
    assert parts[2, 2] == 0
    assert words.shape == (12, 48)


def test_rejects_a_number_of_rows_that_the_step_does_not_have() -> None:
    linear = Linear(random(OUTPUTS, WIDTH, seed=6))
    linear.number = 0
    with adapting({3: Runs([])}), pytest.raises(RuntimeError, match="has 2 rows, and the step"):
        linear(random(2, WIDTH, seed=8))
