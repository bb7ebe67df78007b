"""Quantizers: latents to codes and back, composed of few parts. Knows no modality.

    vq = Quantize(Table(Trained(1024, 32)), terms=[Codebook(), Commitment()])
    out = vq(z)                      # z (batch, *positions, 32) -> out.z, out.codes, out.loss, out.terms
    codes = vq.encode(z)             # (batch, *positions, 1), exact
    z_q = vq.decode(codes)

`create` builds the common ones by name.
"""

from smalti.quantize.assign import Assign, Assigned, Nearest, Sampled
from smalti.quantize.base import DROPPED, Alphabet, Noise, Quantized, Quantizer
from smalti.quantize.clustering import kmeans
from smalti.quantize.compose import Dropout, Parallel, Quantize, Residual
from smalti.quantize.estimators import Estimator, Rotation, StraightThrough
from smalti.quantize.named import NAMES, create
from smalti.quantize.neighbours import Prepared, nearest, nearest_k, prepare
from smalti.quantize.scalars import BoundFSQ, Scalars
from smalti.quantize.table import EMA, Expire, Frozen, Mapped, Table, Trained, Vectors, uniform
from smalti.quantize.terms import BitEntropy, Codebook, Commitment, SoftEntropy, Term, UniformPrior

__all__ = [
    "DROPPED",
    "EMA",
    "NAMES",
    "Alphabet",
    "Assign",
    "Assigned",
    "BitEntropy",
    "BoundFSQ",
    "Codebook",
    "Commitment",
    "Dropout",
    "Estimator",
    "Expire",
    "Frozen",
    "Mapped",
    "Nearest",
    "Noise",
    "Parallel",
    "Prepared",
    "Quantize",
    "Quantized",
    "Quantizer",
    "Residual",
    "Rotation",
    "Sampled",
    "Scalars",
    "SoftEntropy",
    "StraightThrough",
    "Table",
    "Term",
    "Trained",
    "UniformPrior",
    "Vectors",
    "create",
    "kmeans",
    "nearest",
    "nearest_k",
    "prepare",
    "uniform",
]
