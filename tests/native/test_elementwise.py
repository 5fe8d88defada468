"""The norms: kernels against their definition in torch, on every instruction set that the processor has."""

from __future__ import annotations

from collections.abc import Callable

import psutil
import pytest
import torch
from torch import Tensor

from server.native import kernels, ops, reference
from tests.native import variants

torch.set_num_threads(1)

EPS = 1e-5
WIDTHS = [1, 7, 16, 63, 64, 65, 576, 1031, 4096]


@pytest.fixture(params=list(kernels.VARIANTS), autouse=True)
def variant(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    variants.use(request.param, monkeypatch)


def numbers(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def assert_within_a_rounding_step(found: Tensor, expected: Tensor) -> None:
    """Sums in another order move float32 by a few of its steps; that may move a bfloat16 by one."""
    assert found.dtype == expected.dtype
    step = 2**-7 if found.dtype == torch.bfloat16 else 2e-6
    torch.testing.assert_close(found.float(), expected.float(), rtol=step, atol=1e-5)


NORMS: dict[str, Callable[[object, Tensor, Tensor], Tensor]] = {
    "rms": lambda way, x, weight: way.rms_norm(x, weight, EPS),  # type: ignore[attr-defined]
    "rms and residual": lambda way, x, weight: way.rms_norm(x, weight, EPS, x.flip(0).contiguous()),  # type: ignore[attr-defined]
    "layer": lambda way, x, weight: way.layer_norm(x, weight, weight * 0.5, EPS),  # type: ignore[attr-defined]
    "layer without bias": lambda way, x, weight: way.layer_norm(x, weight, None, EPS),  # type: ignore[attr-defined]
}
every_norm = pytest.mark.parametrize("norm", NORMS.values(), ids=NORMS)
every_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])


@every_norm
@every_dtype
@pytest.mark.parametrize("width", WIDTHS)
def test_a_norm_equals_its_definition_at_any_width(norm, dtype, width):
    x, weight = numbers(5, width, dtype=dtype) * 3 + 1, numbers(width, seed=1)
    assert_within_a_rounding_step(norm(ops, x, weight), norm(reference, x, weight))


@every_norm
@every_dtype
def test_a_row_does_not_depend_on_the_rows_beside_it_or_on_threads(norm, dtype, monkeypatch):
    x, weight = numbers(301, 577, dtype=dtype), numbers(577, seed=1)
    x[150] = x[0] = x[300]  # the residual is the rows turned round: these three meet one another
    together = norm(ops, x, weight)
    kernels.module().set_num_threads(1)
    assert torch.equal(norm(ops, x, weight), together)
    for row in (0, 150, 300):
        assert torch.equal(norm(ops, x[row : row + 1], weight)[0], together[row])


def test_rows_that_need_not_all_threads_end_none():
    weight, process = numbers(1024), psutil.Process()
    kernels.module().set_num_threads(3)
    many, some = numbers(512, 1024), numbers(70, 1024)
    ops.rms_norm(many, weight, EPS)
    before = {thread.id for thread in process.threads()}
    ops.rms_norm(some, weight, EPS)
    ops.rms_norm(many, weight, EPS)
    assert {thread.id for thread in process.threads()} == before


@every_norm
@every_dtype
@pytest.mark.parametrize("shape", [(2, 3, 48), (48,), (1, 48)])
def test_a_norm_keeps_the_shape(norm, dtype, shape):
    x, weight = numbers(*shape, dtype=dtype), numbers(48, seed=1)
    found = norm(ops, x, weight)
    assert found.shape == x.shape
    assert_within_a_rounding_step(found, norm(reference, x, weight))


@every_norm
def test_rows_that_are_not_dense_and_other_dtypes_are_normed_all_the_same(norm):
    weight = numbers(40, seed=1)
    for x in (numbers(6, 80)[:, ::2], numbers(40, 6).T, numbers(6, 40).double()):
        assert_within_a_rounding_step(norm(ops, x, weight), norm(reference, x, weight))


@every_dtype
def test_a_residual_that_is_not_dense_is_added_all_the_same(dtype):
    x, residual, weight = numbers(6, 40, dtype=dtype), numbers(40, 6, seed=2, dtype=dtype).T, numbers(40, seed=1)
    found = ops.rms_norm(x, weight, EPS, residual)
    assert_within_a_rounding_step(found, reference.rms_norm(x, weight, EPS, residual))


@every_norm
@every_dtype
def test_no_rows_give_no_rows(norm, dtype):
    assert norm(ops, numbers(0, 64, dtype=dtype), numbers(64)).shape == (0, 64)


@every_dtype
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_what_is_not_finite_stays_in_its_row(dtype, bad):
    x, weight = numbers(3, 100, dtype=dtype), numbers(100, seed=1)
    clean = ops.rms_norm(x, weight, EPS)
    x[1, 50] = bad
    found = ops.rms_norm(x, weight, EPS)
    assert found[1].isnan().any()
    assert torch.equal(found[[0, 2]], clean[[0, 2]])


def test_the_greatest_and_least_numbers_are_rounded_as_torch_rounds_them():
    weight = torch.tensor([1.0, 1.0039062, 1.0117188, 3.3895313e38, torch.inf, -torch.inf, torch.nan, -0.0])
    x = torch.ones(1, 8, dtype=torch.bfloat16)
    found = ops.rms_norm(x, weight, 0.0)
    assert found.isnan().tolist() == [[False] * 6 + [True, False]]
    assert torch.equal(found.nan_to_num(7.0), weight[None].bfloat16().nan_to_num(7.0))


def test_a_call_with_another_number_of_arguments_is_refused():
    module = kernels.module()
    assert module is not None
    with pytest.raises(TypeError, match="rms_norm takes 8 arguments, not 1"):
        module.rms_norm(0)
