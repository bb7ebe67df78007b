"""Convolutional pieces of image networks that run faster than their plain spelling, with the same result.

On a CPU a large activation costs more to allocate than to compute, so what nobody needs again is overwritten, and
resampling is merged into the convolution beside it.
"""

from __future__ import annotations

from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)


def channels_last(module: M) -> M:
    """Lays out a module's convolution weights channels-last, which activations then follow."""
    return module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def swish(x: Tensor) -> Tensor:
    """x * sigmoid(x) of a tensor that nobody needs again: in place where no gradient is recorded."""
    return F.silu(x, inplace=not torch.is_grad_enabled())


def upsampled_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Nearest-neighbour upsampling by 2 and a 3x3 convolution, as one transposed convolution.

    After nearest upsampling two of the three rows (and columns) under a 3x3 kernel are one input row, so every output
    pixel sees 2x2 input pixels through sums of the kernel's taps. The four phases of output pixels together are a
    transposed convolution with a 4x4 kernel of stride 2: 2.25 times fewer multiplications, and no upsampled image.

    Args:
        x: (batch, in, H, W).
        weight: (out, in, 3, 3), of the convolution that follows the upsampling, with one pixel of zero padding.
        bias: (out,), or None.

    Returns:
        (batch, out, 2H, 2W).
    """
    taps = _merge_taps(_merge_taps(weight.permute(2, 3, 1, 0), 0), 1)
    return F.conv_transpose2d(x, taps.permute(2, 3, 0, 1), bias, stride=2, padding=1)


def _merge_taps(taps: Tensor, axis: int) -> Tensor:
    """The four taps along an axis of the transposed kernel, from the three of the kernel."""
    first, middle, last = taps.unbind(axis)
    return torch.stack([last, middle + last, first + middle, first], dim=axis)
