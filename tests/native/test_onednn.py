"""Products through oneDNN are used where they give torch's own numbers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from server.native import onednn
from server.native.onednn import Product

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def asked_anew() -> Iterator[None]:
    onednn.packing_works.cache_clear()
    yield
    onednn.packing_works.cache_clear()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_product_equals_torchs(dtype: torch.dtype) -> None:
    weight = torch.randn(48, 80, generator=torch.Generator().manual_seed(0)).to(dtype)
    bias = torch.linspace(-1, 1, 48).to(dtype)
    product = Product(weight)
    for shape in ((80,), (1, 80), (1, 1, 80), (2, 7, 80), (0, 80)):
        x = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)
        expected = torch.nn.functional.linear(x, weight, bias)
        torch.testing.assert_close(product(x, bias), expected, rtol=1e-2 if dtype != torch.float32 else 1e-5, atol=1e-2)
    assert torch.equal(product.dense(), weight)


def test_in_float32_a_row_does_not_depend_on_its_batch() -> None:
    product = Product(torch.randn(64, 2048, generator=torch.Generator().manual_seed(0)))
    x = torch.randn(33, 2048, generator=torch.Generator().manual_seed(1))
    together = product(x)
    for size in (1, 2, 5, 16):
        assert torch.equal(product(x[:size]), together[:size])


def test_where_packing_gives_other_numbers_torchs_own_way_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    right = onednn.packed_product
    monkeypatch.setattr(onednn, "packed_product", lambda x, packed, bias: right(x, packed, bias) * 1.1)
    assert not onednn.packing_works(torch.float32)
    weight = torch.randn(8, 16, generator=torch.Generator().manual_seed(0))
    x = torch.ones(3, 16)
    assert torch.equal(Product(weight)(x), torch.nn.functional.linear(x, weight))
