"""Convolution over channel-last sequences, and the padding rules of audio networks.

    x (B,T,C) ──pad──► (B,T+p,C) ──Conv1d──► (B,L,C_out)        L = (T + p - reach) // stride + 1

Channel-last is the layout of latents everywhere in Smalti, of attention, LayerNorm, LSTM and linear layers; what is
left are the convolutions, and on a CPU each shape has its own quickest way (same maths, other order of sums):

    kernel 1                      a matrix product
    one input channel             a product with the windows of the signal
    many channels, no gradient    a product per kernel tap with shifted rows: no copies of windows, no reordered weights
    the rest                      a two-dimensional convolution of height 1, channels-last
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PadMode = Literal["reflect", "constant"]

# From here on a product per tap reaches the speed of a plain matrix product, and a convolution that reorders megabytes
# of weights at every call does not (measured; at 128 channels the convolution still wins).
WIDE = 256


class Conv1d(nn.Module):
    """A convolution without padding of its own.

    Args:
        in_channels, out_channels, kernel, stride, dilation, groups: as in `torch.nn.Conv1d`.

    Shape:
        (batch, time, in_channels)  ->  (batch, (time - reach) // stride + 1, out_channels)

    State:
        weight (out_channels, in_channels / groups, kernel), as every checkpoint has it; in memory the channels of a tap
        lie side by side. bias (out_channels,).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        *,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
    ) -> None:
        super().__init__()
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        self.kernel, self.stride, self.dilation = kernel, stride, dilation
        self.weight = nn.Parameter(torch.empty(out_channels, kernel, in_channels // groups).transpose(1, 2))
        self.bias = nn.Parameter(torch.empty(out_channels))
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))  # torch's own start of a convolution
        bound = 1 / math.sqrt(kernel * in_channels // groups)
        nn.init.uniform_(self.bias, -bound, bound)

    @property
    def reach(self) -> int:
        """Samples that one output sees, from first to last."""
        return (self.kernel - 1) * self.dilation + 1

    def forward(self, x: Tensor) -> Tensor:
        if self.groups == 1:
            if self.kernel == self.stride == 1:
                return F.linear(x, self.weight[:, :, 0], self.bias)
            if self.in_channels == 1 and self.dilation == 1:
                return F.linear(x[..., 0].unfold(1, self.kernel, self.stride), self.weight[:, 0], self.bias)
            if self._taps_are_rows(x):
                return self._by_taps(x)
        weight = self.weight[:, :, None]
        image = x[:, None].permute(0, 3, 1, 2)  # (B,C,1,T), channels-last in memory without a copy
        out = F.conv2d(image, weight, self.bias, (1, self.stride), 0, (1, self.dilation), self.groups)
        return out.permute(0, 2, 3, 1)[:, 0]

    def _taps_are_rows(self, x: Tensor) -> bool:
        if self.in_channels < WIDE or x.device.type != "cpu" or not sums_in_place(x) or not x.is_contiguous():
            return False
        return self.stride == 1 or (self.dilation == 1 and self.kernel % self.stride == x.shape[1] % self.stride == 0)

    def _by_taps(self, x: Tensor) -> Tensor:
        """Rows of `stride` samples side by side; tap j multiplies the rows that start j (times dilation) later."""
        taps = self.kernel // self.stride
        rows = x.view(-1, self.stride * self.in_channels)
        length = len(rows) - (taps - 1) * self.dilation
        weights = self.weight.transpose(1, 2).reshape(self.out_channels, taps, -1).unbind(1)
        out = torch.addmm(self.bias, rows[:length], weights[0].t())
        for tap, weight in enumerate(weights[1:], start=1):
            out.addmm_(rows[tap * self.dilation :][:length], weight.t())
        if len(x) == 1:
            return out[None]
        # Rows that reach from one sequence into the next are computed too, and dropped here.
        whole = F.pad(out, (0, 0, 0, len(rows) - length)).view(len(x), -1, self.out_channels)
        return whole[:, : whole.shape[1] - (taps - 1) * self.dilation]


def sums_in_place(x: Tensor) -> bool:
    """Whether products may be added into a tensor in place: no gradient is recorded, and autocast mixes no types."""
    return not torch.is_grad_enabled() and not torch.is_autocast_enabled(x.device.type)


def pad(x: Tensor, left: int, right: int, mode: PadMode) -> Tensor:
    """Pads (batch, time, channels) in time; x itself comes back where there is nothing to add.

    A signal too short to be reflected is lengthened by zeros on its right until it can be, and as much is cut off the
    right end afterwards: the rule that EnCodec and all its descendants were trained with.
    """
    if left == 0 and right == 0:
        return x
    if mode == "constant":
        return F.pad(x, (0, 0, left, right))
    missing = max(0, max(left, right) - x.shape[1] + 1)
    if missing:
        x = F.pad(x, (0, 0, 0, missing))
    end = x.shape[1] - 1
    # Three copies of whole rows; torch's own reflection computes the address of every element.
    mirrored = torch.cat([x[:, 1 : left + 1].flip(1), x, x[:, end - right : end].flip(1)], dim=1)
    return mirrored[:, : mirrored.shape[1] - missing]
