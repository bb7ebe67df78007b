"""Quantizers on lattices, sums of codewords and rotations, by name."""

from __future__ import annotations

from smalti.quantize.base import Quantizer
from smalti.quantize.compose import Quantize
from smalti.quantize.pyramid import Pyramid, Search
from smalti.quantize.terms import Commitment


def pyramid(dim: int, pulses: int, *, search: Search = "exact", commitment_weight: float = 0.25) -> Quantizer:
    """Pyramid vector quantization: the direction of a point of the integer pyramid; nothing is stored."""
    return Quantize(Pyramid(dim, pulses, search=search), terms=[Commitment(commitment_weight)])
