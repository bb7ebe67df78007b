"""The perceptual distance: its formula by hand, gradients, and whether it orders distortions as people do."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from smalti.audio.wavtokenizer import WavTokenizer
from smalti.errors import ConfigError, InputError
from smalti.image.photo import PhotoTokenizer
from smalti.image.taming import VQGAN
from smalti.train.perceptual import PerceptualDistance, stages

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
SIDE = 128
Distortion = Callable[[Tensor, float], Tensor]


def tiny() -> PhotoTokenizer:
    torch.manual_seed(0)
    return PhotoTokenizer.Config.tiny().build()


def pictures(side: int = 24) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(1)
    x = torch.rand(2, 3, side, side, generator=draw)
    return x, (x + 0.1 * torch.randn(x.shape, generator=draw)).clamp(0, 1)


# --- the formula -----------------------------------------------------------------------------------------------------


def energies_by_hand(features: np.ndarray, window: int) -> np.ndarray:
    """(phases, C, h, w) -> (C, windows, windows): unit vectors, then a root mean square in half-overlapping windows."""
    unit = features / (np.sqrt((features**2).sum(1, keepdims=True)) + 1e-10)
    height, width = (min(window, size) for size in features.shape[2:])
    rows = range(0, features.shape[2] - height + 1, max(1, height // 2))
    columns = range(0, features.shape[3] - width + 1, max(1, width // 2))
    unit = unit.swapaxes(0, 1)
    return np.array(
        [
            [[np.sqrt((c[:, i : i + height, j : j + width] ** 2).mean() + 1e-12) for j in columns] for i in rows]
            for c in unit
        ]
    )


@pytest.mark.parametrize(("window", "phases"), [(1, 1), (4, 2), (100, 2)])
def test_the_distance_equals_its_formula(window: int, phases: int) -> None:
    tokenizer = tiny()
    factor = tokenizer.factor
    x, y = pictures()
    settings = {"window": window, "phases": phases, "zoom": 1}
    value = PerceptualDistance(tokenizer, ("encoder.layers.1", "encoder.layers.2"), **settings)(x, y)
    room = factor if phases > 1 else 0
    offsets = [index * factor // phases for index in range(phases)]
    expected = [0.0, 0.0]
    for depth in (2, 3):
        energies = []
        for images in (x, y):
            padded = np.pad((images * 2 - 1).numpy(), ((0, 0), (0, 0), (factor, factor), (factor, factor)), mode="edge")
            span = images.shape[-1] + room
            views = [padded[..., factor - a :, factor - b :][..., :span, :span] for a in offsets for b in offsets]
            maps = [
                tokenizer.encoder.layers[:depth](torch.from_numpy(view)).detach().double().numpy() for view in views
            ]
            energies.append([energies_by_hand(np.stack([each[index] for each in maps]), window) for index in range(2)])
        for index in range(2):
            expected[index] += ((energies[0][index] - energies[1][index]) ** 2).sum(0).mean()
    assert value.tolist() == pytest.approx(expected, rel=1e-4)


def test_stages_are_the_parts_of_the_encoder_without_its_last_layer() -> None:
    layers = tiny().encoder.layers
    learned = [f"encoder.layers.{i}" for i, each in enumerate(layers) if list(each.parameters())]
    assert stages(tiny()) == tuple(learned[:-1])
    vqgan = VQGAN.Config.tiny().build()
    assert stages(vqgan) == ("encoder.conv_in", "encoder.down.0", "encoder.down.1", "encoder.mid", "encoder.norm_out")
    x, y = pictures(16)
    assert bool((PerceptualDistance(vqgan)(x, y) > 0).all())


def test_zoom_is_the_distance_of_enlarged_images() -> None:
    x, y = pictures()
    large = (F.interpolate(each, scale_factor=2, mode="bilinear") for each in (x, y))
    plain, zoomed = (PerceptualDistance(tiny(), zoom=zoom) for zoom in (1, 2))
    assert torch.allclose(zoomed(x, y), plain(*large))


def test_an_image_has_distance_zero_from_itself_and_any_extent_will_do() -> None:
    distance = PerceptualDistance(tiny())
    x, y = (each[..., :19, :22] for each in pictures())
    assert distance(x, x).tolist() == [0, 0]
    assert torch.allclose(distance(x, y), distance(y, x))


def test_gradients_reach_the_reconstruction_alone() -> None:
    tokenizer = tiny().train()
    distance = PerceptualDistance(tokenizer).train()
    x, y = pictures()
    for reconstruction in (y, x, torch.full_like(x, 0.5)):  # equal images have a minimum, flat ones no texture at all
        leaf = reconstruction.clone().requires_grad_()
        distance(x, leaf).sum().backward()
        assert leaf.grad is not None and bool(torch.isfinite(leaf.grad).all())
    assert all(each.grad is None and not each.requires_grad for each in distance.parameters())
    assert not any(module.training for module in distance.modules())
    assert not any(module._forward_hooks for module in tokenizer.modules())


def test_a_step_down_its_gradient_brings_the_images_closer() -> None:
    distance = PerceptualDistance(tiny())
    x, y = pictures()
    leaf = y.double().float().requires_grad_()
    before = distance(x, leaf).sum()
    (slope,) = torch.autograd.grad(before, leaf)
    step = 1e-3 / slope.norm()
    after = distance(x, (leaf - step * slope).detach()).sum()
    assert (before - after).item() == pytest.approx((step * slope.square().sum()).item(), rel=0.1)


def test_it_can_be_read_from_a_saved_folder(tmp_path: Path) -> None:
    tokenizer = tiny()
    x, y = pictures()
    assert torch.equal(
        PerceptualDistance.from_saved(tokenizer.save(tmp_path / "own"))(x, y), PerceptualDistance(tokenizer)(x, y)
    )


def test_what_does_not_fit_is_named() -> None:
    with pytest.raises(ConfigError, match=r"no modules \['encoder.nowhere'\].*encoder.layers.1"):
        PerceptualDistance(tiny(), ("encoder.nowhere",))
    with pytest.raises(ConfigError, match="image tokenizer, not a WavTokenizer"):
        PerceptualDistance(WavTokenizer.Config.tiny().build())
    with pytest.raises(ConfigError, match="feature maps"):
        PerceptualDistance(tiny(), ("decoder",))(*pictures())
    with pytest.raises(InputError, match="one shape"):
        PerceptualDistance(tiny())(pictures(24)[0], pictures(16)[0])


# --- people ----------------------------------------------------------------------------------------------------------


def noisy(x: Tensor, amount: float) -> Tensor:
    return x + amount * torch.randn(x.shape, generator=torch.Generator().manual_seed(7))


def blurred(x: Tensor, amount: float) -> Tensor:
    radius = math.ceil(4 * amount) + 1
    taps = torch.exp(-0.5 * (torch.arange(-radius, radius + 1) / max(amount, 1e-3)) ** 2)
    taps = (taps / taps.sum()).expand(3, 1, 1, -1)
    padded = F.pad(x[None], (radius,) * 4, mode="reflect")
    return F.conv2d(F.conv2d(padded, taps, groups=3), taps.transpose(2, 3), groups=3)[0]


def blocky(x: Tensor, amount: float) -> Tensor:
    """Towards the means of 8x8 blocks."""
    return x + amount * (F.interpolate(F.avg_pool2d(x[None], 8), scale_factor=8)[0] - x)


DISTORTIONS: dict[str, tuple[Distortion, float]] = {
    "noise": (noisy, 1.0),
    "blur": (blurred, 8.0),
    "blocks": (blocky, 1.0),
}


def error(x: Tensor, y: Tensor) -> float:
    return float((x - y).square().mean())


def calibrated(distort: Distortion, x: Tensor, target: float, most: float) -> Tensor:
    """Distorted so much that the squared error is `target`; pixels stay in [0,1]."""
    low, high = 0.0, most
    for _ in range(16):
        middle = (low + high) / 2
        low, high = (middle, high) if error(distort(x, middle).clamp(0, 1), x) < target else (low, middle)
    return distort(x, high).clamp(0, 1)


def crop(pixels: np.ndarray) -> Tensor:
    """The middle of a photo, with one column more: (3, SIDE, SIDE + 1)."""
    top, left = ((size - SIDE) // 2 for size in pixels.shape[:2])
    cut = np.ascontiguousarray(pixels[top : top + SIDE, left : left + SIDE + 1, :3])
    return torch.from_numpy(cut).permute(2, 0, 1).float() / 255


def of_skimage() -> list[Tensor]:
    data = pytest.importorskip("skimage.data", reason="the demo extra is not installed")
    return [crop(getattr(data, name)()) for name in ("astronaut", "chelsea", "coffee", "rocket")]


def of_folder(pattern: str, count: int) -> list[Tensor]:
    paths = sorted(DATA.glob(pattern))
    if not paths:
        pytest.skip(f"no photos at {DATA / pattern}")
    photos = (np.asarray(Image.open(path).convert("RGB")) for path in paths[:: max(1, len(paths) // count)])
    return [crop(photo) for photo in photos if min(photo.shape[:2]) > SIDE][:count]


def distances(photos: list[Tensor]) -> Tensor:
    """Of each photo to itself shifted by a pixel, noisy, blurred and in blocks, at equal squared error: (photos, 4).

    Photos in which a distortion can't reach that error are left out.
    """
    judge = PerceptualDistance.from_saved()
    rows = []
    for photo in photos:
        x, shifted = photo[..., :-1], photo[..., 1:]
        target = error(x, shifted)
        variants = [shifted, *(calibrated(distort, x, target, most) for distort, most in DISTORTIONS.values())]
        if all(error(x, each) == pytest.approx(target, rel=0.02) for each in variants):
            with torch.no_grad():
                rows.append(judge(x.expand(4, -1, -1, -1), torch.stack(variants)))
    return torch.stack(rows)


def of_source(source: str, count: int) -> list[Tensor]:
    if source == "skimage":
        return of_skimage()
    return of_folder("kodak/*.webp" if source == "kodak" else "imagenet_sample/train/*.jpg", count)


@pytest.mark.parametrize(
    ("source", "count"),
    [
        ("skimage", 4),
        ("kodak", 6),
        ("imagenet", 6),
        pytest.param("kodak", 18, marks=pytest.mark.slow),
        pytest.param("imagenet", 40, marks=pytest.mark.slow),
    ],
)
def test_at_equal_error_a_shift_disturbs_least_then_noise_then_blur_and_blocks(source: str, count: int) -> None:
    values = distances(of_source(source, count))
    shift, noise, blur, blocks = (values / values[:, :1]).log().mean(0).exp().tolist()
    agreeing = (values[:, 0] < values[:, 1]) & (values[:, 1] < values[:, 2]) & (values[:, 1] < values[:, 3])
    report = (
        f"{source}: shift 1, noise {noise:.2f}, blur {blur:.1f}, blocks {blocks:.1f}; "
        f"{int(agreeing.sum())} of {len(values)} photos agree"
    )
    print(f"\n{report}")  # noqa: T201
    assert shift * 1.2 < noise and noise * 1.5 < min(blur, blocks), report
    assert agreeing.float().mean() > 0.5, report
