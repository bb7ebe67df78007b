"""Channel-last convolution and padding, against torch's channel-first ones."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from smalti.audio.conv import WIDE, Conv1d, pad

# Every way that Conv1d has: pointwise, one input channel, taps as rows (wide, no gradient), and the rest.
SHAPES = [
    shape
    for shape in itertools.product((1, 6, WIDE), (5,), (1, 2, 3, 6), (1, 2, 3), (1, 2), (24, 31))
    if (shape[2] - 1) * shape[4] < shape[5]
]


@pytest.mark.parametrize(("inputs", "outputs", "kernel", "stride", "dilation", "time"), SHAPES)
def test_convolution_is_torchs(inputs: int, outputs: int, kernel: int, stride: int, dilation: int, time: int) -> None:
    torch.manual_seed(0)
    conv = Conv1d(inputs, outputs, kernel, stride=stride, dilation=dilation)
    x = torch.randn(3, time, inputs)
    expected = _torchs(conv, x)
    with torch.no_grad():
        torch.testing.assert_close(conv(x), expected)
        torch.testing.assert_close(conv(x[:1]), expected[:1])
    torch.testing.assert_close(conv(x), expected)


def test_depthwise_convolution_is_torchs() -> None:
    conv = Conv1d(6, 6, 7, groups=6)
    x = torch.randn(2, 19, 6)
    torch.testing.assert_close(conv(x), _torchs(conv, x))


@pytest.mark.parametrize("inputs", [1, 6, WIDE])
def test_gradients_are_torchs(inputs: int) -> None:
    conv = Conv1d(inputs, 5, 4, stride=2)
    x = torch.randn(2, 20, inputs, requires_grad=True)
    leaves = [x, conv.weight, conv.bias]
    ours = torch.autograd.grad(conv(x).sin().sum(), leaves)
    theirs = torch.autograd.grad(_torchs(conv, x).sin().sum(), leaves)
    torch.testing.assert_close(ours, theirs)


def test_weights_keep_their_layout_in_memory_when_loaded() -> None:
    conv, other = Conv1d(8, 4, 3), torch.nn.Conv1d(8, 4, 3)
    conv.load_state_dict(other.state_dict())
    assert conv.weight.shape == other.weight.shape
    assert conv.weight.transpose(1, 2).is_contiguous()


@pytest.mark.parametrize("left", range(7))
@pytest.mark.parametrize("right", range(7))
def test_padding_mirrors_by_the_rule_of_short_signals(left: int, right: int) -> None:
    for time in (1, 2, 3, 5, 8, 20):
        x = torch.arange(1.0, time + 1)
        missing = max(0, max(left, right) + 1 - time)
        longer = x.tolist() + [0.0] * missing
        mirrored = [longer[left - i] for i in range(left)] + longer + [longer[-2 - i] for i in range(right)]
        expected = mirrored[: len(mirrored) - missing]
        assert pad(x[None, :, None], left, right, "reflect")[0, :, 0].tolist() == expected, (time, left, right)


def test_padding_with_zeros() -> None:
    padded = pad(torch.ones(1, 2, 1), 1, 3, "constant")
    assert padded[0, :, 0].tolist() == [0, 1, 1, 0, 0, 0]


def _torchs(conv: Conv1d, x: Tensor) -> Tensor:
    out = F.conv1d(x.transpose(1, 2), conv.weight, conv.bias, conv.stride, 0, conv.dilation, conv.groups)
    return out.transpose(1, 2)
