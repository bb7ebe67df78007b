"""LPIPS's formula with random weights against plain numpy, and the layouts that its weights come in."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from smalti.errors import CheckpointError, ConfigError, InputError, UnavailableError
from smalti.image.lpips import BACKBONES, LPIPS, LPIPSDistance, Network

# torchvision's layouts, written down independently: (index, output channels, kernel, stride, padding) of convolutions,
# (index, kernel, stride) of pools; a ReLU follows every convolution, and taps are indices of ReLUs.
VGG16 = [
    (0, 64), (2, 64), "pool", (5, 128), (7, 128), "pool", (10, 256), (12, 256), (14, 256), "pool",
    (17, 512), (19, 512), (21, 512), "pool", (24, 512), (26, 512), (28, 512),
]  # fmt: skip
VGG_TAPS = (3, 8, 15, 22, 29)
ALEX = [(0, 64, 11, 4, 2), "pool", (3, 192, 5, 1, 2), "pool", (6, 384, 3, 1, 1), (8, 256, 3, 1, 1), (10, 256, 3, 1, 1)]
ALEX_TAPS = (1, 4, 7, 9, 11)


def random_state(network: Network, seed: int = 0) -> dict[str, Tensor]:
    """Official keys with random weights, scaled so that features neither vanish nor explode."""
    generator = torch.Generator().manual_seed(seed)
    state, channels = {}, 3
    for layer in VGG16 if network == "vgg" else ALEX:
        if layer == "pool":
            continue
        index, width, kernel = (*layer, 3)[:3]
        scale = (2 / (channels * kernel**2)) ** 0.5
        shape = (width, channels, kernel, kernel)
        state[f"features.{index}.weight"] = torch.randn(shape, generator=generator) * scale
        state[f"features.{index}.bias"] = torch.randn(width, generator=generator) * 0.1
        channels = width
    for index, width in enumerate(BACKBONES[network].widths):
        state[f"lin{index}.model.1.weight"] = torch.rand(1, width, 1, 1, generator=generator)
    return state


def images(height: int = 20, width: int = 26, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    reference = torch.rand(2, 3, height, width, generator=generator)
    return reference, (reference + 0.2 * torch.randn(reference.shape, generator=generator)).clamp(0, 1)


def convolve(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, stride: int, padding: int) -> np.ndarray:
    padded = np.pad(x, ((0, 0), (padding, padding), (padding, padding)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, weight.shape[2:], (1, 2))[:, ::stride, ::stride]
    return np.einsum("chwij,ocij->ohw", windows, weight, optimize=True) + bias[:, None, None]


def pool(x: np.ndarray, kernel: int) -> np.ndarray:
    return np.lib.stride_tricks.sliding_window_view(x, (kernel, kernel), (1, 2))[:, ::2, ::2].max((3, 4))


def lpips_by_hand(reference: np.ndarray, reconstruction: np.ndarray, state: dict[str, Tensor], network: str) -> float:
    """LPIPS of one image (3, H, W) in [0,1], in float64 numpy."""
    layers, taps = (VGG16, VGG_TAPS) if network == "vgg" else (ALEX, ALEX_TAPS)
    shift, scale = np.array([-0.030, -0.088, -0.188]), np.array([0.458, 0.448, 0.450])
    tapped = []
    for image in (reference, reconstruction):
        x = (image.astype(float) * 2 - 1 - shift[:, None, None]) / scale[:, None, None]
        outputs = []
        for layer in layers:
            if layer == "pool":
                x = pool(x, 2 if network == "vgg" else 3)
                continue
            index, _, _, stride, padding = (*layer, 3, 1, 1)[:5] if network == "vgg" else layer
            weights = (state[f"features.{index}.{part}"].double().numpy() for part in ("weight", "bias"))
            x = np.maximum(convolve(x, *weights, stride, padding), 0)
            if index + 1 in taps:
                outputs.append(x / (np.sqrt((x**2).sum(0)) + 1e-10))
        tapped.append(outputs)
    heads = [state[f"lin{index}.model.1.weight"].double().numpy().reshape(-1) for index in range(5)]
    return sum(
        float((head[:, None, None] * (a - b) ** 2).sum(0).mean()) for head, a, b in zip(heads, *tapped, strict=True)
    )


@pytest.mark.parametrize(("network", "height", "width"), [("vgg", 20, 26), ("alex", 43, 37)])
def test_the_distance_equals_its_formula(network: Network, height: int, width: int) -> None:
    state = random_state(network)
    reference, reconstruction = images(height, width)
    values = LPIPS.from_state(state, network)(reference, reconstruction)
    expected = [
        lpips_by_hand(a, b, state, network) for a, b in zip(reference.numpy(), reconstruction.numpy(), strict=True)
    ]
    assert values.tolist() == pytest.approx(expected, rel=1e-4)


def test_identical_images_have_distance_zero_and_order_does_not_matter() -> None:
    model = LPIPS.from_state(random_state("vgg"))
    a, b = images()
    assert model(a, a).tolist() == [0.0, 0.0]
    assert torch.allclose(model(a, b), model(b, a))


def test_gradients_reach_the_reconstruction_and_not_the_network() -> None:
    model = LPIPS.from_state(random_state("vgg")).train()
    a, b = images(16, 16)
    for reconstruction in (b, a, torch.zeros_like(a)):  # where images are equal the distance has a minimum, not a NaN
        leaf = reconstruction.clone().requires_grad_()
        model(a, leaf).sum().backward()
        assert leaf.grad is not None and bool(torch.isfinite(leaf.grad).all())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not model.training


def test_pixels_without_any_feature_have_a_gradient() -> None:
    state = random_state("vgg")
    state["features.0.bias"] = torch.full((64,), -100.0)  # no ReLU behind the first convolution opens
    state["features.2.bias"] = torch.full((64,), -1.0)
    leaf = torch.rand(1, 3, 16, 16).requires_grad_()
    LPIPS.from_state(state)(torch.rand(1, 3, 16, 16), leaf).sum().backward()
    assert leaf.grad is not None and bool(torch.isfinite(leaf.grad).all())


# --- files -----------------------------------------------------------------------------------------------------------


def test_weights_from_two_files_or_from_one_vqgan_checkpoint(tmp_path: Path) -> None:
    state = random_state("vgg")
    backbone = {key: value for key, value in state.items() if key.startswith("features")}
    torch.save({**backbone, "classifier.0.weight": torch.zeros(2, 2)}, tmp_path / "vgg16.pth")
    save_file({key: value for key, value in state.items() if key.startswith("lin")}, tmp_path / "vgg.safetensors")
    taming = {
        "loss.perceptual_loss."
        + re.sub(
            r"^features\.(\d+)",
            lambda match: f"net.slice{1 + sum(t < int(match[1]) for t in VGG_TAPS)}.{match[1]}",
            key,
        ): value
        for key, value in state.items()
    }
    torch.save({"state_dict": {**taming, "encoder.conv_in.weight": torch.zeros(1)}}, tmp_path / "last.ckpt")
    a, b = images()
    expected = LPIPS.from_state(state)(a, b)
    assert torch.equal(LPIPS.from_files(tmp_path / "vgg16.pth", tmp_path / "vgg.safetensors")(a, b), expected)
    assert torch.equal(LPIPS.from_files(tmp_path / "last.ckpt")(a, b), expected)


def test_without_files_the_error_says_which_are_needed() -> None:
    with pytest.raises(UnavailableError, match=r"torchvision's vgg16 file.*v0\.1/vgg\.pth"):
        LPIPS.from_files(None)
    with pytest.raises(UnavailableError, match="alexnet"):
        LPIPS.from_files(None, network="alex")


def test_files_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    state = random_state("vgg")
    with pytest.raises(CheckpointError, match=r"missing.*heads\.3"):
        LPIPS.from_state({key: value for key, value in state.items() if not key.startswith("lin3")})
    with pytest.raises(CheckpointError, match="wrong shape"):
        LPIPS.from_state(state, "alex")
    with pytest.raises(CheckpointError):
        LPIPS.from_files(tmp_path / "nothing.pth")
    with pytest.raises(ConfigError, match="network"):
        LPIPS("squeeze")  # type: ignore[arg-type]


# --- as a metric -----------------------------------------------------------------------------------------------------


def test_the_metric_averages_images_and_names_its_weights() -> None:
    model = LPIPS.from_state(random_state("vgg"))
    a, b = images()
    metric = LPIPSDistance(model)
    metric.update(a[:1], b[:1])
    metric.update((a[1:] * 255).round().to(torch.uint8), b[1:])
    assert metric.compute() == pytest.approx(float(model(a, b).mean()), rel=1e-2)
    assert metric.protocol.startswith("lpips-0.1/vgg@")
    other = LPIPSDistance(LPIPS.from_state(random_state("vgg", seed=1)))
    assert other.protocol != metric.protocol
    with pytest.raises(ConfigError):
        metric.merge(other)


@pytest.mark.parametrize("shape", [(2, 3, 15, 20), (3, 20, 20), (1, 1, 20, 20)])
def test_shapes_that_can_not_be_compared_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError):
        LPIPS()(torch.rand(shape), torch.rand(shape))


def test_the_metric_refuses_values_out_of_range() -> None:
    a, b = images()
    with pytest.raises(InputError, match=r"\[0,1\]"):
        LPIPSDistance(LPIPS()).update(a, b * 2)
