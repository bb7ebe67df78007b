"""The VQGAN network written a second time, as plain functions over an official state dict.

No module, no configuration: the keys of the state dict say which blocks there are. It is the independent reference
of `smalti.image.vqgan` in the tests, and the plain implementation that its speed is measured against.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

State = dict[str, Tensor]


def swish(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


def norm(state: State, name: str, x: Tensor) -> Tensor:
    return F.group_norm(x, 32, state[f"{name}.weight"], state[f"{name}.bias"], eps=1e-6)


def conv(state: State, name: str, x: Tensor, stride: int = 1, padding: int | None = None) -> Tensor:
    weight = state[f"{name}.weight"]
    padding = weight.shape[-1] // 2 if padding is None else padding
    return F.conv2d(x, weight, state.get(f"{name}.bias"), stride=stride, padding=padding)


def resnet_block(state: State, name: str, x: Tensor) -> Tensor:
    h = conv(state, f"{name}.conv1", swish(norm(state, f"{name}.norm1", x)))
    h = conv(state, f"{name}.conv2", swish(norm(state, f"{name}.norm2", h)))
    if f"{name}.nin_shortcut.weight" in state:
        x = conv(state, f"{name}.nin_shortcut", x)
    return x + h


def attention(state: State, name: str, x: Tensor) -> Tensor:
    batch, channels, height, width = x.shape
    h = norm(state, f"{name}.norm", x)
    q, k, v = (conv(state, f"{name}.{part}", h).flatten(2) for part in "qkv")
    weights = torch.softmax(torch.einsum("bci,bcj->bij", q, k) * channels**-0.5, dim=2)
    h = torch.einsum("bcj,bij->bci", v, weights).reshape(batch, channels, height, width)
    return x + conv(state, f"{name}.proj_out", h)


def level(state: State, name: str, x: Tensor) -> Tensor:
    i = 0
    while f"{name}.block.{i}.conv1.weight" in state:
        x = resnet_block(state, f"{name}.block.{i}", x)
        if f"{name}.attn.{i}.q.weight" in state:
            x = attention(state, f"{name}.attn.{i}", x)
        i += 1
    return x


def middle(state: State, name: str, x: Tensor) -> Tensor:
    x = resnet_block(state, f"{name}.mid.block_1", x)
    x = attention(state, f"{name}.mid.attn_1", x)
    return resnet_block(state, f"{name}.mid.block_2", x)


def encode(state: State, x: Tensor, name: str = "encoder") -> Tensor:
    x = conv(state, f"{name}.conv_in", x)
    i = 0
    while f"{name}.down.{i}.block.0.conv1.weight" in state:
        x = level(state, f"{name}.down.{i}", x)
        if f"{name}.down.{i}.downsample.conv.weight" in state:
            x = conv(state, f"{name}.down.{i}.downsample.conv", F.pad(x, (0, 1, 0, 1)), stride=2, padding=0)
        i += 1
    x = middle(state, name, x)
    return conv(state, f"{name}.conv_out", swish(norm(state, f"{name}.norm_out", x)))


def decode(state: State, x: Tensor, name: str = "decoder") -> Tensor:
    x = middle(state, name, conv(state, f"{name}.conv_in", x))
    levels = {int(key.split(".")[2]) for key in state if key.startswith(f"{name}.up.")}
    for i in sorted(levels, reverse=True):
        x = level(state, f"{name}.up.{i}", x)
        if f"{name}.up.{i}.upsample.conv.weight" in state:
            x = x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
            x = conv(state, f"{name}.up.{i}.upsample.conv", x)
    return conv(state, f"{name}.conv_out", swish(norm(state, f"{name}.norm_out", x)))
