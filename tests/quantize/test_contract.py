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
    "rotation-trick": {"dim": 8, "codes": 50},
    "vit-vqgan": {"dim": 8, "codes": 50},
    "affine": {"dim": 8, "codes": 50, "expire": 1.0},
    "in-place": {"dim": 8, "codes": 50},
    "synchronous": {"dim": 8, "codes": 50},
    "diveq": {"dim": 8, "codes": 50},
    "nsvq": {"dim": 8, "codes": 50},
    "stochastic": {"dim": 8, "codes": 50},
    "gumbel-straight-through": {"dim": 8, "codes": 50},
    "multi-head": {"dim": 8, "codes": 20, "heads": 2},
    "random-projection": {"dim": 8, "codes": 20, "code_dim": 3, "heads": 2},
    "orthogonal": {"dim": 8, "codes": 20},
    "diverse": {"dim": 8, "codes": 20},
    "fsq": {"levels": (5, 4, 3), "groups": 2},
    "symmetric-fsq": {"levels": (4, 2, 3), "groups": 2},
    "ifsq": {"levels": (5, 3)},
    "residual-fsq": {"levels": (5, 4, 3), "stages": 3},
    "fsp": {"levels": (5, 4, 3)},
    "latent": {"levels": (5, 4, 3)},
    "dimension-wise": {"dim": 4, "bits": 3},
    "lookup-free": {"bits": 5, "groups": 2},
    "group-wise": {"bits": 4, "groups": 3},
    "bsq": {"bits": 9, "group_bits": 3},
    "residual-lookup-free": {"bits": 5, "stages": 3},
    "bernoulli": {"bits": 4, "groups": 2, "prior_weight": 0.1},
    "binary-mapper": {"dim": 6, "bits": 4},
    "leech": {},
    "residual": {"dim": 8, "codes": 12, "levels": 3, "dropout": True},
    "shared-residual": {"dim": 8, "codes": 12, "levels": 3, "dropout": True},
    "sample-dropout-residual": {"dim": 8, "codes": 12, "levels": 3},
    "beam-residual": {"dim": 8, "codes": 12, "levels": 3, "beam": 3},
    "grouped-residual": {"dim": 8, "codes": 12, "groups": 2, "levels": 2, "dropout": True},
    "residual-simvq": {"dim": 8, "codes": 12, "levels": 2},
    "residual-diveq": {"dim": 8, "codes": 12, "levels": 2, "eval_beam": 4},
    "vq-vla": {"dim": 8, "codes": 12, "levels": 3},
    "qinco": {"dim": 8, "codes": 12, "levels": 3, "hidden": 6, "depth": 2},
    "disentangled": {"dim": 8, "codes": 12},
    "product": {"dim": 8, "codes": 12, "parts": 2},
    "pyramid": {"dim": 5, "pulses": 4},
    "additive": {"dim": 8, "codes": 12, "levels": 3},
    "free-additive": {"dim": 8, "codes": 12, "levels": 3, "beam": 6},
    "lsq": {"dim": 8, "codes": 12, "levels": 3, "rounds": 2},
    "composite": {"dim": 8, "codes": 12, "levels": 3},
    "opq": {"dim": 8, "codes": 12, "parts": 2},
    "rq-vae": {"dim": 8, "codes": 12, "levels": 3, "temperature": 0.5},
    "fvq": {"dim": 8, "codes": 64, "patch": 2, "head_dim": 8, "registers": 1},
    "residual-fvq": {"dim": 8, "codes": 64, "levels": 3, "patch": 2, "head_dim": 8},
    "linear-bridge": {"dim": 8, "codes": 50, "layers": 5},
    "ibq": {"dim": 8, "codes": 50},
    "normalised-ema": {"dim": 8, "codes": 50},
    "residual-normalised-ema": {"dim": 8, "codes": 12, "levels": 3},
    "vqrae": {"dim": 6, "codes": 50},
    "factorised": {"dim": 12, "codes": 50, "code_dim": 4},
    "dac": {"dim": 12, "codes": 20, "levels": 3, "code_dim": 4},
    "mimi": {"dim": 12, "codes": 20, "levels": 4},
    "sinkhorn": {"dim": 8, "codes": 50},
    "joint-index": {"dim": 10, "codes": 50, "pixel_weight": 0.5},
}

# Codes at several scales lie on other positions than latents: tests/quantize/test_multiscale.py checks these.
SCALE_OPTIONS = {
    "multi-scale": {"dim": 6, "codes": 20, "sizes": (1, 2, 4)},
    "multi-rate": {"dim": 6, "codes": 20},
}


def test_every_name_has_options_here() -> None:
    assert sorted([*OPTIONS, *SCALE_OPTIONS]) == sorted(NAMES)


@pytest.mark.parametrize("name", sorted(OPTIONS))
@pytest.mark.parametrize("seed", [0, 1])
def test_named_quantizers_keep_the_contract(name: str, seed: int) -> None:
    torch.manual_seed(seed)
    check_quantizer(create(name, **OPTIONS[name]), seed=seed)


@pytest.mark.parametrize("name", sorted(OPTIONS))
def test_no_positions_have_no_codes(name: str) -> None:
    quantizer = create(name, **OPTIONS[name])
    for training in (False, True):
        quantizer.train(training)
        z = torch.randn(2, 0, quantizer.dim, requires_grad=True)
        out = quantizer(z)
        assert out.z.shape == z.shape
        assert out.codes.shape == quantizer.encode(z).shape == (2, 0, len(quantizer.vocab))
        assert out.loss == 0
        (out.z.sum() + out.loss).backward()
        assert quantizer.decode(out.codes).shape == z.shape
        quantizer.update()


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
