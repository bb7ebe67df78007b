"""Products by either library, against float64."""

from __future__ import annotations

import pytest
import torch

from smalti.quantize import products
from smalti.quantize.products import Product, product

WAYS: list[Product] = [products._by_torch, products._by_onednn, product]
have_onednn = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("shape", [(1, 1, 1), (0, 3, 5), (7, 33, 1), (130, 65, 257), (16, 300, 40)])
@pytest.mark.parametrize("given", [True, False])
def test_every_term_is_float32(way: Product, shape: tuple[int, int, int], given: bool) -> None:
    if way is products._by_onednn and not have_onednn:
        pytest.skip("this torch has no oneDNN")
    n, dim, codes = shape
    x, table = torch.randn(n, dim), torch.randn(2 * codes, dim)[codes:]  # a part of a larger table
    found = way(x, table, torch.empty(n, codes) if given else None)
    reach = 2.0**-24 * (dim + 1) * (x.double().abs() @ table.double().abs().t())
    assert found.dtype == torch.float32 and found.shape == (n, codes)
    assert bool(((found.double() - x.double() @ table.double().t()).abs() <= reach).all())


def test_autocast_does_not_lower_the_precision() -> None:
    x, table = torch.randn(64, 48), torch.randn(80, 48)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = product(x, table)
    assert torch.allclose(found, x @ table.t(), atol=1e-4)
