"""Additive quantization: a vector is the sum of one codeword from each of M codebooks of full width.

Sources: "Additive Quantization for Extreme Vector Compression" (2014), "Revisiting Additive Quantization" (LSQ, 2016),
"LSQ++: Lower Running Time and Higher Recall in Multi-codebook Quantization" (2018), "Composite Quantization for
Approximate Nearest Neighbor Search" (CQ, 2014).

    energy.py     E(i) = |x - sum_m C_m[i_m]|² as a table of codewords and a table of pairs
    encoders.py   which codes: Ordered | Beam | LocalSearch | Exhaustive
    fitting.py    codebooks from vectors: residual k-means, least squares, LSQ and LSQ++
    alphabet.py   the alphabet of a quantizer, trained by gradient or by least squares; CQ's term
    scoring.py    distances from queries to codes through look-up tables
"""

from smalti.quantize.additive.alphabet import Additive, ConstantProducts, LeastSquares
from smalti.quantize.additive.encoders import Beam, Encoder, Exhaustive, LocalSearch, Ordered
from smalti.quantize.additive.energy import Energy, add_up
from smalti.quantize.additive.fitting import Fit, fit, least_squares, normal_equations, residual_kmeans
from smalti.quantize.additive.scoring import Scores

__all__ = [
    "Additive",
    "Beam",
    "ConstantProducts",
    "Encoder",
    "Energy",
    "Exhaustive",
    "Fit",
    "LeastSquares",
    "LocalSearch",
    "Ordered",
    "Scores",
    "add_up",
    "fit",
    "least_squares",
    "normal_equations",
    "residual_kmeans",
]
