"""PatchGAN: a discriminator that judges overlapping patches of an image, one logit each.

Source: "Image-to-Image Translation with Conditional Adversarial Networks" (2016); VQGAN, LlamaGen and SimVQ train
against this one.

    image (B,3,H,W) ──conv /2──► width ──conv /2, norm──► 2 width ─ ... ─conv, norm──► conv ──► (B,1,h,w)      all 4x4
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.distributed as dist
from pydantic import Field
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce

import smalti.config
from smalti.errors import InputError
from smalti.quantize.distributed import active

WIDEST = 8  # times `width`
SPREAD = 0.02  # standard deviation of the initial weights


class PatchGAN(nn.Module):
    """Judges patches. Parameters carry the names of pix2pix, taming-transformers and LlamaGen (`main.N.*`).

    Shape:
        (B, channels, H, W)  ->  logits (B, 1, h, w), with h about H / 2^layers; 30 by 30 of 256 by 256 pixels at 3

    Raises:
        InputError: for images too small for a logit.
    """

    class Config(smalti.config.Config):
        """Defaults: VQGAN, LlamaGen and SimVQ. At 2, 3, 4 layers a logit sees 34, 70, 142 pixels.

        Args:
            channels: of the images.
            width: channels of the first layer; they double per layer, up to eight times.
            layers: layers of stride 2.
        """

        channels: int = Field(3, ge=1)
        width: int = Field(64, ge=1)
        layers: int = Field(3, ge=1, le=6)

        def build(self) -> PatchGAN:
            return PatchGAN(self)

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        widths = [config.width * min(2**index, WIDEST) for index in range(config.layers + 1)]
        modules: list[nn.Module] = [_conv(config.channels, widths[0], stride=2), nn.LeakyReLU(0.2)]
        for index, (inputs, outputs) in enumerate(pairwise(widths), 1):
            stride = 2 if index < config.layers else 1
            # The normalisation shifts by itself, so the convolution in front of it has no bias.
            modules += [_conv(inputs, outputs, stride, bias=False), BatchNorm(outputs), nn.LeakyReLU(0.2)]
        modules.append(_conv(widths[-1], 1, stride=1))
        self.main = nn.Sequential(*modules)
        self.apply(_initialise)

    @property
    def least(self) -> int:
        """The smallest side of an image that gives a logit."""
        strides = [module.stride[0] for module in self.main if isinstance(module, nn.Conv2d)]
        side = 1
        for stride in reversed(strides):
            side = (side - 1) * stride + 2  # kernel 4, one pixel of padding on both sides
        return side

    def forward(self, images: Tensor) -> Tensor:
        if min(images.shape[-2:]) < self.least:
            raise InputError(
                f"a PatchGAN of {self.config.layers} layers needs {self.least} pixels a side, "
                f"got {tuple(images.shape[-2:])}: train on larger crops, or take fewer layers"
            )
        return self.main(images)


class BatchNorm(nn.BatchNorm2d):
    """Batch normalisation over all ranks together, so that two ranks judge as one process would.

    (torch's SyncBatchNorm needs GPUs.)
    """

    def forward(self, x: Tensor) -> Tensor:
        if not (self.training and active()):
            return super().forward(x)
        count = x.numel() // x.shape[1] * dist.get_world_size()
        mean = all_reduce(x.sum((0, 2, 3))) / count
        centred = x - mean[:, None, None]
        variance = all_reduce(centred.square().sum((0, 2, 3))) / count
        self._track(mean.detach(), variance.detach() * count / max(1, count - 1))
        scale = self.weight / (variance + self.eps).sqrt()
        return centred * scale[:, None, None] + self.bias[:, None, None]

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor) -> None:
        assert self.running_mean is not None and self.running_var is not None and self.momentum is not None
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance, self.momentum)
        if self.num_batches_tracked is not None:
            self.num_batches_tracked += 1


def _conv(inputs: int, outputs: int, stride: int, *, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 4, stride, padding=1, bias=bias)


def _initialise(module: nn.Module) -> None:
    """Weights N(0, 0.02); gains of norms N(1, 0.02), shifts zero. Biases of convolutions keep torch's start."""
    if isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, 0.0, SPREAD)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, SPREAD)
        nn.init.zeros_(module.bias)
