"""Quantizers whose codebook is implicit in a grid of scalars, by name."""

from __future__ import annotations

from collections.abc import Sequence

from smalti.quantize.base import Quantizer
from smalti.quantize.bounds import BoundFSQ
from smalti.quantize.compose import Quantize
from smalti.quantize.entropy import BitEntropy
from smalti.quantize.scalars import Scalars
from smalti.quantize.terms import Commitment


def fsq(levels: Sequence[int], *, groups: int = 1) -> Quantizer:
    """Finite scalar quantization: every dimension bounded and rounded."""
    return Quantize(Scalars(levels, groups=groups, grid="fsq"), before=BoundFSQ(levels, groups))


def lookup_free(
    bits: int, *, groups: int = 1, entropy_weight: float = 0.1, commitment_weight: float = 0.25
) -> Quantizer:
    """Signs; an entropy term keeps them certain and the codes evenly used."""
    terms = [BitEntropy(entropy_weight), Commitment(commitment_weight)]
    return Quantize(Scalars((2,) * bits, groups=groups), terms=terms)
