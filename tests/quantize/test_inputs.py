"""What latents and numbers of candidates every quantizer takes, and what it says of others."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from smalti.errors import InputError
from smalti.quantize import Parallel, Quantize, Quantizer, Residual, Table, Trained, create
from tests.quantize.test_contract import OPTIONS, SCALE_OPTIONS

EVERY = {**OPTIONS, **SCALE_OPTIONS}
POSITIONS = {"multi-scale": (4, 4), "multi-rate": (8,)}


def made(name: str) -> tuple[Quantizer, Tensor]:
    quantizer = create(name, **EVERY[name]).eval()
    return quantizer, torch.randn(2, *POSITIONS.get(name, (3,)), quantizer.dim)


@pytest.mark.parametrize("name", sorted(EVERY))
def test_there_are_as_many_candidates_as_asked_for_or_none(name: str) -> None:
    quantizer, z = made(name)
    codes = quantizer.vocab[0] if name in SCALE_OPTIONS else math.prod(quantizer.vocab)
    for k in (0, -1, codes + 1, 2 * codes + 10**9):
        with pytest.raises(InputError, match=rf"k must be in 1\.\.{codes}, the number of codes, got {k}"):
            quantizer.candidates(z, k)
    for k in {1, 2, min(codes, 200)}:
        found, values, costs = quantizer.candidates(z[:1], k)
        assert found.shape[-2] == values.shape[-2] == costs.shape[-1] == k
        assert all(len(torch.unique(row, dim=0)) == k for row in found.flatten(0, -3))


def test_many_candidates_of_parts_of_several_slots_are_the_best_of_all() -> None:
    parts = [Residual([Quantize(Table(Trained(3, 2, nn.init.normal_))) for _ in range(2)]) for _ in range(2)]
    quantizer, z = Parallel(parts, join="cat").eval(), torch.randn(1, 4, 4)
    every = torch.cartesian_prod(*[torch.arange(3)] * 4)
    errors = (quantizer.decode(every[None])[0] - z[0, :, None]).double().square().sum(-1)
    found, _, costs = quantizer.candidates(z, 20)
    assert torch.allclose(costs[0], errors.sort(1).values[:, :20])
    assert torch.equal(found[0], every[errors.argsort(1)[:, :20]])


def layouts(z: Tensor) -> dict[str, Tensor]:
    """The same latents in other places of memory."""
    wide = torch.zeros(*z.shape[:-1], 2 * z.shape[-1])
    wide[..., ::2] = z
    return {
        "strided": wide[..., ::2],
        "channels first": z.transpose(1, -1).contiguous().transpose(1, -1),
        "batch last": z.transpose(0, -1).contiguous().transpose(0, -1),
    }


LONG = {
    "vit-vqgan": {"dim": 64, "codes": 512},
    "bsq": {"bits": 36},
    "pyramid": {"dim": 16, "pulses": 5},
    "factorised": {"dim": 64, "codes": 512},
    "mimi": {"dim": 64, "codes": 64, "levels": 3},
}


@pytest.mark.parametrize("name", LONG)
def test_the_layout_of_latents_changes_no_bit(name: str) -> None:
    quantizer = create(name, **LONG[name]).eval()
    z = torch.randn(2, 1500, quantizer.dim)
    expected = quantizer(z)
    for other in layouts(z).values():
        out = quantizer(other)
        assert torch.equal(out.codes, expected.codes) and torch.equal(out.z, expected.z)
        assert torch.equal(quantizer.encode(other), expected.codes)


@pytest.mark.parametrize("name", sorted(EVERY))
def test_latents_are_refused_for_what_they_are(name: str) -> None:
    quantizer, z = made(name)
    for value in (math.nan, math.inf, -math.inf):
        broken = z.clone()
        broken.view(-1)[-1] = value
        for ask in (quantizer, quantizer.encode, lambda z: quantizer.candidates(z, 1)):
            with pytest.raises(InputError, match="NaN or infinity"):
                ask(broken)
    huge = (torch.rand(z.shape) - 0.5) * 6e38
    try:
        codes = quantizer.encode(huge)
    except InputError as error:
        assert "too large for float32 where they are projected" in str(error)
    else:
        assert torch.equal(quantizer(huge).codes, codes)
