"""FQGAN's term against its formula, spelled in float64."""

from __future__ import annotations

import pytest
import torch

from smalti.errors import ConfigError
from smalti.quantize import Disentanglement, Parallel, create


def three_books() -> Parallel:
    torch.manual_seed(0)
    parts = [create("vq", dim=6, codes=20, unit=True) for _ in range(3)]
    return Parallel(parts, terms=[Disentanglement(0.1)])


def test_the_term_is_the_mean_squared_cosine_of_each_pair_of_real_vectors() -> None:
    books, z = three_books(), torch.randn(2, 7, 18, requires_grad=True)
    mask = torch.rand(2, 7) < 0.6
    out = books(z, mask=mask)
    parts = out.z.double().split(6, -1)
    cosine = torch.nn.functional.cosine_similarity
    pairs = [cosine(parts[a], parts[b], dim=-1)[mask].square().mean() for a, b in ((0, 1), (0, 2), (1, 2))]
    assert out.terms["disentanglement"].item() == pytest.approx(0.1 * sum(pairs).item() / 3, rel=1e-5)
    assert out.loss.item() == pytest.approx(
        sum(out.terms[name].item() for name in ("codebook", "commitment", "disentanglement")), rel=1e-5
    )
    out.terms["disentanglement"].backward()
    assert z.grad is not None and (z.grad[mask].abs().sum(-1) > 0).all() and (z.grad[~mask] == 0).all()


def test_a_batch_without_real_positions_costs_nothing() -> None:
    out = three_books()(torch.randn(2, 7, 18, requires_grad=True), mask=torch.zeros(2, 7, dtype=torch.bool))
    assert out.terms["disentanglement"].item() == 0


def test_parts_of_different_dimensions_have_no_cosine() -> None:
    with pytest.raises(ConfigError, match="one dimension"):
        Parallel([create("vq", dim=4, codes=3), create("vq", dim=2, codes=3)], terms=[Disentanglement()])
