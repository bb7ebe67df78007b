"""Float32 products of rows and codes by the faster of the two libraries that torch brings along.

`torch.mm` asks MKL, which leaves more than half of a processor unused if Intel did not make it; oneDNN, which torch's
own compiler asks, uses all of it. Which one is faster here is measured once per process, and so is whether either
rounds its operands: settings of torch and of the environment allow that, and most processors ignore them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import torch
from torch import Tensor

from smalti.quantize.base import full_precision

Product = Callable[[Tensor, Tensor, Tensor | None], Tensor]
Setting = tuple[str, bool]
GAIN = 1.1  # times as fast as MKL: anything less could be chance
ROUNDS = 4
SHAPE = 1024, 33, 1024  # as large as what a search asks for at once
# Libraries choose their way by shape: large and small products, single rows, and sizes that no vector width divides.
PROBED = SHAPE, (512, 64, 384), (7, 33, 50), (1, 64, 512), (130, 300, 257)
EXACT = 2**24  # float32 holds every whole number up to this


def product(x: Tensor, codes: Tensor, out: Tensor | None = None) -> Tensor:
    """x · codesᵀ: (n, D) and (K, D), float32 -> (n, K).

    Args:
        codes: each code's numbers must lie side by side.
        out: where the product may be written, and is if that saves memory.
    """
    with full_precision(x.device):
        return (_fastest(_setting()) if x.device.type == "cpu" else _by_torch)(x, codes, out)


def unit_roundoff(device: torch.device) -> float:
    """Relative rounding of one term of a `product`: on a CPU what it does, elsewhere what torch allows."""
    if device.type == "cpu":
        setting = _setting()
        with full_precision(device):
            return 2.0**-24 if _is_float32(_fastest(setting), setting) else 2.0**-8
    try:
        precision = torch.get_float32_matmul_precision()
    except RuntimeError:
        # torch answers so where only the newer switches per backend are set: the coarsest of them is always safe.
        return 2.0**-8
    return {"highest": 2.0**-24, "high": 2.0**-11}.get(precision, 2.0**-8)


def _by_torch(x: Tensor, codes: Tensor, out: Tensor | None) -> Tensor:
    return torch.mm(x, codes.t(), out=out) if out is not None and out.is_contiguous() else x @ codes.t()


def _by_onednn(x: Tensor, codes: Tensor, out: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, codes, None, "none", [], "")


def _setting() -> Setting:
    """What a program may change on the way that decides how products on a CPU round."""
    library: Any = torch.backends.mkldnn  # its stubs miss both
    return library.matmul.fp32_precision, library.enabled


@cache
def _fastest(setting: Setting) -> Product:
    """The faster one here; torch's own where the other is missing, switched off, no clear gain, or rounds operands."""
    _, enabled = setting
    if not enabled or not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return _by_torch
    if not _is_float32(_by_onednn, setting):
        return _by_torch
    if not _is_float32(_by_torch, setting):
        return _by_onednn
    rows, dim, codes = SHAPE
    x, table = (torch.ones(count, dim, dtype=torch.float32, device="cpu") for count in (rows, codes))
    seconds: dict[Product, float] = {}
    for _ in range(ROUNDS):
        for way in (_by_torch, _by_onednn):
            began = time.perf_counter()
            way(x, table, None)
            seconds[way] = min(time.perf_counter() - began, seconds.get(way, 1.0))
    return _by_onednn if seconds[_by_onednn] * GAIN < seconds[_by_torch] else _by_torch


@cache
def _is_float32(way: Product, setting: Setting) -> bool:
    """Whether a way multiplies and adds in float32: asked by sums that float32 holds exactly in whatever order."""
    return all(
        torch.equal(way(x, codes, None), (x.double() @ codes.double().t()).float())
        for shape in PROBED
        for x, codes in _whole_numbers(*shape)
    )


def _whole_numbers(rows: int, dim: int, codes: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Operands whose products stay below 2^24, and that coarser arithmetic would change.

    Rows of 22 bits against a few ±1, either way round: lost where operands are rounded, or split in two halves of 8
    bits. Numbers of half the bits each, all of them: lost where products or sums are rounded.
    """
    draw = torch.Generator("cpu").manual_seed(0)

    def numbers(count: int, below: int) -> Tensor:
        odd = torch.randint(below // 2, (count, dim), generator=draw, device="cpu") * 2 + 1
        sign = torch.randint(2, (count, dim), generator=draw, device="cpu") * 2 - 1
        return (odd * sign).float()

    def signs(count: int) -> Tensor:
        return numbers(count, 2) * (torch.arange(dim, device="cpu") < 4)

    yield numbers(rows, EXACT // 4), signs(codes)
    yield signs(rows), numbers(codes, EXACT // 4)
    half = 1 << ((EXACT // dim).bit_length() - 1) // 2
    yield numbers(rows, half), numbers(codes, half)
