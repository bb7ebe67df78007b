"""RQ-VAE's soft and stochastic codes against a float64 softmax and the golden case."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from smalti.errors import ConfigError
from smalti.quantize import Quantize, Residual, Table, Trained, create
from smalti.quantize.rq_codes import Stochastic, draw_codes, soft_codes, soft_cross_entropy
from tests.parity.golden import read_case

GOLDEN = Path(__file__).parents[3] / "shared" / "golden" / "rq-vae" / "rq_8x8x4_shared.json"


def table(codes: int = 12, dim: int = 5, seed: int = 0, offset: float = 0.0) -> torch.Tensor:
    return torch.randn(codes, dim, generator=torch.Generator().manual_seed(seed)) + offset


def residual(rows: torch.Tensor, levels: int) -> Residual:
    level = Quantize(Table(Trained(*rows.shape, lambda weight: weight.copy_(rows))))
    return Residual([level] * levels).eval()


@pytest.mark.parametrize("offset", [0.0, 100.0])
@pytest.mark.parametrize("temperature", [0.1, 0.5, 2.0])
def test_soft_codes_are_the_softmax_of_squared_distances(offset: float, temperature: float) -> None:
    rows, z = table(offset=offset), table(20, 5, seed=1, offset=offset)[None]
    quantizer = residual(rows, 3)
    codes, soft = soft_codes(quantizer, z, temperature)
    assert torch.equal(codes, quantizer.encode(z))
    left = z[0]
    for level in range(3):
        distance = (left.double()[:, None] - rows.double()).square().sum(-1)
        torch.testing.assert_close(
            soft[0, :, level].double(), (-distance / temperature).softmax(1), rtol=1e-3, atol=2e-5
        )
        assert torch.equal(distance.argmin(1), codes[0, :, level])
        left = left - rows[codes[0, :, level]]


def test_codes_are_drawn_with_those_probabilities() -> None:
    torch.manual_seed(0)
    rows, x = table(6, 3), torch.randn(1, 3)
    drawn = draw_codes(x.expand(200_000, -1), rows, 1.5)
    p = (-(x.double() - rows.double()).square().sum(1) / 1.5).softmax(0)
    torch.testing.assert_close(torch.bincount(drawn, minlength=6) / 200_000, p.float(), rtol=0, atol=5e-3)


def test_drawn_paths_subtract_what_was_drawn() -> None:
    rows, z = table(), table(30, 5, seed=2)[None]
    gumbel = -torch.empty(2, 30, 12).exponential_(generator=torch.Generator().manual_seed(3)).log()
    codes, soft = soft_codes(residual(rows, 2), z, 0.7, stochastic=True, gumbel=gumbel)
    left = z[0]
    for level in range(2):
        logits = -(left.double()[:, None] - rows.double()).square().sum(-1) / 0.7
        assert torch.equal((logits + gumbel[level].double()).argmax(1), codes[0, :, level])
        torch.testing.assert_close(soft[0, :, level].double(), logits.softmax(1), rtol=1e-4, atol=1e-6)
        left = left - rows[codes[0, :, level]]


def test_training_draws_and_evaluation_does_not() -> None:
    torch.manual_seed(1)
    quantizer = create("rq-vae", dim=5, codes=12, levels=2, temperature=5.0, expire=0.0)
    z = table(200, 5, seed=4)[None]
    quantizer.train()
    assert not torch.equal(quantizer(z).codes, quantizer(z).codes)
    quantizer.eval()
    assert torch.equal(quantizer(z).codes, quantizer.encode(z))


def test_cold_targets_give_the_hard_cross_entropy() -> None:
    logits = table(20, 12, seed=5)
    codes, soft = soft_codes(residual(table(), 1), table(20, 5, seed=6)[None], 1e-4)
    hard = torch.nn.functional.cross_entropy(logits, codes[0, :, 0])
    torch.testing.assert_close(soft_cross_entropy(logits, soft[0, :, 0]), hard, rtol=1e-3, atol=1e-3)


@pytest.mark.skipif(not GOLDEN.exists(), reason="no golden cases here")
def test_golden_soft_codes() -> None:
    case = read_case(GOLDEN)
    rows = case.state["rqvae.quantizer.codebooks.0.weight"][:-1]  # the last row is padding and never chosen
    depth = case.config["rqvae"]["code_shape"][2]
    codes, soft = soft_codes(residual(rows, depth), case.outputs["z_e"], 0.5)
    assert torch.equal(codes, case.outputs["codes"])
    torch.testing.assert_close(soft.flatten(0, 2)[:4], case.outputs["soft_codes_first4"], rtol=0, atol=1e-4)


def test_refusals() -> None:
    with pytest.raises(ConfigError):
        Stochastic(-1.0)
    with pytest.raises(ConfigError):
        soft_codes(residual(table(), 1), torch.randn(1, 2, 5), 0.0)
