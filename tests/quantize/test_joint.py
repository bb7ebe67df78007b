"""Tables that share their index, against float64 brute force."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from smalti.errors import ConfigError
from smalti.quantize import EMA, Commitment, Expire, Joint, Quantize, Table, Trained, create


def made(weights: list[float], codes: int = 200) -> tuple[Joint, Quantize]:
    torch.manual_seed(0)
    tables = [Table(Trained(codes, dim, torch.nn.init.normal_), space="unit") for dim in (5, 3)]
    joint = Joint(tables, weights=weights)
    return joint, Quantize(joint)


@pytest.mark.parametrize("weights", [[1.0, 1.0], [1.0, 0.25], [1.0, 0.0], [0.0, 1.0]])
def test_codes_minimise_the_weighted_sum_of_distances(weights: list[float]) -> None:
    joint, quantizer = made(weights)
    z = torch.randn(4, 50, 8)
    parts = [F.normalize(part.double(), dim=-1) for part in z.flatten(0, 1).split([5, 3], -1)]
    tables = [F.normalize(table.stored_rows().double(), dim=-1) for table in joint.tables]
    costs = sum(w * torch.cdist(x, rows) ** 2 for w, x, rows in zip(weights, parts, tables, strict=True))
    assert torch.equal(quantizer.encode(z).flatten(), costs.argmin(1))
    found = quantizer.candidates(z, 4)
    assert torch.allclose(found[2].flatten(0, 1), costs.sort(1).values[:, :4], atol=1e-5)
    # The vectors are both tables' unit rows side by side.
    vectors = torch.cat([rows[costs.argmin(1)] for rows in tables], 1)
    assert torch.allclose(quantizer(z).z.flatten(0, 1).double(), vectors, atol=1e-6)


def test_one_weight_of_zero_leaves_the_other_table_alone() -> None:
    joint, quantizer = made([1.0, 0.0])
    z = torch.randn(2, 30, 8)
    assert torch.equal(quantizer.encode(z), Quantize(joint.tables[0]).encode(z[..., :5]))


def test_the_gradient_is_straight_through_from_the_normalised_latent_and_both_tables_learn() -> None:
    quantizer = create("joint-index", dim=8, codes=30, semantic_dim=5)
    z = torch.randn(2, 6, 8, requires_grad=True)
    cotangent = torch.randn(2, 6, 8)
    out = quantizer(z)
    own = torch.autograd.grad((out.z * cotangent).sum(), z, retain_graph=True)[0]
    unit = torch.cat([F.normalize(part, dim=-1) for part in z.split([5, 3], -1)], -1)
    assert torch.allclose(own, torch.autograd.grad((unit * cotangent).sum(), z)[0], atol=1e-6)
    out.loss.backward()
    assert all(bool(each.grad.any()) for each in quantizer.parameters())


def test_learning_rules_of_both_tables_see_the_same_codes() -> None:
    tables = [Table(Trained(6, 2, torch.nn.init.normal_), learn=EMA(decay=0.0, eps=0.0)) for _ in range(2)]
    quantizer = Quantize(Joint(tables), terms=[Commitment()]).train()
    z = torch.randn(1, 40, 4)
    codes = quantizer(z).codes.flatten()
    quantizer.update()
    for table, part in zip(tables, z[0].split(2, -1), strict=True):
        for code in codes.unique():
            assert torch.allclose(table.stored_rows()[code], part[codes == code].mean(0), atol=1e-5)


def test_tables_that_would_part_are_refused() -> None:
    with pytest.raises(ConfigError, match="many codes"):
        Joint([Table(Trained(4, 2)), Table(Trained(5, 2))])
    with pytest.raises(ConfigError, match="revive"):
        Joint([Table(Trained(4, 2), learn=EMA(), revive=Expire())])
    with pytest.raises(ConfigError, match="start from data"):
        Joint([Table(Trained(4, 2), learn=EMA(kmeans_iterations=3)) for _ in range(2)])
    with pytest.raises(ConfigError, match="weights"):
        Joint([Table(Trained(4, 2))], weights=[-1.0])
