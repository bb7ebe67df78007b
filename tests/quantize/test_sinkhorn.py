"""Sinkhorn assignment against alternating normalisation of the whole plan in float64."""

from __future__ import annotations

import math

import pytest
import torch

from smalti.quantize import create, sinkhorn


@pytest.mark.parametrize(("rows", "codes", "epsilon"), [(60, 12, 0.1), (37, 5, 0.3), (40, 80, 0.2)])
def test_the_plan_is_that_of_alternating_normalisation(
    rows: int, codes: int, epsilon: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sinkhorn, "BUFFER", 3 * codes)  # chunks of three rows
    torch.manual_seed(0)
    x, table = torch.randn(rows, 4, dtype=torch.float64) + 3, torch.randn(codes, 4, dtype=torch.float64)
    cost = torch.cdist(x, table) ** 2
    rest = cost - cost.mean(0) - cost.mean(1, keepdim=True) + cost.mean()
    logits = -cost / (epsilon * rest.square().mean().sqrt())
    for _ in range(1000):
        logits = logits - logits.logsumexp(1, keepdim=True) - math.log(rows)
        logits = logits - logits.logsumexp(0) - math.log(codes)
    plan = logits.exp()
    assert torch.allclose(plan.sum(1), torch.full((rows,), 1 / rows, dtype=torch.float64), atol=1e-6)
    assert torch.allclose(plan.sum(0), torch.full((codes,), 1 / codes, dtype=torch.float64))
    moved, centre = sinkhorn.centred(x), table - table.mean(0)
    scale = epsilon * rest.square().mean().sqrt()
    g = sinkhorn.potential(moved, centre, epsilon, 1000)
    ours = torch.softmax((g + 2 * moved @ centre.t()) / scale, 1) / rows
    assert torch.allclose(ours, plan, atol=1e-8)
    assert torch.equal(sinkhorn.balanced(x.float(), table.float(), epsilon, 1000), plan.argmax(1))


def test_a_batch_far_from_the_codes_still_uses_all_of_them() -> None:
    torch.manual_seed(0)
    quantizer = create("sinkhorn", dim=4, codes=16).train()
    z = torch.randn(2, 256, 4) * 0.05 + 5
    nearest = quantizer.encode(z)
    spread = quantizer(z).codes
    assert len(nearest.unique()) < 4
    assert len(spread.unique()) == 16
    assert int(torch.bincount(spread.flatten(), minlength=16).max()) < 3 * 512 // 16
    assert torch.equal(quantizer.eval()(z).codes, nearest)


def test_masked_positions_count_not() -> None:
    torch.manual_seed(0)
    quantizer = create("sinkhorn", dim=4, codes=8).train()
    z, mask = torch.randn(1, 30, 4), torch.arange(30)[None] < 20
    alone = quantizer(z[:, :20]).codes
    assert torch.equal(quantizer(torch.where(mask[..., None], z, 1e3), mask=mask).codes[:, :20], alone)
    assert bool((quantizer(z, mask=torch.zeros_like(mask)).codes == -1).all())
