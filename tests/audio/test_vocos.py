"""The Vocos decoder, against the second spelling of `codec_reference` and against sums written out."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from smalti.audio.vocos import LOUDEST, ISTFTHead, VocosBackbone, inverse_stft, overlap_add
from smalti.errors import CheckpointError, ConfigError
from smalti.folder import fill
from tests.audio import codec_reference as reference


def part(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def backbone(state: dict[str, Tensor]) -> VocosBackbone:
    built = VocosBackbone.Config.of_official(part(state, "backbone.")).build().to(state["backbone.embed.bias"]).eval()
    fill(built, part(state, "backbone."), "the backbone")
    return built


@settings(max_examples=20, deadline=None)
@given(
    dimension=st.integers(1, 12),
    dim=st.sampled_from([32, 64, 96]),
    layers=st.integers(1, 3),
    bandwidths=st.integers(0, 4),
    time=st.integers(2, 40),
    seed=st.integers(0, 99),
)
def test_features_are_those_of_the_plain_spelling(
    dimension: int, dim: int, layers: int, bandwidths: int, time: int, seed: int
) -> None:
    draw = torch.Generator().manual_seed(seed)
    state = reference.random_decoder(draw, dimension=dimension, dim=dim, layers=layers, bandwidths=bandwidths)
    x = torch.randn(2, time, dimension, generator=draw)
    row = max(0, bandwidths - 1)
    # In float64: over few frames the group norms enlarge what rounding leaves of nearly equal values.
    state = {key: value.double() for key, value in state.items()}
    with torch.no_grad():
        ours = backbone(state).double()(x.double(), row)
    expected = reference.backbone(state, x.double().transpose(1, 2), row)
    torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-6)


def test_the_row_of_the_adaptive_norms_matters() -> None:
    net = backbone(reference.random_decoder(torch.Generator().manual_seed(0)))
    x = torch.randn(1, 9, 8)
    with torch.no_grad():
        assert not torch.allclose(net(x, 0), net(x, 3))


def test_a_wide_backbone_takes_the_same_values_without_gradients() -> None:
    torch.manual_seed(0)
    net = VocosBackbone.Config(input_channels=256, dim=256, intermediate_dim=64, layers=1).build().eval()
    x = torch.randn(2, 11, 256)
    recorded = net(x)
    with torch.no_grad():
        torch.testing.assert_close(net(x), recorded.detach(), rtol=1e-4, atol=1e-5)


def test_gradients_reach_every_parameter() -> None:
    net = VocosBackbone.Config(input_channels=4, dim=32, intermediate_dim=16, layers=2, bandwidths=1).build()
    head = ISTFTHead.Config(dim=32, n_fft=16, hop=4).build()
    head(net(torch.randn(1, 7, 4))).square().sum().backward()
    unreached = [name for name, each in net.named_parameters() if each.grad is None or not each.grad.any()]
    # What every channel gets alike vanishes in the next norm or softmax: biases before them have no gradient.
    assert all(name.endswith("bias") for name in unreached), unreached


# --- inverse STFT ----------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(hop=st.integers(1, 12), half=st.integers(1, 20), frames=st.integers(1, 12), seed=st.integers(0, 99))
def test_inverse_stft_is_exact_for_the_spectrum_of_a_signal(hop: int, half: int, frames: int, seed: int) -> None:
    size = hop + 2 * half + (hop % 2)
    signal = torch.randn(1, frames * hop, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    window = torch.hann_window(size, dtype=torch.float64)
    # Frame t is centred on the middle of samples t*hop .. (t+1)*hop, so the signal is padded by half of the rest.
    padded = torch.nn.functional.pad(signal, (half, size - hop - half))
    spectrum = torch.fft.rfft(padded.unfold(1, size, hop) * window)
    recovered = inverse_stft(spectrum, window, hop)
    torch.testing.assert_close(recovered, signal, rtol=1e-9, atol=1e-9)


def test_inverse_stft_against_sums_written_out() -> None:
    torch.manual_seed(0)
    size, hop, frames = 8, 2, 5
    window = torch.hann_window(size, dtype=torch.float64)
    spectrum = torch.randn(1, frames, size // 2 + 1, dtype=torch.complex128)
    total, weight = [0.0] * (frames * hop + size), [0.0] * (frames * hop + size)
    for t in range(frames):
        for n in range(size):
            value = 0.0
            for k in range(size // 2 + 1):
                twice = 1 if k in (0, size // 2) else 2
                angle = 2 * math.pi * k * n / size
                turned = spectrum[0, t, k].item() * complex(math.cos(angle), math.sin(angle))
                value += twice * turned.real / size
            total[t * hop + n] += value * window[n].item()
            weight[t * hop + n] += window[n].item() ** 2
    edge = (size - hop) // 2
    expected = torch.tensor([[total[i] / weight[i] for i in range(edge, edge + frames * hop)]], dtype=torch.float64)
    torch.testing.assert_close(inverse_stft(spectrum, window, hop), expected)


@given(count=st.integers(1, 9), size=st.integers(1, 20), hop=st.integers(1, 8))
def test_overlap_add_against_loops(count: int, size: int, hop: int) -> None:
    frames = torch.randint(-9, 9, (2, count, size)).double()
    expected = torch.zeros(2, (count - 1) * hop + size, dtype=torch.float64)
    for t in range(count):
        expected[:, t * hop : t * hop + size] += frames[:, t]
    assert torch.equal(overlap_add(frames, hop), expected)


def test_the_head_is_the_plain_spelling_and_cuts_loud_magnitudes() -> None:
    state = reference.random_decoder(torch.Generator().manual_seed(0), n_fft=24)
    state["head.out.bias"] += 6  # exp of more than ln(100) in many bins
    head = ISTFTHead.Config(dim=32, n_fft=24, hop=6).build().eval()
    fill(head, {key.replace("istft.", ""): value for key, value in part(state, "head.").items()}, "the head")
    x = torch.randn(2, 10, 32)
    with torch.no_grad():
        log_magnitude = head.out(x).chunk(2, -1)[0]
        assert (log_magnitude > math.log(LOUDEST)).any()
        assert head(x).shape == (2, 60)
        torch.testing.assert_close(head(x), reference.head(state, x, 6), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("wrong", [{"n_fft": 320}, {"n_fft": 1281}, {"n_fft": 100}])
def test_heads_without_an_inverse_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        ISTFTHead.Config(**wrong)


def test_a_width_that_groups_do_not_divide_is_refused() -> None:
    with pytest.raises(ConfigError, match="32"):
        VocosBackbone.Config(dim=40)
    assert VocosBackbone.Config(dim=40, pos_net=False).build()(torch.zeros(1, 3, 512)).shape == (1, 3, 40)


def test_tensors_of_something_else_are_refused() -> None:
    with pytest.raises(CheckpointError, match="Vocos"):
        VocosBackbone.Config.of_official({"embed.weight": torch.zeros(4, 4, 7)})
