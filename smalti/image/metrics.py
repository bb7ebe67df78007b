"""How close a reconstruction is to its image: MSE, MAE, PSNR, SSIM and MS-SSIM, each under the name of its protocol.

    (B,3,H,W) twice, uint8 or floating in [0,1] ──to one range──► float64 ──per image──► mean over the set

The same name stands for different numbers in different libraries, so every choice is part of `protocol`: whether
pixels are rounded to 8 bits first (as when images are saved), per image or over the set, and for SSIM the variant:

    variant            window                covariance   border
    skimage-default    7x7 uniform           sample       cropped to whole windows
    skimage-gauss      11x11 Gaussian 1.5    population   cropped to whole windows       Wang et al. 2004; the default
    pytorch_msssim     11x11 Gaussian 1.5    population   whole windows only
    torchmetrics       11x11 Gaussian 1.5    population   reflected, every pixel counts

scikit-image reflects the border and then crops exactly the pixels whose window reached it, so its two variants are
computed over whole windows here, and skimage-gauss is pytorch_msssim in float64.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from smalti.errors import ConfigError, InputError
from smalti.metric import SampleMean

Pixels = Literal["uint8", "float"]
Colour = Literal["channels", "luma"]
Variant = Literal["skimage-gauss", "skimage-default", "pytorch_msssim", "torchmetrics"]

LUMA = (0.299, 0.587, 0.114)
K1, K2 = 0.01, 0.03  # of SSIM's two constants, (K R)^2 for a range R
SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # of MS-SSIM, the finest scale first
RANGE_SLACK = 1e-6  # rounding of [-1,1] to [0,1] in float32


class PixelMetric(SampleMean):
    """Base of metrics on pixels.

    Args:
        pixels: "uint8" rounds floating images to 0..255 first, as saving them would; "float" takes them as they are.
    """

    name: str

    def __init__(self, pixels: Pixels = "uint8") -> None:
        super().__init__()
        _check_option("pixels", pixels, ("uint8", "float"))
        self.pixels = pixels

    @property
    def protocol(self) -> str:
        return f"{self.name}/{self.pixels}/per-image-mean"

    @property
    def range(self) -> float:
        """The largest value of a pixel."""
        return 255.0 if self.pixels == "uint8" else 1.0

    def pair(self, reference: Tensor, reconstruction: Tensor) -> tuple[Tensor, Tensor]:
        """Both images as float64 in 0..range.

        Raises:
            InputError: if shapes differ, or a floating image leaves [0,1].
        """
        if reference.shape != reconstruction.shape:
            raise InputError(
                f"images to compare differ in shape: {tuple(reference.shape)} and {tuple(reconstruction.shape)}"
            )
        return self._scaled(reference, "reference"), self._scaled(reconstruction, "reconstruction")

    def _scaled(self, images: Tensor, what: str) -> Tensor:
        if images.ndim != 4 or images.shape[1] not in (1, 3) or 0 in images.shape:
            raise InputError(f"the {what} must be (batch, 1 or 3, height, width), got {tuple(images.shape)}")
        values = images.detach().to(torch.float64)
        if images.dtype == torch.uint8:
            return values if self.pixels == "uint8" else values / 255
        if not images.is_floating_point():
            raise InputError(f"the {what} must be uint8 or floating in [0,1], got {images.dtype}")
        low, high = (float(value) for value in values.aminmax())
        if not (low >= -RANGE_SLACK and high <= 1 + RANGE_SLACK):  # a NaN fails both comparisons
            raise InputError(
                f"the {what} has values in [{low:.4g}, {high:.4g}], but its range is [0,1]: clamp it first"
            )
        values = values.clamp(0, 1)
        return (values * 255).round() if self.pixels == "uint8" else values


class MSE(PixelMetric):
    """Mean squared error over height, width and channels."""

    name = "mse"

    def values(self, reference: Tensor, reconstruction: Tensor) -> Tensor:
        x, y = self.pair(reference, reconstruction)
        return (x - y).square().flatten(1).mean(1)


class MAE(PixelMetric):
    """Mean absolute error over height, width and channels."""

    name = "mae"

    def values(self, reference: Tensor, reconstruction: Tensor) -> Tensor:
        x, y = self.pair(reference, reconstruction)
        return (x - y).abs().flatten(1).mean(1)


class PSNR(MSE):
    """Peak signal-to-noise ratio in dB: 10 log10(R^2 / MSE).

    Args:
        pixels: as in `PixelMetric`.
        over: "image" takes the mean of every image's dB; "set" takes the dB of the mean squared error of all, which is
            never above it. The two are not comparable.
        cap: dB given to identical images, infinite otherwise.
    """

    name = "psnr"

    def __init__(self, pixels: Pixels = "uint8", over: Literal["image", "set"] = "image", cap: float | None = None):
        super().__init__(pixels)
        _check_option("over", over, ("image", "set"))
        self.over, self.cap = over, cap

    @property
    def protocol(self) -> str:
        mean = "per-image-mean" if self.over == "image" else "global"
        return f"psnr/{self.pixels}/{mean}" + ("" if self.cap is None else f"/cap-{self.cap:g}")

    def values(self, reference: Tensor, reconstruction: Tensor) -> Tensor:
        """dB of each image; its squared error where the mean is taken over the set."""
        errors = super().values(reference, reconstruction)
        return self.decibel(errors) if self.over == "image" else errors

    def decibel(self, errors: Tensor) -> Tensor:
        """Squared errors in dB."""
        values = 10 * torch.log10(self.range**2 / errors)
        return values if self.cap is None else values.clamp(max=self.cap)

    def compute(self) -> float:
        value = super().compute()
        return value if self.over == "image" else float(self.decibel(torch.tensor(value, dtype=torch.float64)))


@dataclass(frozen=True)
class Window:
    """How local statistics of SSIM are taken.

    Args:
        taps: the normalised window along one axis; the window is their outer product.
        sample_covariance: divide by n - 1 instead of n.
        reflect: extend the border by reflection, so that every pixel has a window.
    """

    taps: tuple[float, ...]
    sample_covariance: bool = False
    reflect: bool = False

    @classmethod
    def uniform(cls, size: int, *, sample_covariance: bool) -> Self:
        return cls((1 / size,) * size, sample_covariance)

    @classmethod
    def gaussian(cls, sigma: float, radius: int, *, reflect: bool = False) -> Self:
        weights = torch.exp(-0.5 * (torch.arange(-radius, radius + 1, dtype=torch.float64) / sigma) ** 2)
        return cls(tuple((weights / weights.sum()).tolist()), reflect=reflect)

    def check(self, planes: Tensor, scales: int = 1) -> None:
        """Raises InputError if an image is too small for this window at the coarsest of `scales` halvings."""
        margin = len(self.taps) // 2 if self.reflect else len(self.taps) - 1
        least = margin * 2 ** (scales - 1) + 1
        if min(planes.shape[-2:]) < least:
            raise InputError(
                f"images of {tuple(planes.shape[-2:])} are too small: this metric needs {least} pixels a side"
            )

    def average(self, planes: Tensor) -> Tensor:
        """Local weighted means: (planes, ..., H, W) -> (planes, ..., H', W')."""
        if self.reflect:
            flat = F.pad(planes.flatten(0, -3), (len(self.taps) // 2,) * 4, mode="reflect")
            planes = flat.unflatten(0, planes.shape[:-2])
        return _Slide.apply(_Slide.apply(planes, self.taps, -1), self.taps, -2)


WINDOWS: dict[Variant, Window] = {
    "skimage-gauss": Window.gaussian(1.5, 5),
    "skimage-default": Window.uniform(7, sample_covariance=True),
    "pytorch_msssim": Window.gaussian(1.5, 5),
    "torchmetrics": Window.gaussian(1.5, 5, reflect=True),
}


class SSIM(PixelMetric):
    """Structural similarity: luminance times contrast-and-structure in a sliding window, averaged over the image.

    Args:
        variant: one of `WINDOWS`; see the module's docstring.
        pixels: as in `PixelMetric`.
        colour: "channels" averages the channels' values; "luma" compares 0.299 R + 0.587 G + 0.114 B.
    """

    name = "ssim"

    def __init__(
        self, variant: Variant = "skimage-gauss", pixels: Pixels = "uint8", colour: Colour = "channels"
    ) -> None:
        super().__init__(pixels)
        _check_option("variant", variant, tuple(WINDOWS))
        _check_option("colour", colour, ("channels", "luma"))
        self.variant, self.colour, self.window = variant, colour, WINDOWS[variant]

    @property
    def protocol(self) -> str:
        return f"{self.name}/{self.variant}/{self.pixels}/{self.colour}"

    def values(self, reference: Tensor, reconstruction: Tensor) -> Tensor:
        x, y = (_channels(image, self.colour) for image in self.pair(reference, reconstruction))
        self.window.check(x)
        return torch.stack([self._image(*pair) for pair in zip(x, y, strict=True)])

    def _image(self, x: Tensor, y: Tensor) -> Tensor:
        """The value of one image (channels, H, W); channel by channel, which keeps the memory of large ones low."""
        planes = [similarity(a, b, self.window, self.range)[0].mean() for a, b in zip(x, y, strict=True)]
        return torch.stack(planes).mean()


class MSSSIM(PixelMetric):
    """Multi-scale SSIM as pytorch_msssim defines it: contrast-and-structure of four scales, SSIM of the fifth.

    Images must have more than 160 pixels on each side.

    Args:
        pixels: as in `PixelMetric`.
    """

    name = "ms-ssim"

    @property
    def protocol(self) -> str:
        return f"ms-ssim/pytorch_msssim/{self.pixels}/channels"

    def values(self, reference: Tensor, reconstruction: Tensor) -> Tensor:
        x, y = self.pair(reference, reconstruction)
        WINDOWS["pytorch_msssim"].check(x, len(SCALE_WEIGHTS))
        planes = [self._plane(a, b) for a, b in zip(x.flatten(0, 1), y.flatten(0, 1), strict=True)]
        return torch.stack(planes).unflatten(0, x.shape[:2]).mean(1)

    def _plane(self, x: Tensor, y: Tensor) -> Tensor:
        value = torch.ones((), dtype=torch.float64, device=x.device)
        for scale, weight in enumerate(SCALE_WEIGHTS):
            if scale:
                x, y = _halve(x), _halve(y)
            ssim, structure = similarity(x, y, WINDOWS["pytorch_msssim"], self.range)
            last = scale == len(SCALE_WEIGHTS) - 1
            value = value * (ssim if last else structure).mean().relu() ** weight
        return value


def similarity(x: Tensor, y: Tensor, window: Window, value_range: float) -> tuple[Tensor, Tensor]:
    """SSIM and its contrast-and-structure factor at every place of a window.

    Args:
        x, y: planes of one shape, (..., H, W).
        window: see `Window`.
        value_range: the largest value a pixel can have.

    Returns:
        Two maps, (..., H', W').
    """
    mean_x, mean_xx = window.average(torch.stack([x, x * x]))  # no gradient where only y is learnt
    mean_y, mean_yy, mean_xy = window.average(torch.stack([y, y * y, x * y]))
    size = len(window.taps) ** 2
    correction = size / (size - 1) if window.sample_covariance else 1.0
    variances = correction * (mean_xx - mean_x**2 + mean_yy - mean_y**2)
    covariance = correction * (mean_xy - mean_x * mean_y)
    c1, c2 = (K1 * value_range) ** 2, (K2 * value_range) ** 2
    structure = (2 * covariance + c2) / (variances + c2)
    return structure * (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1), structure


# --- helpers ---------------------------------------------------------------------------------------------------------


class _Slide(torch.autograd.Function):
    """Correlates along an axis, -1 or -2, whole windows only.

    A sum of shifted views is faster here than float64 convolution. Its own gradient is one such sum, too; that of each
    view alone would fill a tensor of zeros for every tap.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(planes: Tensor, taps: tuple[float, ...], axis: int) -> Tensor:
        size = planes.shape[axis] - len(taps) + 1
        total = planes.narrow(axis, 0, size) * taps[0]
        for start, weight in enumerate(taps[1:], 1):
            total.add_(planes.narrow(axis, start, size), alpha=weight)
        return total

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, tuple[float, ...], int], output: Tensor) -> None:
        _, ctx.taps, ctx.axis = inputs

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        margin = len(ctx.taps) - 1
        wide = F.pad(gradients[0], (0, 0) * (-ctx.axis - 1) + (margin, margin))
        return _Slide.apply(wide, ctx.taps[::-1], ctx.axis), None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        return _Slide.apply(tangents[0], ctx.taps, ctx.axis)


def _halve(plane: Tensor) -> Tensor:
    """2x2 averages; an odd side is padded with a zero line on both ends that counts, as pytorch_msssim does."""
    padding = (plane.shape[-2] % 2, plane.shape[-1] % 2)
    return F.avg_pool2d(plane[None, None], 2, padding=padding)[0, 0]


def _channels(images: Tensor, colour: Colour) -> Tensor:
    if colour == "channels" or images.shape[1] == 1:
        return images
    weights = torch.tensor(LUMA, dtype=images.dtype, device=images.device)
    return (images * weights[:, None, None]).sum(1, keepdim=True)


def _check_option(field: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ConfigError(f"{field} must be one of {', '.join(allowed)}; got {value!r}")
