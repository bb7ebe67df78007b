"""SEANet, one codebook and Vocos written a second time, as plain functions over an official state dict.

No module, no configuration: the keys of the state dict say which layers there are. It is the independent reference of
`smalti.audio.seanet`, `smalti.audio.vocos` and the systems on them, in the tests, and the plain implementation that
their speed is measured against. Tensors are (batch, channels, time), weights are normalised at every call, as in the
official code.
"""

from __future__ import annotations

import math
import re

import torch
import torch.nn.functional as F
from torch import Tensor

State = dict[str, Tensor]

FEATURES = "feature_extractor.encodec."
CODEBOOK = FEATURES + "quantizer.vq.layers.0._codebook."


# --- encoder ---------------------------------------------------------------------------------------------------------


def reflect(x: Tensor, left: int, right: int) -> Tensor:
    missing = max(0, max(left, right) - x.shape[-1] + 1)
    padded = F.pad(F.pad(x, (0, missing)), (left, right), mode="reflect")
    return padded[..., : padded.shape[-1] - missing]


def conv(state: State, name: str, x: Tensor, *, stride: int = 1, dilation: int = 1, causal: bool = False) -> Tensor:
    gain, direction = state[f"{name}.conv.conv.weight_g"], state[f"{name}.conv.conv.weight_v"]
    weight = gain * direction / direction.norm(dim=(1, 2), keepdim=True)
    reach = (weight.shape[-1] - 1) * dilation + 1
    total = reach - stride
    frames = (x.shape[-1] - reach + total) / stride + 1
    extra = (math.ceil(frames) - 1) * stride + (reach - total) - x.shape[-1]
    right = 0 if causal else total // 2
    x = reflect(x, total - right, right + extra)
    return F.conv1d(x, weight, state[f"{name}.conv.conv.bias"], stride, 0, dilation)


def lstm(state: State, name: str, x: Tensor) -> Tensor:
    """All layers of an LSTM and the input, one step at a time."""
    steps, layer = x, 0
    while f"{name}.weight_ih_l{layer}" in state:
        parts = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        weight_ih, weight_hh, bias_ih, bias_hh = (state[f"{name}.{part}_l{layer}"] for part in parts)
        hidden = cell = x.new_zeros(len(x), weight_hh.shape[1])
        outputs = []
        for step in steps.unbind(-1):
            gates = step @ weight_ih.t() + bias_ih + hidden @ weight_hh.t() + bias_hh
            i, f, g, o = gates.chunk(4, 1)
            cell = torch.sigmoid(f) * cell + torch.sigmoid(i) * torch.tanh(g)
            hidden = torch.sigmoid(o) * torch.tanh(cell)
            outputs.append(hidden)
        steps, layer = torch.stack(outputs, -1), layer + 1
    return steps + x


def encode(state: State, prefix: str, x: Tensor, *, causal: bool = False) -> Tensor:
    """(B,1,T) -> (B,D,L). `prefix` stands before the numbers of the layers."""
    numbers = sorted({int(match[1]) for key in state if (match := re.match(re.escape(prefix) + r"(\d+)\.", key))})
    dilation = 1
    for number in numbers:
        name = f"{prefix}{number}"
        if f"{name}.block.1.conv.conv.bias" in state:
            hidden = conv(state, f"{name}.block.1", F.elu(x), dilation=dilation, causal=causal)
            hidden = conv(state, f"{name}.block.3", F.elu(hidden), causal=causal)
            x = conv(state, f"{name}.shortcut", x, causal=causal) + hidden
            dilation *= 2
        elif f"{name}.lstm.weight_ih_l0" in state:
            x = lstm(state, f"{name}.lstm", x)
        else:
            middle = number not in (numbers[0], numbers[-1])
            stride = state[f"{name}.conv.conv.weight_v"].shape[-1] // 2 if middle else 1
            x = conv(state, name, x if number == 0 else F.elu(x), stride=stride, causal=causal)
            dilation = 1
    return x


# --- decoder ---------------------------------------------------------------------------------------------------------


def group_norm(state: State, name: str, x: Tensor) -> Tensor:
    grouped = x.reshape(len(x), 32, -1)
    normal = (grouped - grouped.mean(-1, keepdim=True)) / (grouped.var(-1, correction=0, keepdim=True) + 1e-6).sqrt()
    return normal.reshape(x.shape) * state[f"{name}.weight"][:, None] + state[f"{name}.bias"][:, None]


def layer_norm(state: State, name: str, x: Tensor, bandwidth: int) -> Tensor:
    """Over channels of (B,L,C); adaptive where there is a table of scales."""
    normal = (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + 1e-6).sqrt()
    if f"{name}.scale.weight" in state:
        return normal * state[f"{name}.scale.weight"][bandwidth] + state[f"{name}.shift.weight"][bandwidth]
    return normal * state[f"{name}.weight"] + state[f"{name}.bias"]


def zero_conv(state: State, name: str, x: Tensor, groups: int = 1) -> Tensor:
    weight = state[f"{name}.weight"]
    return F.conv1d(x, weight, state[f"{name}.bias"], padding=weight.shape[-1] // 2, groups=groups)


def swish(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


def pos_net(state: State, x: Tensor) -> Tensor:
    for number in (0, 1, 2, 3, 4):
        name = f"backbone.pos_net.{number}"
        if number == 2:
            q, k, v = (zero_conv(state, f"{name}.{part}", group_norm(state, f"{name}.norm", x)) for part in "qkv")
            weights = torch.softmax(torch.einsum("bct,bcs->bts", q, k) / math.sqrt(q.shape[1]), dim=-1)
            x = x + zero_conv(state, f"{name}.proj_out", torch.einsum("bts,bcs->bct", weights, v))
        else:
            hidden = zero_conv(state, f"{name}.conv1", swish(group_norm(state, f"{name}.norm1", x)))
            x = x + zero_conv(state, f"{name}.conv2", swish(group_norm(state, f"{name}.norm2", hidden)))
    return group_norm(state, "backbone.pos_net.5", x)


def backbone(state: State, x: Tensor, bandwidth: int = 0) -> Tensor:
    """(B,D,L) -> (B,L,dim)."""
    x = pos_net(state, zero_conv(state, "backbone.embed", x))
    x = layer_norm(state, "backbone.norm", x.transpose(1, 2), bandwidth).transpose(1, 2)
    block = 0
    while f"backbone.convnext.{block}.gamma" in state:
        name = f"backbone.convnext.{block}"
        h = zero_conv(state, f"{name}.dwconv", x, groups=x.shape[1]).transpose(1, 2)
        h = layer_norm(state, f"{name}.norm", h, bandwidth)
        h = F.gelu(h @ state[f"{name}.pwconv1.weight"].t() + state[f"{name}.pwconv1.bias"])
        h = h @ state[f"{name}.pwconv2.weight"].t() + state[f"{name}.pwconv2.bias"]
        x, block = x + (state[f"{name}.gamma"] * h).transpose(1, 2), block + 1
    return layer_norm(state, "backbone.final_layer_norm", x.transpose(1, 2), bandwidth)


def head(state: State, x: Tensor, hop: int) -> Tensor:
    """(B,L,dim) -> (B,L*hop)."""
    log_magnitude, phase = (x @ state["head.out.weight"].t() + state["head.out.bias"]).transpose(1, 2).chunk(2, 1)
    spectrum = log_magnitude.exp().clamp(max=100) * (torch.cos(phase) + 1j * torch.sin(phase))
    return inverse_stft(spectrum, state["head.istft.window"], hop)


def inverse_stft(spectrum: Tensor, window: Tensor, hop: int) -> Tensor:
    """(B,bins,L) -> (B,L*hop), as the official code spells it."""
    size, frames = len(window), spectrum.shape[-1]
    edge = (size - hop) // 2
    pieces = torch.fft.irfft(spectrum, size, dim=1) * window[:, None]
    squares = window.square()[None, :, None].expand(1, -1, frames)
    summed, envelope = (
        F.fold(part, (1, (frames - 1) * hop + size), (1, size), stride=(1, hop))[:, 0, 0, edge : edge + frames * hop]
        for part in (pieces, squares)
    )
    return summed / envelope


# --- random checkpoints ----------------------------------------------------------------------------------------------


def random_encoder(
    draw: torch.Generator,
    prefix: str,
    *,
    filters: int = 4,
    dimension: int = 8,
    ratios: tuple[int, ...] = (3, 2),
    residual_layers: int = 1,
    lstm_layers: int = 2,
) -> State:
    """An encoder under the names and shapes of the published files."""
    state: State = {}

    def add(name: str, outputs: int, inputs: int, kernel: int) -> None:
        state[f"{name}.conv.conv.weight_g"] = torch.rand(outputs, 1, 1, generator=draw) + 0.5
        state[f"{name}.conv.conv.weight_v"] = torch.randn(outputs, inputs, kernel, generator=draw)
        state[f"{name}.conv.conv.bias"] = torch.randn(outputs, generator=draw) / 10

    add(f"{prefix}0", filters, 1, 7)
    width, number = filters, 1
    for ratio in reversed(ratios):
        for _ in range(residual_layers):
            add(f"{prefix}{number}.block.1", width // 2, width, 3)
            add(f"{prefix}{number}.block.3", width, width // 2, 1)
            add(f"{prefix}{number}.shortcut", width, width, 1)
            number += 1
        add(f"{prefix}{number + 1}", 2 * width, width, 2 * ratio)
        width, number = 2 * width, number + 2
    for layer in range(lstm_layers):
        for part, shape in (("weight_ih", (4 * width, width)), ("weight_hh", (4 * width, width))):
            state[f"{prefix}{number}.lstm.{part}_l{layer}"] = torch.randn(shape, generator=draw) / width**0.5
        for part in ("bias_ih", "bias_hh"):
            state[f"{prefix}{number}.lstm.{part}_l{layer}"] = torch.randn(4 * width, generator=draw) / 10
    add(f"{prefix}{number + (2 if lstm_layers else 1)}", dimension, width, 7)
    return state


def random_decoder(
    draw: torch.Generator,
    *,
    dimension: int = 8,
    dim: int = 32,
    intermediate: int = 48,
    layers: int = 2,
    bandwidths: int = 4,
    n_fft: int = 24,
) -> State:
    """A Vocos backbone and head under the names and shapes of the published files."""
    state: State = {}

    def add(name: str, *shape: int, scale: float | None = None) -> None:
        state[f"{name}.weight"] = torch.randn(shape, generator=draw) * (scale or math.prod(shape[1:]) ** -0.5)
        state[f"{name}.bias"] = torch.randn(shape[0], generator=draw) / 10

    def add_norm(name: str) -> None:
        state[f"{name}.weight"] = 1 + torch.randn(dim, generator=draw) / 5
        state[f"{name}.bias"] = torch.randn(dim, generator=draw) / 5

    def add_adaptive(name: str) -> None:
        if not bandwidths:
            return add_norm(name)
        state[f"{name}.scale.weight"] = 1 + torch.randn(bandwidths, dim, generator=draw) / 5
        state[f"{name}.shift.weight"] = torch.randn(bandwidths, dim, generator=draw) / 5
        return None

    add("backbone.embed", dim, dimension, 7)
    for number in (0, 1, 3, 4):
        for part in ("1", "2"):
            add_norm(f"backbone.pos_net.{number}.norm{part}")
            add(f"backbone.pos_net.{number}.conv{part}", dim, dim, 3)
    add_norm("backbone.pos_net.2.norm")
    for part in ("q", "k", "v", "proj_out"):
        add(f"backbone.pos_net.2.{part}", dim, dim, 1)
    add_norm("backbone.pos_net.5")
    add_adaptive("backbone.norm")
    for block in range(layers):
        add(f"backbone.convnext.{block}.dwconv", dim, 1, 7)
        add_adaptive(f"backbone.convnext.{block}.norm")
        add(f"backbone.convnext.{block}.pwconv1", intermediate, dim)
        add(f"backbone.convnext.{block}.pwconv2", dim, intermediate)
        state[f"backbone.convnext.{block}.gamma"] = torch.rand(dim, generator=draw)
    add_norm("backbone.final_layer_norm")
    add("head.out", n_fft + 2, dim)
    state["head.istft.window"] = torch.hann_window(n_fft)
    return state


def random_codebook(draw: torch.Generator, prefix: str, codes: int, dimension: int) -> State:
    rows = torch.randn(codes, dimension, generator=draw)
    return {
        f"{prefix}inited": torch.ones(1),
        f"{prefix}cluster_size": torch.rand(codes, generator=draw) * 10,
        f"{prefix}embed": rows,
        f"{prefix}embed_avg": rows * 3,
    }
