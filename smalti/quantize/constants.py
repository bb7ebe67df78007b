"""Numbers that belong to a method, not to a model: they move with the module and keep every bit.

`module.half()` would round float buffers, and with them the codes. So float64 numbers are kept as the integers that
have their bits, which no change of a module's type touches.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn


def keep(module: nn.Module, name: str, numbers: Sequence[float] | Tensor) -> None:
    """Stores numbers under a module's buffer `name`; it is not part of the state dict."""
    module.register_buffer(name, torch.as_tensor(numbers, dtype=torch.float64).contiguous().view(torch.int64), False)


def kept(buffer: Tensor) -> Tensor:
    """The float64 numbers of a buffer that `keep` made."""
    return buffer.view(torch.float64)


RUN = 64  # rows that go through an elementwise operation as one


def keep_runs(module: nn.Module, name: str, numbers: Tensor) -> None:
    """`keep` for numbers (n, dim) that `in_long_runs` takes: as they are for RUN rows side by side."""
    keep(module, name, numbers.repeat(1, RUN))


def in_long_runs(x: Tensor, buffer: Tensor) -> tuple[Tensor, Tensor]:
    """x (..., dim) and the numbers (n, dim) of a buffer, in shapes that broadcast as fast as they can.

    On a CPU the inner loop of an operation is as long as the last axis, and those of scalar codes are a few numbers
    long: several rows side by side make it longer. The results are the same.
    """
    dim, numbers = buffer.shape[-1] // RUN, kept(buffer)
    if torch.compiler.is_compiling() or x.device.type != "cpu":
        return x.unflatten(-1, (-1, dim)), numbers[:, :dim]
    rows = math.gcd(x.numel() // dim, RUN)
    return x.reshape(-1, rows * dim), numbers[:, : rows * dim]
