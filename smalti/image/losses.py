"""Differentiable distances between images, one value per sample: training takes their mean.

    reference, reconstruction (B,C,H,W) ──► distance (B,)

log_mse             ln(MSE + floor): its mean rises and falls with the mean PSNR, which the mean of MSE does not
dissimilarity       1 - SSIM, in the window of one of the metric's variants
"""

from __future__ import annotations

import torch
from torch import Tensor

from smalti.errors import InputError
from smalti.image.metrics import WINDOWS, Variant, similarity


def log_mse(reference: Tensor, reconstruction: Tensor, floor: float = 1e-4) -> Tensor:
    """Natural logarithm of each image's mean squared error, raised by `floor`.

    PSNR is -10 log10 of it, so an image that is close already is not left alone: halving any image's error counts the
    same, down to `floor`.

    Args:
        reference, reconstruction: (B, C, H, W) of one shape, any range.
        floor: keeps logarithm and gradient finite, in squared units of that range.
    """
    check_pair(reference, reconstruction)
    return (squared_error(reference, reconstruction) + floor).log()


def dissimilarity(reference: Tensor, reconstruction: Tensor, variant: Variant = "skimage-gauss") -> Tensor:
    """1 - SSIM, averaged over channels and windows; equal to the metric `SSIM(variant, pixels="float")`.

    Args:
        reference, reconstruction: (B, C, H, W) of one shape, in [0,1]; the reconstruction may leave it a little.
        variant: whose window and covariance are used; see `smalti.image.metrics`.

    Raises:
        InputError: if shapes differ, or the images are smaller than the window.
    """
    check_pair(reference, reconstruction)
    window = WINDOWS[variant]
    window.check(reference)
    values, _ = similarity(reference, reconstruction, window, 1.0)
    return 1 - values.mean((1, 2, 3))


def squared_error(reference: Tensor, reconstruction: Tensor) -> Tensor:
    """Mean squared error of each image: (B,)."""
    return (reference - reconstruction).square().flatten(1).mean(1)


def decibels(errors: Tensor, floor: float = 1e-10) -> Tensor:
    """PSNR in dB of squared errors of pixels in [0,1]; `floor` gives identical images 100 dB."""
    return -10 * torch.log10(errors + floor)


def check_pair(reference: Tensor, reconstruction: Tensor) -> None:
    """Raises InputError unless both are batches of images of one shape."""
    if reference.ndim != 4 or reference.shape != reconstruction.shape:
        raise InputError(
            "images to compare must be two batches (batch, channels, height, width) of one shape, got "
            f"{tuple(reference.shape)} and {tuple(reconstruction.shape)}"
        )
