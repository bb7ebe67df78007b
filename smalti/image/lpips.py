"""LPIPS 0.1: how different two images look to a network trained on ImageNet.

Source: "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric" (2018).

    [0,1] ──►[-1,1]──shift, scale──► VGG16 or AlexNet ──five taps──► unit vectors per pixel
                                                                        │ squared difference
    one number per image ◄──sum of taps ◄──mean over pixels ◄──learned weight per channel

Papers' tables mostly use AlexNet, training losses VGG16: the numbers differ, and `LPIPSDistance.protocol` says which.
Smalti ships no weights. They come from two files, or from one VQGAN checkpoint that carries them for its loss:

    backbone    torchvision's vgg16 or alexnet        features.{i}.{weight,bias}     classifier.* is ignored
    heads       lpips/weights/v0.1/{vgg,alex}.pth     lin{0..4}.model.1.weight
    both        a taming-transformers checkpoint      loss.perceptual_loss. + {net.slice{1..5}.{i}.*, lin{0..4}.*}
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

import torch
from torch import Tensor, nn

from smalti.checkpoint import read_official, rename
from smalti.errors import ConfigError, InputError, UnavailableError
from smalti.folder import fill
from smalti.metric import SampleMean

Network = Literal["vgg", "alex"]

# The standardisation of ImageNet, restated for inputs in [-1,1].
SHIFT = (-0.030, -0.088, -0.188)
SCALE = (0.458, 0.448, 0.450)
EPSILON = 1e-10  # added to the norm of a pixel's features

PERCEPTUAL_LOSS_KEYS = (
    (r"^(loss\.)?perceptual_loss\.", ""),
    (r"^net\.slice\d+\.", "features."),
    (r"^lin(\d)\.model\.1\.", r"heads.\1."),
)


@dataclass(frozen=True)
class Backbone:
    """A feature stack of torchvision: its layers in order, so that indices are those of the published keys.

    Args:
        layers: (channels, kernel, stride, padding) of a convolution, each followed by a ReLU; (kernel, stride) of a
            max pool.
        taps: indices of the ReLUs whose outputs are compared.
        widths: channels at the taps.
        least: the smallest side that the stack can take.
    """

    layers: tuple[tuple[int, ...], ...]
    taps: tuple[int, ...]
    widths: tuple[int, ...]
    least: int

    def build(self) -> nn.Sequential:
        modules: list[nn.Module] = []
        channels = 3
        for layer in self.layers:
            if len(layer) == 2:
                modules.append(nn.MaxPool2d(layer[0], layer[1]))
                continue
            width, kernel, stride, padding = layer
            modules += [nn.Conv2d(channels, width, kernel, stride, padding), nn.ReLU()]
            channels = width
        return nn.Sequential(*modules[: self.taps[-1] + 1])  # nothing behind the last tap is compared


def _vgg16_layers() -> tuple[tuple[int, ...], ...]:
    blocks = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
    return tuple(layer for width, count in blocks for layer in ((width, 3, 1, 1),) * count + ((2, 2),))


BACKBONES: dict[Network, Backbone] = {
    "vgg": Backbone(_vgg16_layers(), taps=(3, 8, 15, 22, 29), widths=(64, 128, 256, 512, 512), least=16),
    "alex": Backbone(
        ((64, 11, 4, 2), (3, 2), (192, 5, 1, 2), (3, 2), (384, 3, 1, 1), (256, 3, 1, 1), (256, 3, 1, 1)),
        taps=(1, 4, 7, 9, 11),
        widths=(64, 192, 384, 256, 256),
        least=31,
    ),
}


class LPIPS(nn.Module):
    """The distance of two batches of images, differentiable; the network itself is frozen.

    Weights are random until they are loaded: use `from_files` or `from_state`.

    Args:
        network: "vgg" or "alex".

    Shape:
        (B, 3, H, W) twice, in [0,1]  ->  (B,)
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, network: Network = "vgg") -> None:
        super().__init__()
        if network not in BACKBONES:
            raise ConfigError(f"network must be one of {', '.join(BACKBONES)}; got {network!r}")
        self.network = network
        self.backbone = BACKBONES[network]
        self.features = self.backbone.build()
        self.heads = nn.ModuleList(nn.Conv2d(width, 1, 1, bias=False) for width in self.backbone.widths)
        self.register_buffer("shift", torch.tensor(SHIFT)[:, None, None], persistent=False)
        self.register_buffer("scale", torch.tensor(SCALE)[:, None, None], persistent=False)
        self.requires_grad_(False).eval()

    @classmethod
    def from_files(cls, backbone: str | Path | None, heads: str | Path | None = None, network: Network = "vgg") -> Self:
        """Reads published weights.

        Args:
            backbone: torchvision's file, or a taming-transformers checkpoint, which carries the heads too.
            heads: LPIPS's own file; None if the first file carries them.
            network: which network the files are of.

        Raises:
            UnavailableError: if no file is given; it says which are needed.
            CheckpointError: if a file can't be read safely, or does not fit.
        """
        if backbone is None:
            raise UnavailableError(
                f"LPIPS needs weights that Smalti does not ship: torchvision's "
                f"{'vgg16' if network == 'vgg' else 'alexnet'} file as backbone, and weights/v0.1/{network}.pth of the "
                "lpips repository (richzhang/PerceptualSimilarity) as heads"
            )
        state = dict(read_official(backbone).state)
        if heads is not None:
            state |= read_official(heads).state
        return cls.from_state(state, network)

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor], network: Network = "vgg") -> Self:
        """Weights under the keys that the module's docstring lists; keys of anything else are ignored.

        Raises:
            CheckpointError: if one of the network's weights is missing or of another shape.
        """
        model = cls(network)
        renamed = rename(state, PERCEPTUAL_LOSS_KEYS)
        fill(model, {key: renamed[key] for key in model.state_dict() if key in renamed}, f"LPIPS {network}")
        return model

    def train(self, mode: bool = True) -> Self:
        return super().train(False)  # a frozen judge, whatever the model that it is a part of does

    def forward(self, reference: Tensor, reconstruction: Tensor) -> Tensor:
        if reference.shape != reconstruction.shape or reference.ndim != 4 or reference.shape[1] != 3:
            raise InputError(
                "LPIPS compares two batches (batch, 3, height, width) of one shape, got "
                f"{tuple(reference.shape)} and {tuple(reconstruction.shape)}"
            )
        if min(reference.shape[-2:]) < self.backbone.least:
            raise InputError(
                f"LPIPS {self.network} needs {self.backbone.least} pixels a side, got {tuple(reference.shape[-2:])}"
            )
        distances = [
            head((x - y).square()).mean((2, 3))[:, 0]
            for head, x, y in zip(self.heads, self.taps(reference), self.taps(reconstruction), strict=True)
        ]
        return torch.stack(distances).sum(0)

    def taps(self, images: Tensor) -> list[Tensor]:
        """Unit feature vectors of every pixel at the five taps, of images in [0,1]."""
        x = (images * 2 - 1 - self.shift) / self.scale
        outputs = []
        for index, layer in enumerate(self.features):
            x = layer(x)
            if index in self.backbone.taps:
                # vector_norm has a gradient where a pixel's features are all zero; a root of a sum of squares has none.
                outputs.append(x / (torch.linalg.vector_norm(x, dim=1, keepdim=True) + EPSILON))
        return outputs

    @property
    def weights_hash(self) -> str:
        """SHA-256 over the weights as float32, in the order of their names."""
        digest = hashlib.sha256()
        for _, tensor in sorted(self.state_dict().items()):
            digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()


class LPIPSDistance(SampleMean):
    """Mean LPIPS over a set of images.

    Args:
        model: with its weights loaded.
    """

    def __init__(self, model: LPIPS) -> None:
        super().__init__()
        self.model = model
        self._weights = model.weights_hash[:12]

    @property
    def protocol(self) -> str:
        return f"lpips-0.1/{self.model.network}@{self._weights}/float/per-image-mean"

    def values(self, reference: Tensor, reconstruction: Tensor) -> Tensor:
        """LPIPS of each image (B, 3, H, W): uint8, or floating in [0,1]."""
        with torch.inference_mode():
            pair = [
                (images.float() / 255 if images.dtype == torch.uint8 else images.float()).to(self.model.shift.device)
                for images in (reference, reconstruction)
            ]
            if not all(bool(((images >= 0) & (images <= 1)).all()) for images in pair):
                raise InputError("LPIPS takes images in [0,1]: clamp the reconstruction first")
            return self.model(*pair).cpu().to(torch.float64)
