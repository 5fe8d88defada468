"""Our products equal torch's, with all that follows them, and no row feels another."""

from __future__ import annotations

import psutil
import pytest
import torch

from server.native import kernels, reference
from server.native.linear import Linear
from tests.native import variants

torch.set_num_threads(1)

TOLERANCE = {(torch.float32, "none"): 1e-5, (torch.bfloat16, "none"): 1e-2,
             (torch.float32, "int8"): 3e-2, (torch.bfloat16, "int8"): 3e-2,
             (torch.float32, "int4"): 1e-5, (torch.bfloat16, "int4"): 1e-2}  # fmt: skip
"""As a part of the largest output. In int8 the inputs are rounded too; int4 is beside its own rounded weight."""


@pytest.fixture(params=variants.HERE, autouse=True)
def variant(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    variants.use(request.param, monkeypatch)
    if not kernels.has("linear"):
        pytest.skip("it has no products")
    return kernels.name()


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def beside(linear: Linear, weight: torch.Tensor, quantize: str) -> torch.Tensor:
    return linear.dense_weight() if quantize == "int4" else weight


@pytest.mark.parametrize(("dtype", "quantize"), TOLERANCE)
@pytest.mark.parametrize(("num_rows", "width"), [(48, 64), (100, 96), (1, 32), (49, 576), (250, 1536)])
@pytest.mark.parametrize("activation", [None, "silu", "gelu", "gelu_tanh", "relu"])
def test_a_product_and_what_follows_it_equal_torch(
    dtype: torch.dtype, quantize: str, num_rows: int, width: int, activation: str | None
) -> None:
    weight, bias = numbers(num_rows, width).to(dtype) / width**0.5, numbers(num_rows, seed=1).to(dtype)
    linear = Linear(weight, bias, activation=activation, quantize=quantize)
    for rows in (1, 2, 7, 8, 9, 17, 70):
        x, residual = numbers(rows, width, seed=2).to(dtype), numbers(rows, num_rows, seed=3).to(dtype)
        product = x.float() @ beside(linear, weight, quantize).float().T
        expected = reference.finish(product, bias.float(), activation, is_gated=False, residual=residual)
        for out_float in (False, True):
            ours = linear(x, residual, out_float=out_float)
            assert ours.dtype is (torch.float32 if out_float else dtype)
            worst = (ours.float() - expected).abs().max() / expected.abs().max()
            assert worst < TOLERANCE[dtype, quantize], (rows, out_float)


@pytest.mark.parametrize(("dtype", "quantize"), TOLERANCE)
@pytest.mark.parametrize("half", [1, 48, 50, 150])
def test_a_gate_multiplies_its_partner(dtype: torch.dtype, quantize: str, half: int) -> None:
    weight = numbers(2 * half, 64).to(dtype) / 8
    linear = Linear(weight, numbers(2 * half, seed=1), activation="silu", is_gated=True, quantize=quantize)
    x = numbers(19, 64, seed=2).to(dtype)
    product = x.float() @ beside(linear, weight, quantize).float().T
    expected = reference.finish(product, numbers(2 * half, seed=1), "silu", is_gated=True, residual=None)
    ours = linear(x)
    assert ours.shape == (19, half) and linear.out_features == half
    assert (ours.float() - expected).abs().max() / expected.abs().max() < TOLERANCE[dtype, quantize]


@pytest.mark.parametrize(("dtype", "quantize"), TOLERANCE)
@pytest.mark.parametrize("is_gated", [False, True])
@pytest.mark.parametrize("has_more", [False, True], ids=["alone", "with bias and residual"])
def test_a_row_does_not_depend_on_other_rows_or_threads(
    dtype: torch.dtype, quantize: str, is_gated: bool, has_more: bool
) -> None:
    weight, bias = numbers(200, 1504).to(dtype), numbers(200, seed=2) if has_more else None
    linear = Linear(weight, bias, activation="silu" if is_gated else None, is_gated=is_gated, quantize=quantize)
    x = numbers(300, 1504, seed=1).to(dtype)
    residual = numbers(300, linear.out_features, seed=3).to(dtype) if has_more else None
    together = linear(x, residual)
    for num_threads in (1, 2, 3):
        kernels.set_num_threads(num_threads)
        for start, stop in ((0, 1), (5, 7), (0, 8), (3, 12), (290, 300), (10, 290)):
            part = linear(x[start:stop], None if residual is None else residual[start:stop])
            assert torch.equal(part, together[start:stop])


def test_a_thread_that_ends_leaves_nothing_behind() -> None:
    linear, x = Linear(numbers(192, 65536), quantize="int8"), numbers(4, 65536, seed=1)
    process = psutil.Process()
    before = 0
    for i in range(220):
        if i == 20:
            before = process.memory_info().rss
        for num_threads in (3, 2):  # the runtime ends the third
            kernels.set_num_threads(num_threads)
            linear(x)
    assert process.memory_info().rss - before < 100 * x.numel()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("is_gated", [False, True])
def test_the_plain_weight_comes_back_from_the_packed_one(dtype: torch.dtype, is_gated: bool) -> None:
    weight = numbers(70, 36).to(dtype)
    assert torch.equal(Linear(weight, activation="silu", is_gated=is_gated).dense_weight(), weight)
    rounded = Linear(weight, activation="silu", is_gated=is_gated, quantize="int8").dense_weight()
    assert (rounded.float() - weight.float()).abs().max() <= weight.float().abs().max() / 100


@pytest.mark.parametrize("is_gated", [False, True])
def test_int4_rounds_by_little(is_gated: bool) -> None:
    weight = numbers(96, 640)
    weight[5, :32] = 0
    rounded = Linear(weight, activation="silu", is_gated=is_gated, quantize="int4").dense_weight()
    assert not rounded[5, :32].any()
    error = (rounded - weight).square().mean() / weight.square().mean()
    assert error < 0.008, "of normal weights, four bits in groups of 32 lose under a hundredth of the energy"


def test_int8_is_a_quarter_of_float32_and_int4_a_seventh() -> None:
    weight = numbers(480, 640)
    whole = Linear(weight).weight_bytes
    assert Linear(weight, quantize="int8").weight_bytes < 0.27 * whole
    assert Linear(weight, quantize="int4").weight_bytes < 0.145 * whole


def test_rows_of_zeros_and_weights_of_zeros_stay_zero_in_int8() -> None:
    weight = numbers(50, 64)
    weight[7] = 0
    x = numbers(3, 64, seed=1)
    x[1] = 0
    ours = Linear(weight, quantize="int8")(x)
    assert not ours[:, 7].any() and not ours[1].any()


@pytest.mark.parametrize("quantize", ["none", "int8"])
def test_what_is_not_finite_spoils_its_own_row_alone(quantize: str) -> None:
    linear = Linear(numbers(50, 64), quantize=quantize)
    x = numbers(12, 64, seed=1)
    expected = linear(x)
    x[3, 5], x[9, 0] = torch.nan, torch.inf
    ours = linear(x)
    assert not ours[3].isfinite().any() and not ours[9].isfinite().any()
    clean = [row for row in range(12) if row not in (3, 9)]
    assert torch.equal(ours[clean], expected[clean])


@pytest.mark.parametrize("activation", ["silu", "gelu", "gelu_tanh", "relu"])
def test_no_activation_makes_a_number_of_what_is_none(activation: str) -> None:
    linear = Linear(numbers(50, 64), activation=activation)
    x = numbers(9, 64, seed=1)
    x[3, 5] = torch.nan
    assert linear(x)[3].isnan().all()


def test_an_input_of_another_dtype_is_rounded_to_the_weights() -> None:
    linear = Linear(numbers(50, 64).bfloat16())
    x, residual = numbers(3, 64, seed=1), numbers(3, 50, seed=2)
    rounded = linear(x.bfloat16(), residual.bfloat16())
    assert torch.equal(linear(x, residual), rounded.float())
    exact = linear(x.bfloat16(), residual.bfloat16(), out_float=True)
    assert torch.equal(linear(x, residual, out_float=True), exact)


def test_any_shape_of_input_is_taken() -> None:
    linear = Linear(numbers(50, 64))
    x = numbers(2, 3, 64, seed=1)
    assert linear(x).shape == (2, 3, 50)
    assert linear(x[0, 0]).shape == (50,)
    assert linear(x[:0]).shape == (0, 3, 50)
    assert torch.equal(linear(x.transpose(0, 1)), linear(x).transpose(0, 1))


def test_what_the_kernels_cannot_take_goes_to_torch_and_is_not_quantised() -> None:
    odd = numbers(10, 7).bfloat16()
    x = numbers(3, 7, seed=1).bfloat16()
    torch.testing.assert_close(Linear(odd)(x), torch.nn.functional.linear(x, odd))
    with pytest.raises(ValueError, match="10 x 7"):
        Linear(odd, quantize="int8")
    kernels.use("torch", 1)
    with pytest.raises(ValueError, match="no CPU kernels"):
        Linear(numbers(8, 8), quantize="int8")
