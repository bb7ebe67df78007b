"""Float32 products of rows and codes by the faster of the two libraries that torch brings along.

`torch.mm` asks MKL, which leaves more than half of a processor unused if Intel did not make it; oneDNN, which torch's
own compiler asks, uses all of it. Both add in float32. Which one is faster here is measured once per process.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from smalti.quantize.base import full_precision

Product = Callable[[Tensor, Tensor, Tensor | None], Tensor]
GAIN = 1.1  # times as fast as MKL: anything less could be chance
ROUNDS = 4
SHAPE = 1024, 33, 1024  # as large as what a search asks for at once


def product(x: Tensor, codes: Tensor, out: Tensor | None = None) -> Tensor:
    """x · codesᵀ: (n, D) and (K, D), float32 -> (n, K).

    Args:
        codes: each code's numbers must lie side by side.
        out: where the product may be written, and is if that saves memory.
    """
    with full_precision(x.device):
        return (_fastest() if x.device.type == "cpu" else _by_torch)(x, codes, out)


def _by_torch(x: Tensor, codes: Tensor, out: Tensor | None) -> Tensor:
    return torch.mm(x, codes.t(), out=out) if out is not None and out.is_contiguous() else x @ codes.t()


def _by_onednn(x: Tensor, codes: Tensor, out: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, codes, None, "none", [], "")


@cache
def _fastest() -> Product:
    """The faster one on this processor; torch's own where the other is missing or no clear gain."""
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return _by_torch
    rows, dim, codes = SHAPE
    x, table = torch.ones(rows, dim), torch.ones(codes, dim)
    seconds: dict[Product, float] = {}
    for _ in range(ROUNDS):
        for way in (_by_torch, _by_onednn):
            began = time.perf_counter()
            way(x, table, None)
            seconds[way] = min(time.perf_counter() - began, seconds.get(way, 1.0))
    return _by_onednn if seconds[_by_onednn] * GAIN < seconds[_by_torch] else _by_torch
