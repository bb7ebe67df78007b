"""The VQGAN network against the same network written as functions over its state dict."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from smalti.errors import CheckpointError, ConfigError
from smalti.image.vqgan import Decoder, Encoder, ResnetBlock, read_decoder, read_encoder
from smalti.nn.convolution import upsampled_conv2d
from tests.image import taming_reference as reference

SIZES: list[dict[str, Any]] = [
    {"widths": (32,), "attention_levels": (), "latent_channels": 5},
    {"widths": (64, 32), "attention_levels": (1,), "latent_channels": 16},
    {"widths": (32, 64, 32), "attention_levels": (0, 2), "latent_channels": 3, "image_channels": 4},
]


def prefixed(module: torch.nn.Module, name: str) -> dict[str, Tensor]:
    return {f"{name}.{key}": value.contiguous() for key, value in module.state_dict().items()}


def random_images(channels: int, height: int, width: int, batch: int = 2) -> Tensor:
    return torch.rand(batch, channels, height, width, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("extent", [(16, 16), (24, 12), (13, 22)])
def test_encoder_equals_the_plain_network(sizes: dict[str, Any], extent: tuple[int, int]) -> None:
    torch.manual_seed(0)
    encoder = Encoder.Config(stem=32, blocks=2, **sizes).build().eval()
    x = random_images(sizes.get("image_channels", 3), *extent)
    expected = reference.encode(prefixed(encoder, "encoder"), x)
    with torch.no_grad():
        torch.testing.assert_close(encoder(x), expected, atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(encoder(x), expected, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("sizes", SIZES)
def test_decoder_equals_the_plain_network(sizes: dict[str, Any]) -> None:
    torch.manual_seed(0)
    decoder = Decoder.Config(blocks=2, **sizes).build().eval()
    z = torch.randn(2, sizes["latent_channels"], 5, 7)
    expected = reference.decode(prefixed(decoder, "decoder"), z)
    with torch.no_grad():
        torch.testing.assert_close(decoder(z), expected, atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(decoder(z), expected, atol=2e-5, rtol=1e-5)


def test_gradients_equal_those_of_the_plain_network() -> None:
    torch.manual_seed(0)
    decoder = Decoder.Config(blocks=1, widths=(32, 32), attention_levels=(1,), latent_channels=4).build()
    z = torch.randn(1, 4, 6, 6, requires_grad=True)
    state = {key: value.clone().requires_grad_() for key, value in prefixed(decoder, "decoder").items()}
    target = torch.randn(1, 3, 12, 12)
    ours = torch.autograd.grad(F.mse_loss(decoder(z), target), [z, *decoder.parameters()])
    names = [f"decoder.{name}" for name, _ in decoder.named_parameters()]
    theirs = torch.autograd.grad(F.mse_loss(reference.decode(state, z), target), [z, *(state[name] for name in names)])
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("extent", [(1, 1), (1, 5), (4, 3)])
def test_transposed_convolution_is_nearest_upsampling_and_a_convolution(extent: tuple[int, int]) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 6, *extent, dtype=torch.float64)
    weight, bias = torch.randn(5, 6, 3, 3, dtype=torch.float64), torch.randn(5, dtype=torch.float64)
    expected = F.conv2d(F.interpolate(x, scale_factor=2.0, mode="nearest"), weight, bias, padding=1)
    torch.testing.assert_close(upsampled_conv2d(x, weight, bias), expected, atol=1e-12, rtol=1e-12)


def test_nothing_that_the_caller_holds_is_overwritten() -> None:
    torch.manual_seed(0)
    block = ResnetBlock(32, 32).eval()
    encoder = Encoder.Config(stem=32, widths=(32, 32), attention_levels=(1,)).build().eval()
    for module, x in ((block, torch.randn(1, 32, 4, 4)), (encoder, random_images(3, 8, 8))):
        before = x.clone()
        with torch.no_grad():
            module(x)
        assert torch.equal(x, before)


def test_weights_stay_channels_last_when_they_are_loaded() -> None:
    encoder = Encoder.Config(stem=32, widths=(32, 32), attention_levels=(1,)).build()
    encoder.load_state_dict({key: value.contiguous() for key, value in encoder.state_dict().items()})
    assert encoder.down[0].block[0].conv1.weight.is_contiguous(memory_format=torch.channels_last)


def test_double_latent_doubles_the_channels() -> None:
    encoder = Encoder.Config(stem=32, widths=(32,), attention_levels=(), latent_channels=4, double_latent=True)
    assert encoder.build()(random_images(3, 4, 4)).shape == (2, 8, 4, 4)


@pytest.mark.parametrize("sizes", SIZES)
def test_sizes_are_read_off_the_tensors(sizes: dict[str, Any]) -> None:
    encoder = Encoder.Config(stem=64, blocks=2, **sizes)
    decoder = Decoder.Config(blocks=3, **sizes)
    state = prefixed(encoder.build(), "encoder") | prefixed(decoder.build(), "decoder")
    assert read_encoder(state) == encoder
    assert read_decoder(state) == decoder


def test_a_network_without_a_level_is_refused() -> None:
    state = prefixed(Encoder.Config(stem=32, widths=(32, 32, 32), attention_levels=()).build(), "encoder")
    with pytest.raises(CheckpointError, match=r"encoder\.down"):
        read_encoder({key: value for key, value in state.items() if not key.startswith("encoder.down.1.")})


@pytest.mark.parametrize("wrong", [{"widths": (48,)}, {"attention_levels": (5,)}, {"blocks": 0}, {"stem": 40}])
def test_impossible_sizes_are_named(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        Encoder.Config(**wrong)
