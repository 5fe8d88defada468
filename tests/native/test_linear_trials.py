"""Products of random shapes: a row has the same bits alone and in any batch, on every set of kernels."""

from __future__ import annotations

import random

import pytest
import torch

from server.native import formats, kernels, reference
from tests.fuzz.scale import SCALE
from tests.native import random_products, variants

torch.set_num_threads(1)

NUM_TRIALS = 200 if SCALE == 1 else 1000 * SCALE


@pytest.fixture(params=variants.HERE)
def variant(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    variants.use(request.param, monkeypatch)
    if not kernels.has("linear"):
        pytest.skip("it has no products")
    return str(request.param)


def test_a_row_has_the_same_bits_alone_and_in_any_batch(variant: str) -> None:
    for trial in range(NUM_TRIALS):
        product, chance = random_products.product(trial), random.Random(trial)
        num_rows = len(product.x_MK)
        together = product.run()
        for _ in range(2):
            first = chance.randrange(num_rows)
            stop = chance.choice([first + 1, chance.randint(first + 1, num_rows)])
            kernels.set_num_threads(chance.randint(1, 3))
            assert torch.equal(product.run(first, stop), together[first:stop]), (trial, first, stop)


def test_int8_on_tiles_gives_the_bits_of_avx512() -> None:
    if missing := variants.lacking("_tiles"):
        pytest.skip(f"the processor lacks {missing}")
    for trial in range(NUM_TRIALS):
        product = random_products.product(trial)
        if product.quantize == "int8":
            expected = random_products.with_kernels("avx512", 2, product)
            assert torch.equal(random_products.with_kernels("tiles", 2, product), expected), trial


def test_int8_gives_the_same_bits_on_every_set_of_kernels() -> None:
    for trial in range(NUM_TRIALS):
        product = random_products.product(trial)
        # Exponentials round differently from set to set: without them only the sums differ, and these are exact.
        if product.quantize == "int8" and product.activation in (None, "relu"):
            results = [random_products.with_kernels(variant[1:], 2, product) for variant in variants.HERE]
            assert all(torch.equal(result, results[0]) for result in results[1:]), trial


def exact_product(product: random_products.Product) -> torch.Tensor:
    """In float64, of the numbers that the kernels multiply."""
    x, weight = product.x_MK, product.weight_NK
    if product.quantize == "int8":
        whole_weight, scale = formats.quantized(weight)
        whole_x, x_scale = reference.quantized_rows(x)
        return whole_x.double() @ whole_weight.double().T * x_scale.double() * scale.double()
    return x.double() @ formats.FORMATS[product.quantize].rounded(weight).double().T


def test_a_product_equals_float64(variant: str) -> None:
    for trial in range(NUM_TRIALS):
        product = random_products.product(trial)
        expected = reference.finish(
            exact_product(product),
            product.bias_N,
            product.activation,
            is_gated=product.is_gated,
            residual=product.residual_MN,
        )
        ours = product.run()
        tolerance = 2**-8 if ours.dtype == torch.bfloat16 else 1e-5
        assert (ours.float() - expected).abs().max() <= tolerance * expected.abs().max() + 1e-6, trial
