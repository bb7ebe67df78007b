"""Quantizers: latents to codes and back, composed of few parts. Knows no modality.

    vq = Quantize(Table(Trained(1024, 32)), terms=[Codebook(), Commitment()])
    out = vq(z)                      # z (batch, *positions, 32) -> out.z, out.codes, out.loss, out.terms
    codes = vq.encode(z)             # (batch, *positions, 1), exact
    z_q = vq.decode(codes)

`create` builds the common ones by name.
"""

from smalti.quantize.adaptive import Adapted, Clusters, adapt, cosine_kmeans
from smalti.quantize.additive import Additive, ConstantProducts, LeastSquares, LocalSearch
from smalti.quantize.affine import Affine
from smalti.quantize.assign import Assign, Assigned, Given, Nearest, Rows, Sampled
from smalti.quantize.base import DROPPED, Alphabet, Noise, Quantized, Quantizer
from smalti.quantize.beam import Beam
from smalti.quantize.bounds import BoundFSQ, Cumulative, HardClamp, SoftClamp, Standardise, Turn, UnitSphere
from smalti.quantize.bridge import LinearBridge, ModulatedBridge, VQBridge, materialise
from smalti.quantize.clustering import kmeans
from smalti.quantize.code_terms import CrossEntropyCommitment, Diversity, Mutual, Orthogonal, code_cross_entropy
from smalti.quantize.compose import Quantize
from smalti.quantize.conditional import Conditional, ResidualMLP
from smalti.quantize.directions import Directions
from smalti.quantize.disentanglement import Disentanglement
from smalti.quantize.dropout import Dropout, LevelDropout, SampleDropout
from smalti.quantize.entropy import (
    BitEntropy,
    DotEntropy,
    FreeBits,
    ScalarEntropy,
    SoftEntropy,
    Softplus,
    log_added,
    log_clamped,
)
from smalti.quantize.enumeration import Enumeration
from smalti.quantize.estimators import (
    NSVQ,
    CodebookOnly,
    DiVeQ,
    Estimator,
    RawLatent,
    Rotation,
    StraightThrough,
    Synchronous,
)
from smalti.quantize.halves import Halves
from smalti.quantize.heads import Heads
from smalti.quantize.index_backprop import DoubleQuantization, IndexBackprop
from smalti.quantize.indices import join_codes, reverse_digits, split_codes
from smalti.quantize.joint import Joint
from smalti.quantize.lattice import leech_codebook
from smalti.quantize.learning import EMA, Gradient, InPlace, Learning, SmoothedEMA, StepwiseEMA
from smalti.quantize.levels import Levels
from smalti.quantize.moments import Moments
from smalti.quantize.multiscale import MultiScale, PartialSums, Prefixes
from smalti.quantize.named import NAMES, create
from smalti.quantize.neighbours import Prepared, nearest, nearest_k, prepare
from smalti.quantize.normalised_ema import NormalisedEMA
from smalti.quantize.one_hot import BinaryMapping, OneHot
from smalti.quantize.parallel import Parallel
from smalti.quantize.pyramid import Pyramid, beta_levels, nearest_pulses
from smalti.quantize.residual import Residual
from smalti.quantize.revival import Expire, Revive
from smalti.quantize.revivals import Anchors, BelowMean, IntervalRestart, RarelyUsed, Unused
from smalti.quantize.rotated import Rotated, fit_product
from smalti.quantize.rq_codes import Stochastic, soft_codes
from smalti.quantize.scalar_noise import Bernoulli, NoiseDropout, Perturbed
from smalti.quantize.scalars import Scalars
from smalti.quantize.scales import Interpolate, Scales, Sizes, Smoothing, Strides
from smalti.quantize.sinkhorn import Sinkhorn
from smalti.quantize.soft import Drawn, Soft
from smalti.quantize.table import Table
from smalti.quantize.taxonomy import taxonomy
from smalti.quantize.terms import Codebook, Commitment, Remainder, Term, UniformPrior
from smalti.quantize.tiling import TiledEMA, TiledRestart
from smalti.quantize.vectors import Bridged, Frozen, Mapped, Trained, Vectors, uniform
from smalti.quantize.vqp import from_vqp
from smalti.quantize.warped import Through, Warped

__all__ = [
    "DROPPED",
    "EMA",
    "NAMES",
    "NSVQ",
    "Adapted",
    "Additive",
    "Affine",
    "Alphabet",
    "Anchors",
    "Assign",
    "Assigned",
    "Beam",
    "BelowMean",
    "Bernoulli",
    "BinaryMapping",
    "BitEntropy",
    "BoundFSQ",
    "Bridged",
    "Clusters",
    "Codebook",
    "CodebookOnly",
    "Commitment",
    "Conditional",
    "ConstantProducts",
    "CrossEntropyCommitment",
    "Cumulative",
    "DiVeQ",
    "Directions",
    "Disentanglement",
    "Diversity",
    "DotEntropy",
    "DoubleQuantization",
    "Drawn",
    "Dropout",
    "Enumeration",
    "Estimator",
    "Expire",
    "FreeBits",
    "Frozen",
    "Given",
    "Gradient",
    "Halves",
    "HardClamp",
    "Heads",
    "InPlace",
    "IndexBackprop",
    "Interpolate",
    "IntervalRestart",
    "Joint",
    "Learning",
    "LeastSquares",
    "LevelDropout",
    "Levels",
    "LinearBridge",
    "LocalSearch",
    "Mapped",
    "ModulatedBridge",
    "Moments",
    "MultiScale",
    "Mutual",
    "Nearest",
    "Noise",
    "NoiseDropout",
    "NormalisedEMA",
    "OneHot",
    "Orthogonal",
    "Parallel",
    "PartialSums",
    "Perturbed",
    "Prefixes",
    "Prepared",
    "Pyramid",
    "Quantize",
    "Quantized",
    "Quantizer",
    "RarelyUsed",
    "RawLatent",
    "Remainder",
    "Residual",
    "ResidualMLP",
    "Revive",
    "Rotated",
    "Rotation",
    "Rows",
    "SampleDropout",
    "Sampled",
    "ScalarEntropy",
    "Scalars",
    "Scales",
    "Sinkhorn",
    "Sizes",
    "SmoothedEMA",
    "Smoothing",
    "Soft",
    "SoftClamp",
    "SoftEntropy",
    "Softplus",
    "Standardise",
    "StepwiseEMA",
    "Stochastic",
    "StraightThrough",
    "Strides",
    "Synchronous",
    "Table",
    "Term",
    "Through",
    "TiledEMA",
    "TiledRestart",
    "Trained",
    "Turn",
    "UniformPrior",
    "UnitSphere",
    "Unused",
    "VQBridge",
    "Vectors",
    "Warped",
    "adapt",
    "beta_levels",
    "code_cross_entropy",
    "cosine_kmeans",
    "create",
    "fit_product",
    "from_vqp",
    "join_codes",
    "kmeans",
    "leech_codebook",
    "log_added",
    "log_clamped",
    "materialise",
    "nearest",
    "nearest_k",
    "nearest_pulses",
    "prepare",
    "reverse_digits",
    "soft_codes",
    "split_codes",
    "taxonomy",
    "uniform",
]
