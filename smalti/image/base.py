"""What image tokenizers share: legal input, the value range, and extents that are no multiple of the grid.

(B,3,H,W) in [0,1] ──► [-1,1], edges repeated to a multiple of `factor` ──► network
(B,3,H,W) in [0,1] ◄── clamped, cut to the size in side ◄────────────────── network
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from smalti.errors import InputError
from smalti.tokenizer import NeuralTokenizer
from smalti.tokens import Side

RANGE_SLACK = 1e-4  # bicubic resizing and float16 files overshoot [0,1] by that much


class ImageTokenizer(NeuralTokenizer):
    """Base of tokenizers of RGB images.

    Attributes:
        factor: pixels per position, in both directions.
        channels: image channels that the network takes.
    """

    modality: ClassVar[str] = "image"
    grid_axes: ClassVar[int | None] = 2
    outputs: ClassVar[tuple[str, ...]] = ("pixels",)
    factor: int
    channels: int = 3

    def prepare(self, x: Tensor, **conditions: Any) -> tuple[Tensor, dict[str, Side]]:
        check_images(x, self.channels)
        height, width = x.shape[-2:]
        padded = F.pad(x.float(), (0, -width % self.factor, 0, -height % self.factor), mode="replicate")
        return padded * 2 - 1, {"size": torch.tensor([[height, width]] * len(x))}

    def finish(self, outputs: Tensor, side: Mapping[str, Side], **conditions: Any) -> Tensor:
        pixels = ((outputs + 1) / 2).clamp(0, 1)
        if "size" not in side:
            return pixels
        sizes = torch.as_tensor(side["size"])
        height, width = (int(extent) for extent in sizes[0])
        return pixels[..., :height, :width]

    def check_raw(self, inputs: Tensor) -> None:
        super().check_raw(inputs)
        factor = self.factor
        if inputs.ndim != 4 or inputs.shape[1] != self.channels or inputs.shape[2] % factor or inputs.shape[3] % factor:
            raise InputError(
                f"raw images must be (batch, {self.channels}, height, width), both sides multiples of {factor}, "
                f"got {tuple(inputs.shape)}"
            )

    def preprocessing(self) -> dict[str, Any]:
        return {"range": [-1, 1], "pad": "replicate", "factor": self.factor}


def check_images(x: Tensor, channels: int = 3) -> None:
    """Raises InputError unless x is (B, channels, H, W), floating, finite and in [0,1]."""
    if x.ndim != 4 or x.shape[1] != channels or not x.is_floating_point() or x.numel() == 0:
        raise InputError(
            f"images must be floating, (batch, {channels}, height, width) in [0,1], got {x.dtype} {tuple(x.shape)}"
        )
    low, high = (float(value) for value in x.aminmax())
    if not (low >= -RANGE_SLACK and high <= 1 + RANGE_SLACK):  # a NaN fails both comparisons
        problem = "NaN or infinity" if not torch.isfinite(x).all() else f"values in [{low:.4g}, {high:.4g}]"
        raise InputError(f"images must be finite and in [0,1], got {problem}; raw=True takes the model's own range")
