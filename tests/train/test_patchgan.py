"""PatchGAN against its layout written down independently, and against the published key names."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from smalti.errors import ConfigError, InputError
from smalti.train.patchgan import PatchGAN

# As the sheets of LlamaGen and SimVQ have it: key, (output, input) channels, stride, bias, normalised.
THREE_LAYERS = [
    ("main.0", (64, 3), 2, True, None),
    ("main.2", (128, 64), 2, False, "main.3"),
    ("main.5", (256, 128), 2, False, "main.6"),
    ("main.8", (512, 256), 1, False, "main.9"),
    ("main.11", (1, 512), 1, True, None),
]


def by_hand(images: Tensor, state: dict[str, Tensor]) -> Tensor:
    """Training mode: statistics are those of the batch."""
    x = images
    for name, _, stride, bias, norm in THREE_LAYERS:
        x = F.conv2d(x, state[f"{name}.weight"], state[f"{name}.bias"] if bias else None, stride, 1)
        if norm is not None:
            mean, variance = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), unbiased=False, keepdim=True)
            gain, shift = (state[f"{norm}.{part}"][:, None, None] for part in ("weight", "bias"))
            x = (x - mean) / (variance + 1e-5).sqrt() * gain + shift
        if name != "main.11":
            x = torch.where(x > 0, x, 0.2 * x)
    return x


def test_the_layout_is_that_of_the_published_code() -> None:
    network = PatchGAN.Config().build()
    state = network.state_dict()
    learned = {key: tuple(value.shape) for key, value in state.items() if "running" not in key and "num_" not in key}
    expected: dict[str, tuple[int, ...]] = {}
    for name, (outputs, inputs), _, bias, norm in THREE_LAYERS:
        expected[f"{name}.weight"] = (outputs, inputs, 4, 4)
        expected |= {f"{name}.bias": (outputs,)} if bias else {}
        expected |= {} if norm is None else {f"{norm}.weight": (outputs,), f"{norm}.bias": (outputs,)}
    assert learned == expected
    images = torch.randn(2, 3, 40, 56)
    with torch.no_grad():
        assert torch.allclose(network(images), by_hand(images, state), atol=1e-4)


def test_weights_start_with_a_spread_of_two_hundredths() -> None:
    torch.manual_seed(0)
    state = PatchGAN.Config().build().state_dict()
    for key in ("main.2.weight", "main.8.weight"):
        assert state[key].mean().abs() < 1e-3 and state[key].std().item() == pytest.approx(0.02, rel=0.03)
    gain = state["main.9.weight"]
    assert gain.mean().item() == pytest.approx(1, abs=0.005) and gain.std().item() == pytest.approx(0.02, rel=0.2)
    assert state["main.9.bias"].abs().max() == 0


@pytest.mark.parametrize(("layers", "seen"), [(1, 16), (2, 34), (3, 70)])
def test_a_logit_sees_a_patch_of_the_known_size(layers: int, seen: int) -> None:
    network = PatchGAN.Config(layers=layers, width=2).build().eval()
    images = torch.randn(1, 3, 128, 128, requires_grad=True)
    logits = network(images)
    logits[0, 0, logits.shape[2] // 2, logits.shape[3] // 2].backward()
    assert images.grad is not None
    rows = images.grad.abs().sum((0, 1, 3)).nonzero()
    assert int(rows.max() - rows.min()) + 1 == seen


def test_256_pixels_give_30_by_30_logits() -> None:
    network = PatchGAN.Config(width=1).build()
    assert network(torch.zeros(1, 3, 256, 256)).shape == (1, 1, 30, 30)


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_images_below_the_least_size_are_refused_with_what_is_needed(layers: int) -> None:
    network = PatchGAN.Config(layers=layers, width=2).build()
    assert network(torch.randn(2, 3, network.least, network.least + 5)).shape[2] == 1
    with pytest.raises(InputError, match=f"needs {network.least} pixels"):
        network(torch.randn(2, 3, network.least - 1, 64))
    with pytest.raises(RuntimeError):  # the bound is not too strict: torch fails there too
        network.main(torch.randn(2, 3, network.least - 1, 64))


def test_wrong_sizes_are_named() -> None:
    with pytest.raises(ConfigError, match="layers"):
        PatchGAN.Config(layers=0)
