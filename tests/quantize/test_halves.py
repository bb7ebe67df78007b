"""A codebook in two parts, against brute force."""

from __future__ import annotations

import pytest
import torch

from smalti.errors import ConfigError, InputError
from smalti.quantize import EMA, Halves, Quantize, Table, Trained


def test_known_latents_and_the_rest_search_their_own_part() -> None:
    torch.manual_seed(0)
    table = Table(Trained(50, 3, torch.nn.init.normal_))
    quantizer = Quantize(Halves(table, 20))
    z, known = torch.randn(2, 60, 3), (torch.rand(2, 60, 1) < 0.5).float()
    costs = torch.cdist(z.double(), table.stored_rows().detach().double()[None])
    costs = costs.masked_fill((torch.arange(50) < 20) != (known > 0), torch.inf)
    codes = quantizer.encode(z, context=known)
    assert torch.equal(codes[..., 0], costs.argmin(-1))
    assert bool((codes[known > 0] < 20).all()) and bool((codes[known == 0] >= 20).all())
    found, values, paid = quantizer.candidates(z, 3, context=known)
    assert torch.equal(found[..., 0], costs.argsort(-1)[..., :3])
    assert torch.allclose(paid, costs.square().sort(-1).values[..., :3], atol=1e-5)
    assert torch.allclose(values, table.rows()[found[..., 0]])
    out = quantizer(z, context=known, mask=torch.arange(60).expand(2, 60) < 40)
    assert torch.equal(out.codes[:, :40], codes[:, :40]) and bool((out.codes[:, 40:] == -1).all())
    assert torch.allclose(quantizer.decode(codes, context=known), table.rows()[codes[..., 0]])


def test_both_parts_learn_together() -> None:
    table = Table(Trained(4, 2, torch.nn.init.normal_), learn=EMA(decay=0.0, eps=0.0))
    quantizer = Quantize(Halves(table, 2)).train()
    z, known = torch.randn(1, 40, 2), (torch.arange(40) % 2).float().view(1, 40, 1)
    codes = quantizer(z, context=known).codes.flatten()
    quantizer.update()
    for code in codes.unique():
        assert torch.allclose(table.stored_rows()[code], z[0][codes == code].mean(0), atol=1e-5)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ConfigError, match="split"):
        Halves(Table(Trained(4, 2)), 4)
    with pytest.raises(InputError, match="context"):
        Quantize(Halves(Table(Trained(4, 2)), 2)).encode(torch.zeros(1, 1, 2))
