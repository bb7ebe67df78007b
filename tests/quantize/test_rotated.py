"""OPQ against PQ, additive codes, and what an orthogonal matrix must do."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from smalti.errors import ConfigError, InputError
from smalti.quantize import Parallel, create
from smalti.quantize.additive import add_up, fit
from smalti.quantize.rotated import Rotated, fit_product, principal_axes
from smalti.testing import check_quantizer


def correlated(rows: int, dim: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    mix = torch.linalg.qr(torch.randn(dim, dim, generator=generator))[0]
    scale = torch.logspace(0.5, -1.5, dim)
    return torch.randn(rows, dim, generator=generator) * scale @ mix


def test_additive_beats_opq_beats_pq_on_correlated_data() -> None:
    x = correlated(5000, 16)
    product = fit_product(x, 4, 16, rotate=False, iterations=30).errors[-1]
    rotated = fit_product(x, 4, 16, rotate=True, iterations=30).errors[-1]
    additive = fit(x, 4, 16, iterations=10).errors[-1]
    assert additive < rotated < 0.9 * product


@pytest.mark.parametrize("rotate", [False, True])
def test_the_error_never_rises(rotate: bool) -> None:
    errors = torch.tensor(fit_product(correlated(1000, 8), 2, 8, rotate=rotate, iterations=15).errors)
    assert bool((errors.diff() <= 1e-6 * errors[0]).all())


def test_the_rotation_is_the_best_for_its_codes() -> None:
    x = correlated(800, 6)
    again = fit_product(x, 2, 8, rotate=True, iterations=200)
    torch.testing.assert_close(again.rotation @ again.rotation.t(), torch.eye(6), rtol=0, atol=1e-5)
    # At the end, turning by a small angle in any plane must not help.
    turned = x @ again.rotation
    index = [torch.cdist(turned[:, 3 * m : 3 * m + 3], book).argmin(1) for m, book in enumerate(again.codebooks)]
    decoded = torch.cat([book[i] for book, i in zip(again.codebooks, index, strict=True)], 1)
    turned, decoded = turned.double(), decoded.double()
    best = float((turned - decoded).square().sum())
    for a in range(6):
        for b in range(a):
            for angle in (0.02, -0.02):
                plane = torch.eye(6, dtype=torch.float64)
                plane[a, a] = plane[b, b] = torch.cos(torch.tensor(angle))
                plane[a, b], plane[b, a] = torch.sin(torch.tensor(angle)), -torch.sin(torch.tensor(angle))
                assert float((turned @ plane - decoded).square().sum()) >= best * (1 - 1e-6)


def test_principal_axes_are_dealt_out_evenly() -> None:
    x = correlated(4000, 8)
    axes = principal_axes(x, 2)
    variance = (x @ axes).var(0).log()
    torch.testing.assert_close(axes @ axes.t(), torch.eye(8), rtol=0, atol=1e-5)
    assert abs(float(variance[:4].sum() - variance[4:].sum())) < 1.0


def test_fit_sets_a_quantizer() -> None:
    torch.manual_seed(0)
    x = correlated(2000, 8)
    quantizer = create("opq", dim=8, codes=16, parts=2)
    assert isinstance(quantizer, Rotated)
    found = quantizer.fit(x)
    quantizer.eval()
    codes = quantizer.encode(x[None])
    error = float((quantizer.decode(codes)[0] - x).square().sum(1).mean())
    assert error <= found.errors[-1] * (1 + 1e-4)
    turned = x @ found.rotation
    for part, book in enumerate(found.codebooks):
        expected = torch.cdist(turned[:, 4 * part : 4 * part + 4].double(), book.double()).argmin(1)
        assert float((codes[0, :, part] == expected).double().mean()) > 0.999
    assert sorted(name for name in quantizer.state_dict() if "matrix" in name) == ["before.matrix"]
    check_quantizer(quantizer)


def test_state_loads_with_its_rotation() -> None:
    x = correlated(500, 8)
    one, other = (create("opq", dim=8, codes=8, parts=2) for _ in range(2))
    assert isinstance(one, Rotated)
    one.fit(x)
    other.load_state_dict(one.state_dict())
    assert torch.equal(one.eval().encode(x[None]), other.eval().encode(x[None]))


def test_refusals() -> None:
    with pytest.raises(ConfigError):
        Rotated(Parallel([create("vq", dim=4, codes=8, unit=True)] * 2))
    with pytest.raises(ConfigError):
        create("opq", dim=7, codes=8, parts=2)
    with pytest.raises(InputError):
        fit_product(torch.randn(5, 7), 2, 4, rotate=False)


def test_additive_reconstruction_is_the_sum() -> None:
    x = correlated(300, 4)
    found = fit(x, 2, 8, iterations=2)
    total = found.codebooks[0][found.codes[:, 0]] + found.codebooks[1][found.codes[:, 1]]
    assert torch.equal(add_up(found.codes, found.codebooks), total)
