"""A perceptual distance that needs no download: features of one of our own trained encoders.

    image ──enlarged, at several phases──► encoder of a frozen tokenizer, tapped after every stage ──► unit vectors
                                                                              │ energy of each channel in a window
    one number per image ◄── sum over stages ◄── mean over windows ◄── squared difference

It is not LPIPS: features of an autoencoder, no weights fitted to people's judgements. What it takes from LPIPS ("The
Unreasonable Effectiveness of Deep Features as a Perceptual Metric", 2018) are unit feature vectors, several depths
and the mean over space. What differs is that features are not compared position by position: an autoencoder's
features say exactly where everything is, and so tell a shift by a pixel from a blur no better than a squared error
does. Their energy over a window (the root of the mean square of each channel, a texture statistic as in "A Parametric
Texture Model Based on Joint Statistics of Complex Wavelet Coefficients", 2000) does. As encoders look at patches, that
energy still depends on where an image lies in their grid; hence the phases, whose energies are averaged. And they keep
little of what is finer than their patches; hence the enlargement.

With the encoder that ships, at equal squared error, a shift by a pixel comes out smallest, then white noise, then blur
and blocks, as people have it: on average, and for about four photos of five taken singly, where noise and shift change
places in the others (tests/train/test_perceptual.py). Where in a window something is, it does not see: add l1 or l2.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import smalti.systems
from smalti.errors import ConfigError
from smalti.image.base import ImageTokenizer
from smalti.image.losses import check_pair

SHIPPED = "smalti-photo-f8"
WINDOW, PHASES, ZOOM = 32, 2, 2
EPSILON = 1e-10  # added to norms, as LPIPS does
QUIET = 1e-12  # added to energies, whose root has no slope at zero


class PerceptualDistance(nn.Module):
    """The distance of two batches of images, differentiable; the encoder itself is frozen.

    Args:
        tokenizer: a trained image tokenizer with an `encoder`; it is set to evaluation for good.
        layers: dotted names of modules of the tokenizer whose outputs (B, C, h, w) are compared; none for `stages`.
        window: positions of a feature map that share an energy, in both directions; smaller maps are one window.
        phases: places in the encoder's grid, in both directions, at which an image is looked at.
        zoom: how much images are enlarged first. The work grows with the square of phases and of zoom.

    Shape:
        (B, C, H, W) twice, in [0,1]; a reconstruction may leave it  ->  (B,)

    Raises:
        ConfigError: if it is no image tokenizer, or has no module of such a name.
    """

    def __init__(
        self,
        tokenizer: nn.Module,
        layers: Sequence[str] = (),
        window: int = WINDOW,
        phases: int = PHASES,
        zoom: int = ZOOM,
    ) -> None:
        super().__init__()
        if not isinstance(tokenizer, ImageTokenizer):
            raise ConfigError(
                f"a perceptual distance of images needs an image tokenizer, not a {type(tokenizer).__name__}"
            )
        if min(window, phases, zoom) < 1:
            raise ConfigError(f"window, phases and zoom must be at least 1, got {window}, {phases} and {zoom}")
        self.layers = tuple(layers) or stages(tokenizer)
        known = dict(tokenizer.named_modules())
        unknown = sorted(set(self.layers) - known.keys())
        if unknown:
            raise ConfigError(
                f"{type(tokenizer).__name__} has no modules {unknown}; its stages are {', '.join(stages(tokenizer))}"
            )
        self.window, self.phases, self.zoom = window, phases, zoom
        self.tokenizer = tokenizer
        self.requires_grad_(False).eval()

    @classmethod
    def from_saved(cls, name_or_folder: str | Path = SHIPPED, **settings: Any) -> Self:
        """Of a tokenizer that ships, or of a folder that `save` wrote; see `smalti.systems.load`.

        Args:
            name_or_folder: where the tokenizer is.
            **settings: as the class takes them.
        """
        return cls(smalti.systems.load(name_or_folder), **settings)

    def train(self, mode: bool = True) -> Self:
        return super().train(False)  # a frozen judge, whatever the module that it is a part of does

    def forward(self, reference: Tensor, reconstruction: Tensor) -> Tensor:
        check_pair(reference, reconstruction)
        pairs = zip(self.energies(reference), self.energies(reconstruction), strict=True)
        return torch.stack([(x - y).square().sum(1).mean((1, 2)) for x, y in pairs]).sum(0)

    def energies(self, images: Tensor) -> list[Tensor]:
        """What is compared, for every layer: (B, channels, windows, windows)."""
        return [self._energy(each.float()) for each in self.taps(images)]

    def taps(self, images: Tensor) -> list[Tensor]:
        """Outputs of the layers for images in [0,1], in the order of `layers`: (phases², B, channels, h, w) each.

        Raises:
            ConfigError: if a layer gives something else.
        """
        low, high = value_range(self.tokenizer)
        inputs = images * (high - low) + low
        if self.zoom > 1:
            inputs = F.interpolate(inputs, scale_factor=self.zoom, mode="bilinear")
        with _listening(self.tokenizer, self.layers) as heard:
            self.tokenizer.analysis(self._shifted(inputs), self.tokenizer.encode_options())
        wrong = [name for name in self.layers if name not in heard or heard[name].ndim != 4]
        if wrong:
            raise ConfigError(f"layers {wrong} give no feature maps (batch, channels, height, width)")
        return [heard[name].unflatten(0, (-1, len(images))) for name in self.layers]

    def _shifted(self, inputs: Tensor) -> Tensor:
        """Copies of one extent at all phases of the grid, edges repeated: (phases² B, C, H', W')."""
        factor = self.tokenizer.factor
        room = factor if self.phases > 1 else 0
        height, width = (size + -size % factor + room for size in inputs.shape[-2:])
        starts = [index * factor // self.phases for index in range(self.phases)]
        return torch.cat(
            [
                F.pad(inputs, (x, width - x - inputs.shape[-1], y, height - y - inputs.shape[-2]), mode="replicate")
                for y in starts
                for x in starts
            ]
        )

    def _energy(self, features: Tensor) -> Tensor:
        norm = torch.linalg.vector_norm(features, dim=2, keepdim=True)
        power = (features / (norm + EPSILON)).square().mean(0)
        height, width = (min(self.window, size) for size in power.shape[-2:])
        stride = (max(1, height // 2), max(1, width // 2))
        return (F.avg_pool2d(power, (height, width), stride) + QUIET).sqrt()


def stages(tokenizer: nn.Module) -> tuple[str, ...]:
    """Dotted names of the stages of a tokenizer's encoder, in order.

    The encoder's children, those of plain containers in place of the containers. What has no parameters only
    rearranges, and the last one gives the latents: both are left out.

    Raises:
        ConfigError: if it has no encoder of several stages.
    """
    encoder = getattr(tokenizer, "encoder", None)
    names = list(_parts(encoder, "encoder"))[:-1] if isinstance(encoder, nn.Module) else []
    if not names:
        raise ConfigError(f"{type(tokenizer).__name__} has no `encoder` of several stages: name its layers")
    return tuple(names)


def value_range(tokenizer: ImageTokenizer) -> tuple[float, float]:
    """What the network of a tokenizer takes black and white as."""
    low, high = tokenizer.preprocessing().get("range", (-1, 1))
    return float(low), float(high)


def _parts(module: nn.Module, prefix: str) -> Iterator[str]:
    for name, child in module.named_children():
        path = f"{prefix}.{name}"
        if type(child) in (nn.Sequential, nn.ModuleList):  # a subclass has a meaning of its own
            yield from _parts(child, path)
        elif next(child.parameters(), None) is not None:
            yield path


@contextmanager
def _listening(network: nn.Module, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Inside, outputs of the named modules are kept in what this gives."""
    heard: dict[str, Tensor] = {}
    handles = [network.get_submodule(name).register_forward_hook(partial(_keep, heard, name)) for name in names]
    try:
        yield heard
    finally:
        for handle in handles:
            handle.remove()


def _keep(heard: dict[str, Tensor], name: str, module: nn.Module, inputs: Any, output: Any) -> None:
    if isinstance(output, Tensor):
        heard[name] = output
