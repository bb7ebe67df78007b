"""Quantizers whose codes lie at several scales, by name."""

from __future__ import annotations

from torch import nn

from smalti.quantize.base import Alphabet, Quantizer
from smalti.quantize.compose import Quantize
from smalti.quantize.directions import Directions
from smalti.quantize.estimators import CodebookOnly
from smalti.quantize.multiscale import MultiScale, PartialSums
from smalti.quantize.named.options import Count, Counts, Natural, Share, Weight
from smalti.quantize.scales import Interpolate, Sizes, Smoothing, Strides, average, repeat, shared_smoothings
from smalti.quantize.table import Table
from smalti.quantize.terms import Codebook, Commitment
from smalti.quantize.vectors import Trained

VAR_SIZES = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)


def multi_scale(
    dim: Count,
    codes: Count,
    *,
    sizes: Counts = VAR_SIZES,
    smoothings: Natural = 4,
    share: Share = 0.5,
    unit: bool = False,
    commitment_weight: Weight = 0.25,
) -> Quantizer:
    """VAR: one codebook at all scales; area down, bicubic up, smoothing convolutions that scales share.

    `smoothings` is how many convolutions there are (0: one per scale), `share` their part (0: none); with `unit`, codes
    are chosen by cosine.
    """
    scales = Sizes(sizes)
    rows = Trained(codes, dim)
    alphabet: Alphabet = Directions(Table(rows, space="unit")) if unit else Table(rows)
    level = Quantize(alphabet, estimator=CodebookOnly())
    made = [Smoothing(dim, share) for _ in range(smoothings or len(scales))] if share else [nn.Identity()]
    return MultiScale(
        [level] * len(scales),
        scales,
        down=Interpolate("area"),
        up=Interpolate("bicubic"),
        smooth=shared_smoothings(made, len(scales)),
        loss=PartialSums(commitment=commitment_weight),
    )


def multi_rate(
    dim: Count,
    codes: Count,
    *,
    strides: Counts = (4, 2, 1),
    code_dim: Count = 8,
    commitment_weight: Weight = 0.25,
) -> Quantizer:
    """SNAC: fewer codes per second at coarse levels; each projects to a few dimensions and chooses by cosine."""

    def level() -> Quantizer:
        return Quantize(
            Directions(Table(Trained(codes, code_dim, init=nn.init.normal_), space="unit")),
            before=nn.Linear(dim, code_dim),
            after=nn.Linear(code_dim, dim),
            dim=dim,
            terms=[Codebook(), Commitment(commitment_weight)],
        )

    return MultiScale(
        [level() for _ in strides], Strides(strides), down=average, up=repeat, estimator="levels", detach=False
    )
