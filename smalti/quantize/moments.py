"""Moments: draws each dimension of the latents to a mean, variance, skewness and kurtosis.

It takes the place of a codebook's terms where scalars are rounded after a cumulative function: latents of the right
distribution use all levels evenly.

Source: "Finite Scalar Perturbation" (arXiv 2602.17133).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from smalti.quantize.assign import Assigned
from smalti.quantize.base import Alphabet
from smalti.quantize.terms import Term


@dataclass
class Moments(Term):
    """Weighted squared deviations of the batch's moments from those wanted, averaged over dimensions.

    Args:
        weight: of the whole term.
        variance: wanted; 1 for normal latents, pi²/12 for tanh, pi²/3 for sigmoid, 2 for Laplace.
        mean_weight: the mean is drawn to 0.
        variance_weight: its weight.
        skewness_weight: the skewness is drawn to 0.
        kurtosis_weight: the excess kurtosis is drawn to 0.
    """

    name: ClassVar[str] = "moments"
    weight: float = 1.0
    variance: float = 1.0
    mean_weight: float = 0.1
    variance_weight: float = 0.07
    skewness_weight: float = 0.0
    kurtosis_weight: float = 0.0

    def __call__(self, x: Tensor, assigned: Assigned, alphabet: Alphabet) -> Tensor:
        mean = x.mean(0)
        # The variance of a single row is undefined; it says nothing.
        variance = (x - mean).square().sum(0) / max(1, len(x) - 1)
        score = (x - mean) / variance.sqrt().clamp(min=1e-8)
        deviations = (
            (self.mean_weight, mean),
            (self.variance_weight, variance - self.variance),
            (self.skewness_weight, score.pow(3).mean(0)),
            (self.kurtosis_weight, score.pow(4).mean(0) - 3),
        )
        # A moment without weight is left out: its gradient would be 0 times infinity where the variance is 0.
        used = [weight * deviation.square().mean() for weight, deviation in deviations if weight]
        return sum(used, start=x.new_zeros(()))


# Wanted variances and weights by the names that they were published under.
PRESETS: dict[str, Moments] = {
    "none": Moments(mean_weight=0.0, variance_weight=0.0),
    "var": Moments(),
    "kurt": Moments(skewness_weight=0.06, kurtosis_weight=0.05),
    "var_tanh": Moments(variance=0.8225),
    "var_sigmoid": Moments(variance=3.29),
    "var_laplace": Moments(variance=2.0),
}
