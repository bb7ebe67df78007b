"""Pixel metrics against scikit-image, torchmetrics, pytorch_msssim's formula by hand, and identities."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import correlate1d
from torch import Tensor

from smalti.errors import ConfigError, InputError
from smalti.image.metrics import MAE, MSE, MSSSIM, PSNR, SCALE_WEIGHTS, SSIM, PixelMetric
from tests.image.files import noise


def pair(height: int = 40, width: int = 52, batch: int = 3, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A uint8 batch of pictures and a damaged copy."""
    pictures = np.stack([noise(height, width, seed=seed + index) for index in range(batch)]).transpose(0, 3, 1, 2)
    generator = np.random.default_rng(seed)
    damaged = pictures + generator.normal(0, 12, pictures.shape) * np.linspace(0.2, 2, batch)[:, None, None, None]
    return torch.from_numpy(pictures), torch.from_numpy(np.clip(damaged.round(), 0, 255).astype(np.uint8))


METRICS: tuple[PixelMetric, ...] = (MSE(), MAE(), PSNR(), PSNR(over="set"), PSNR("float"), SSIM(), SSIM("torchmetrics"))


# --- independent values ----------------------------------------------------------------------------------------------


def test_psnr_and_ssim_equal_scikit_image() -> None:
    skimage = pytest.importorskip("skimage.metrics")
    references, reconstructions = pair()
    gauss: dict[str, Any] = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    for index, (a, b) in enumerate(zip(references.numpy(), reconstructions.numpy(), strict=True)):
        expected = {
            PSNR(): skimage.peak_signal_noise_ratio(a, b, data_range=255),
            MSE(): skimage.mean_squared_error(a, b),
            SSIM("skimage-default"): skimage.structural_similarity(a, b, channel_axis=0, data_range=255),
            SSIM("skimage-gauss"): skimage.structural_similarity(a, b, channel_axis=0, data_range=255, **gauss),
        }
        for metric, value in expected.items():
            assert float(metric.values(references, reconstructions)[index]) == pytest.approx(value, abs=1e-10)


def test_float_range_equals_scikit_image() -> None:
    skimage = pytest.importorskip("skimage.metrics")
    a, b = (images.double() / 255 for images in pair(batch=1))
    b = b * 0.9 + 0.05
    expected = skimage.structural_similarity(a[0].numpy(), b[0].numpy(), channel_axis=0, data_range=1.0)
    assert float(SSIM("skimage-default", "float").values(a, b)) == pytest.approx(expected, abs=1e-10)


def test_torchmetrics_variant_and_psnr() -> None:
    functional = pytest.importorskip("torchmetrics.functional.image")
    a, b = pair()
    options: dict[str, Any] = {"data_range": 255.0, "reduction": "none"}
    ssim = functional.structural_similarity_index_measure(b.double(), a.double(), **options)
    assert torch.allclose(SSIM("torchmetrics").values(a, b), ssim, atol=1e-9)
    psnr = functional.peak_signal_noise_ratio(b.double(), a.double(), dim=(1, 2, 3), **options)
    assert torch.allclose(PSNR().values(a, b), psnr, atol=1e-9)


def test_luma_is_ssim_of_the_weighted_sum() -> None:
    skimage = pytest.importorskip("skimage.metrics")
    a, b = pair(batch=1)
    grey = [0.299 * x[0, 0].double() + 0.587 * x[0, 1].double() + 0.114 * x[0, 2].double() for x in (a, b)]
    expected = skimage.structural_similarity(
        *(plane.numpy() for plane in grey),
        data_range=255, gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
    )  # fmt: skip
    assert float(SSIM(colour="luma").values(a, b)) == pytest.approx(expected, abs=1e-10)


def ms_ssim_by_hand(a: np.ndarray, b: np.ndarray) -> float:
    """MS-SSIM of one image (channels, H, W) in numpy, as pytorch_msssim words it."""
    taps = np.exp(-((np.arange(11) - 5) ** 2) / (2 * 1.5**2))
    taps /= taps.sum()

    def blur(plane: np.ndarray) -> np.ndarray:
        return correlate1d(correlate1d(plane, taps, 0), taps, 1)[5:-5, 5:-5]

    def halve(plane: np.ndarray) -> np.ndarray:
        padded = np.pad(plane, [(side % 2, side % 2) for side in plane.shape])
        rows, columns = padded.shape[0] // 2 * 2, padded.shape[1] // 2 * 2
        return padded[:rows, :columns].reshape(rows // 2, 2, columns // 2, 2).mean((1, 3))

    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    values = []
    for x, y in zip(a.astype(float), b.astype(float), strict=True):
        product = 1.0
        for scale, weight in enumerate(SCALE_WEIGHTS):
            mx, my = blur(x), blur(y)
            structure = (2 * (blur(x * y) - mx * my) + c2) / (blur(x * x) - mx**2 + blur(y * y) - my**2 + c2)
            whole = structure * (2 * mx * my + c1) / (mx**2 + my**2 + c1)
            product *= max(0.0, (whole if scale == 4 else structure).mean()) ** weight
            x, y = halve(x), halve(y)
        values.append(product)
    return float(np.mean(values))


@pytest.mark.parametrize(("height", "width"), [(176, 192), (161, 187), (203, 165)])
def test_ms_ssim_equals_its_formula_at_even_and_odd_sides(height: int, width: int) -> None:
    a, b = pair(height, width, batch=2)
    expected = [ms_ssim_by_hand(x, y) for x, y in zip(a.numpy(), b.numpy(), strict=True)]
    assert torch.allclose(MSSSIM().values(a, b), torch.tensor(expected, dtype=torch.float64), atol=1e-10)


def test_ms_ssim_of_a_negative_image_is_zero_not_nan() -> None:
    a, _ = pair(170, 170, batch=1)
    assert float(MSSSIM().values(a, 255 - a)) == pytest.approx(0.0, abs=1e-6)


# --- identities ------------------------------------------------------------------------------------------------------


def test_identical_images() -> None:
    a, _ = pair(165, 170, batch=2)
    for variant in ("skimage-gauss", "skimage-default", "pytorch_msssim", "torchmetrics"):
        assert SSIM(variant).values(a, a).tolist() == [1.0, 1.0]  # type: ignore[arg-type]
    assert MSSSIM().values(a, a).tolist() == pytest.approx([1.0, 1.0])
    assert MSE().values(a, a).tolist() == [0.0, 0.0]
    psnr = PSNR()
    psnr.update(a, a)
    assert psnr.compute() == math.inf
    assert PSNR(cap=100).values(a, a).tolist() == [100.0, 100.0]


def test_psnr_over_the_set_is_never_above_the_mean_of_images() -> None:
    a, b = pair(batch=6)
    mean, over_set = PSNR(), PSNR(over="set")
    for metric in (mean, over_set):
        metric.update(a, b)
    assert over_set.compute() < mean.compute()
    squared = ((a.double() - b.double()) ** 2).mean()
    assert over_set.compute() == pytest.approx(float(10 * torch.log10(255**2 / squared)), abs=1e-10)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 7), max_size=5), st.integers(0, len(METRICS) - 1))
def test_any_split_and_any_merge_gives_the_one_shot_value(cuts: list[int], which: int) -> None:
    a, b = pair(16, 18, batch=7)
    make = METRICS[which]
    whole, merged = _fresh(make), _fresh(make)
    whole.update(a, b)
    bounds = [0, *sorted(cuts), 7]
    for start, end in pairwise(bounds):
        if start < end:
            worker = _fresh(make)
            worker.update(a[start:end], b[start:end])
            merged.merge(worker)
    assert merged.compute() == pytest.approx(whole.compute(), abs=1e-8)


def _fresh(metric: PixelMetric) -> PixelMetric:
    if isinstance(metric, PSNR):
        return PSNR(metric.pixels, metric.over)
    if isinstance(metric, SSIM):
        return SSIM(metric.variant, metric.pixels, metric.colour)
    return type(metric)(metric.pixels)


def test_protocols_differ_wherever_numbers_do() -> None:
    protocols = [
        metric.protocol
        for metric in (
            *METRICS,
            MSE("float"),
            PSNR(cap=100),
            SSIM(colour="luma"),
            SSIM("skimage-default"),
            SSIM("pytorch_msssim"),
            SSIM(pixels="float"),
            MSSSIM(),
            MSSSIM("float"),
        )
    ]
    assert len(set(protocols)) == len(protocols)
    assert SSIM().protocol == "ssim/skimage-gauss/uint8/channels"
    assert PSNR().protocol == "psnr/uint8/per-image-mean"
    with pytest.raises(ConfigError, match="merged"):
        PSNR().merge(PSNR("float"))


def test_floats_are_rounded_to_bytes_unless_asked_otherwise() -> None:
    a, b = pair(batch=1)
    assert torch.equal(PSNR().values(a / 255, b / 255), PSNR().values(a, b))
    moved = (a / 255 + 0.3 / 255).clamp(max=1)
    assert MSE().values(a, moved).item() == 0
    assert MSE("float").values(a, moved).item() > 0


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("low_high", [(-0.2, 1.0), (0.0, 1.3), (0.0, 255.0)])
def test_a_float_image_that_exceeds_its_range_is_refused(low_high: tuple[float, float]) -> None:
    low, high = low_high
    image = torch.linspace(low, high, 3 * 16 * 16).reshape(1, 3, 16, 16)
    for metric in (PSNR(), SSIM(), SSIM(pixels="float")):
        with pytest.raises(InputError, match="range"):
            metric.update(torch.zeros(1, 3, 16, 16), image)


@pytest.mark.parametrize(
    ("reference", "reconstruction"),
    [
        (torch.zeros(1, 3, 16, 16), torch.zeros(1, 3, 16, 17)),
        (torch.zeros(3, 16, 16), torch.zeros(3, 16, 16)),
        (torch.zeros(1, 3, 16, 16, dtype=torch.int64), torch.zeros(1, 3, 16, 16, dtype=torch.int64)),
        (torch.zeros(1, 3, 16, 16), torch.full((1, 3, 16, 16), torch.nan)),
        (torch.zeros(0, 3, 16, 16), torch.zeros(0, 3, 16, 16)),
        (torch.zeros(1, 3, 9, 16), torch.zeros(1, 3, 9, 16)),
    ],
)
def test_what_can_not_be_compared_is_refused(reference: Tensor, reconstruction: Tensor) -> None:
    with pytest.raises(InputError):
        SSIM().update(reference, reconstruction)


def test_ms_ssim_names_the_side_that_it_needs() -> None:
    with pytest.raises(InputError, match="161"):
        MSSSIM().update(torch.zeros(1, 3, 160, 300), torch.zeros(1, 3, 160, 300))


def test_nothing_gathered_has_no_value() -> None:
    with pytest.raises(InputError, match="nothing"):
        PSNR().compute()


def test_unknown_options_are_refused() -> None:
    with pytest.raises(ConfigError, match="variant"):
        SSIM("wang")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="pixels"):
        PSNR("int")  # type: ignore[arg-type]
