"""Quantizers: latents to codes and back, composed of few parts. Knows no modality.

    vq = Quantize(Table(Trained(1024, 32)), terms=[Codebook(), Commitment()])
    out = vq(z)                      # z (batch, *positions, 32) -> out.z, out.codes, out.loss, out.terms
    codes = vq.encode(z)             # (batch, *positions, 1), exact
    z_q = vq.decode(codes)

`create` builds the common ones by name.
"""

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
from smalti.quantize.residual import Residual
from smalti.quantize.revival import Expire, Revive
from smalti.quantize.revivals import Anchors, BelowMean, IntervalRestart, RarelyUsed, Unused
from smalti.quantize.scalar_noise import Bernoulli, NoiseDropout, Perturbed
from smalti.quantize.scalars import Scalars
from smalti.quantize.scales import Interpolate, Scales, Sizes, Smoothing, Strides
from smalti.quantize.sinkhorn import Sinkhorn
from smalti.quantize.soft import Drawn, Soft
from smalti.quantize.table import Table
from smalti.quantize.terms import Codebook, Commitment, Term, UniformPrior
from smalti.quantize.tiling import TiledEMA, TiledRestart
from smalti.quantize.vectors import Bridged, Frozen, Mapped, Trained, Vectors, uniform
from smalti.quantize.vqp import from_vqp
from smalti.quantize.warped import Through, Warped

__all__ = [
    "DROPPED",
    "EMA",
    "NAMES",
    "NSVQ",
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
    "Codebook",
    "CodebookOnly",
    "Commitment",
    "Conditional",
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
    "LevelDropout",
    "Levels",
    "LinearBridge",
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
    "Quantize",
    "Quantized",
    "Quantizer",
    "RarelyUsed",
    "RawLatent",
    "Residual",
    "ResidualMLP",
    "Revive",
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
    "code_cross_entropy",
    "create",
    "from_vqp",
    "join_codes",
    "kmeans",
    "leech_codebook",
    "log_added",
    "log_clamped",
    "materialise",
    "nearest",
    "nearest_k",
    "prepare",
    "reverse_digits",
    "split_codes",
    "uniform",
]
