"""Products by either library, against float64."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from smalti.quantize import nearest, neighbours, products
from smalti.quantize.products import Product, product, unit_roundoff

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


CPU = torch.device("cpu")


@pytest.fixture(params=["highest", "high", "medium"])
def precision(request: pytest.FixtureRequest) -> Iterator[str]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(request.param)
    yield request.param
    torch.set_float32_matmul_precision(before)


def test_a_permission_to_round_that_nothing_uses_measures_few_rows_again(
    precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, table = torch.randn(3000, 24), torch.randn(700, 24)
    expected = torch.stack([(row - table.double()).square().sum(1).argmin() for row in rows.double()])
    measured: list[int] = []
    original = neighbours._measure_again

    def watched(rows: Tensor, *arguments: Tensor) -> Tensor:
        measured.append(len(rows))
        return original(rows, *arguments)

    monkeypatch.setattr(neighbours, "_measure_again", watched)
    assert torch.equal(nearest(rows, table), expected)
    if unit_roundoff(CPU) > 2.0**-24:
        pytest.skip(f"this processor rounds operands at the precision {precision!r}")
    assert sum(measured) < 30


def to_bfloat16(x: Tensor) -> Tensor:
    return x.bfloat16().float()


def to_tf32(x: Tensor) -> Tensor:
    return (x.contiguous().view(torch.int32) & ~0x1FFF).view(torch.float32)


def in_two_halves(x: Tensor) -> Tensor:
    high = to_bfloat16(x)
    return high + to_bfloat16(x - high)


COARSE: dict[str, Product] = {
    "rows rounded to bfloat16": lambda x, codes, out: to_bfloat16(x) @ codes.t(),
    "codes rounded to bfloat16": lambda x, codes, out: x @ to_bfloat16(codes).t(),
    "rows rounded to TF32": lambda x, codes, out: to_tf32(x) @ codes.t(),
    "codes rounded to TF32": lambda x, codes, out: x @ to_tf32(codes).t(),
    "operands in two halves": lambda x, codes, out: in_two_halves(x) @ in_two_halves(codes).t(),
    "sums in bfloat16": lambda x, codes, out: to_bfloat16(x @ codes.t()),
    "large products alone": lambda x, codes, out: (to_bfloat16(x) if len(x) > 500 else x) @ codes.t(),
    "single rows alone": lambda x, codes, out: (to_bfloat16(x) if len(x) == 1 else x) @ codes.t(),
}


@pytest.mark.parametrize("name", COARSE)
def test_coarse_arithmetic_is_noticed(name: str) -> None:
    assert not products._is_float32(COARSE[name], products._setting())


def backwards(x: Tensor, codes: Tensor, out: Tensor | None) -> Tensor:
    return x.flip(1) @ codes.flip(1).t()


def one_by_one(x: Tensor, codes: Tensor, out: Tensor | None) -> Tensor:
    total = torch.zeros(len(x), len(codes))
    for a, b in zip(x.t(), codes.t(), strict=True):
        total += a[:, None] * b
    return total


@pytest.mark.parametrize("way", [backwards, one_by_one])
def test_the_order_of_a_sum_is_no_coarse_arithmetic(way: Product) -> None:
    assert products._is_float32(way, products._setting())


def test_a_search_by_coarse_products_finds_the_same_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, table = torch.randn(200, 24), torch.randn(300, 24)
    expected = nearest(rows, table)
    coarse = COARSE["rows rounded to bfloat16"]
    monkeypatch.setattr(products, "_by_torch", coarse)
    monkeypatch.setattr(products, "_by_onednn", coarse)
    products._fastest.cache_clear()
    try:
        assert unit_roundoff(CPU) == 2.0**-8
        assert torch.equal(nearest(rows, table), expected)
    finally:
        products._fastest.cache_clear()


def test_the_library_that_rounds_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    if not have_onednn:
        pytest.skip("this torch has no oneDNN")
    for name, other in (("_by_torch", products._by_onednn), ("_by_onednn", products._by_torch)):
        with monkeypatch.context() as patch:
            patch.setattr(products, name, COARSE["codes rounded to TF32"])
            products._fastest.cache_clear()
            try:
                assert products._fastest(products._setting()) is other
                assert unit_roundoff(CPU) == 2.0**-24
            finally:
                products._fastest.cache_clear()


def test_a_precision_that_the_environment_allows_changes_no_code() -> None:
    program = """
import torch
from smalti.quantize import nearest
torch.manual_seed(0)
rows, table = torch.randn(2000, 32), torch.randn(500, 32)
expected = torch.stack([(row - table.double()).square().sum(1).argmin() for row in rows.double()])
assert torch.equal(nearest(rows, table), expected)
"""
    environment = {**os.environ, "ONEDNN_DEFAULT_FPMATH_MODE": "BF16"}
    subprocess.run([sys.executable, "-c", program], check=True, env=environment)
