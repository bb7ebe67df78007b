"""Which methods give a code's own vector the same code again, as the page on quantizers says."""

from __future__ import annotations

import pytest
import torch

from smalti.quantize import create
from tests.quantize.test_contract import OPTIONS

BOUNDED = {"fsq", "symmetric-fsq", "ifsq", "residual-fsq", "fsp"}
PROJECTED = {"factorised", "dac", "mimi", "vqrae", "random-projection", "binary-mapper"}
NOT_BY_DISTANCE = {"ibq", "gumbel"}
SUMS = {
    *("residual", "shared-residual", "sample-dropout-residual", "beam-residual", "grouped-residual", "residual-simvq"),
    *(
        "residual-normalised-ema",
        "vq-vla",
        "residual-diveq",
        "residual-fvq",
        "rq-vae",
        "qinco",
        "additive",
        "free-additive",
        "lsq",
        "composite",
    ),
}


@pytest.mark.parametrize("name", sorted(set(OPTIONS) - BOUNDED - PROJECTED - NOT_BY_DISTANCE - SUMS))
def test_codes_of_decoded_codes_are_the_codes(name: str) -> None:
    torch.manual_seed(0)
    quantizer = create(name, **OPTIONS[name]).eval()
    codes = quantizer.encode(torch.randn(4, 100, quantizer.dim) * 1.5)
    assert torch.equal(quantizer.encode(quantizer.decode(codes)), codes)


def test_the_largest_inner_product_of_a_row_can_be_anothers() -> None:
    quantizer = create("ibq", dim=1, codes=2).eval()
    with torch.no_grad():
        quantizer.alphabet.vectors.weight.copy_(torch.tensor([[1.0], [2.0]]))  # type: ignore[union-attr]
    assert int(quantizer.encode(quantizer.decode(torch.tensor([[[0]]])))) == 1
