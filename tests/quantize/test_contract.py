"""The public check over every quantizer that has a name, and over compositions of them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from smalti.quantize import NAMES, Parallel, Quantize, Quantizer, Residual, Rotation, Table, Trained, create
from smalti.testing import check_quantizer

OPTIONS = {
    "vq": {"dim": 8, "codes": 50},
    "ema": {"dim": 8, "codes": 50},
    "simvq": {"dim": 8, "codes": 50},
    "gumbel": {"dim": 8, "codes": 20},
    "fsq": {"levels": (5, 4, 3), "groups": 2},
    "lookup-free": {"bits": 5, "groups": 2},
    "residual": {"dim": 8, "codes": 12, "levels": 3, "dropout": True},
    "product": {"dim": 8, "codes": 12, "parts": 2},
    "pyramid": {"dim": 5, "pulses": 4},
}


@pytest.mark.parametrize("name", sorted(NAMES))
@pytest.mark.parametrize("seed", [0, 1])
def test_named_quantizers_keep_the_contract(name: str, seed: int) -> None:
    torch.manual_seed(seed)
    check_quantizer(create(name, **OPTIONS[name]), seed=seed)


def compositions() -> dict[str, Quantizer]:
    return {
        "projected": Quantize(
            Table(Trained(30, 4, nn.init.normal_)), before=nn.Linear(10, 4), after=nn.Linear(4, 10), dim=10
        ),
        "unit, rotated": Quantize(Table(Trained(30, 6), space="unit"), estimator=Rotation()),
        "split": Parallel([create("vq", dim=8, codes=9), create("residual", dim=8, codes=9, levels=2)], join="cat"),
        "projected residual": Residual(
            [create("vq", dim=3, codes=9) for _ in range(2)], before=nn.Linear(5, 3), after=nn.Linear(3, 5), dim=5
        ),
    }


@pytest.mark.parametrize("name", sorted(compositions()))
def test_compositions_keep_the_contract(name: str) -> None:
    torch.manual_seed(0)
    check_quantizer(compositions()[name])


def test_the_check_finds_a_quantizer_that_depends_on_its_batch() -> None:
    class Leaky(Quantize):
        def encode(self, z: torch.Tensor, **arguments: object) -> torch.Tensor:
            return super().encode(z - z.mean((0, 1), keepdim=True), **arguments)  # type: ignore[arg-type]

        def forward(self, z: torch.Tensor, **arguments: object):  # type: ignore[no-untyped-def, override]
            return super().forward(z - z.mean((0, 1), keepdim=True), **arguments)  # type: ignore[arg-type]

    with pytest.raises(AssertionError):
        check_quantizer(Leaky(Table(Trained(50, 4, nn.init.normal_))))
