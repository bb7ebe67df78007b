"""Quantizers compute in float32 whatever a program's default type or device is."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from smalti.quantize import create, nearest, nearest_k, products
from tests.quantize.test_contract import OPTIONS, SCALE_OPTIONS

POSITIONS = {"multi-scale": (4, 4), "multi-rate": (8,)}


@pytest.fixture(params=[torch.float64, torch.bfloat16], ids=["float64", "bfloat16"])
def default(request: pytest.FixtureRequest) -> Iterator[torch.dtype]:
    before = torch.get_default_dtype()
    yield request.param
    torch.set_default_dtype(before)


def test_searches_find_the_same_codes(default: torch.dtype) -> None:
    rows, table = torch.randn(300, 16), torch.randn(3000, 16)
    distances = (rows.double()[:, None] - table.double()).square().sum(-1)
    torch.set_default_dtype(default)
    products._fastest.cache_clear()
    products._is_float32.cache_clear()
    assert torch.equal(nearest(rows, table), distances.argmin(1))
    assert torch.equal(nearest_k(rows, table, 3)[0], distances.argsort(1)[:, :3])
    assert products.unit_roundoff(rows.device) == 2.0**-24


@pytest.mark.parametrize("name", sorted(OPTIONS | SCALE_OPTIONS))
def test_named_quantizers_train_and_encode(name: str, default: torch.dtype) -> None:
    quantizer = create(name, **(OPTIONS | SCALE_OPTIONS)[name])
    z = torch.randn(3, *POSITIONS.get(name, (5,)), quantizer.dim, requires_grad=True)
    torch.set_default_dtype(default)
    out = quantizer.train()(z)
    (out.z.sum() + out.loss).backward()
    quantizer.update()
    codes = quantizer.eval().encode(z)
    best, *_ = quantizer.candidates(z, 2)
    vectors = quantizer.decode(codes)
    torch.set_default_dtype(torch.float32)
    assert out.z.dtype == vectors.dtype == torch.float32
    assert {t.dtype for t in quantizer.state_dict().values() if t.is_floating_point()} <= {torch.float32}
    assert torch.equal(codes, quantizer.encode(z))
    assert torch.equal(best, quantizer.candidates(z, 2)[0])
    assert torch.equal(vectors, quantizer.decode(codes))


NO_NETWORK = ["vq", "ema", "rotation-trick", "affine", "in-place", "multi-head", "random-projection", "residual",
              "grouped-residual", "product", "additive", "lsq", "opq", "rq-vae", "fsq", "lookup-free", "bsq", "latent",
              "dimension-wise", "pyramid", "leech", "ibq", "sinkhorn"]  # fmt: skip


@pytest.mark.parametrize("name", NO_NETWORK)
def test_what_is_built_under_another_default_is_float32(name: str, default: torch.dtype) -> None:
    torch.set_default_dtype(default)
    quantizer = create(name, **OPTIONS[name])
    z = torch.randn(3, 5, quantizer.dim, dtype=torch.float32, requires_grad=True)
    out = quantizer.train()(z)
    (out.z.sum() + out.loss).backward()
    quantizer.update()
    stored = [*quantizer.parameters(), *quantizer.buffers()]
    assert {tensor.dtype for tensor in stored if tensor.is_floating_point()} <= {torch.float32}
    assert torch.isfinite(out.loss)


def test_a_search_under_another_default_device_stays_where_its_rows_are() -> None:
    rows, table = torch.randn(300, 16), torch.randn(3000, 16)
    expected = nearest(rows, table)
    products._fastest.cache_clear()
    products._is_float32.cache_clear()
    with torch.device("meta"):
        assert products.unit_roundoff(rows.device) == 2.0**-24
        found = nearest(rows, table)
    assert found.device == rows.device and torch.equal(found, expected)
