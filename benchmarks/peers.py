"""The networks of published codecs in plain PyTorch, as their authors spell them: what our speed is measured against.

Plain functions over a state dict, on torch's own primitives, without any of Smalti's code: contiguous NCHW
convolutions, softmax attention written out, weight norm applied at every call, distances to all codes as one matrix.
They compute what the references of the tests compute, which were written to be read rather than to be quick.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.audio import codec_reference as audio
from tests.image import taming_reference as image

State = dict[str, Tensor]


def nearest(z: Tensor, rows: Tensor) -> Tensor:
    """The row with the smallest distance, (n,D) and (V,D) -> (n,), as |z|² + |e|² - 2 z·e."""
    return (z.square().sum(1, keepdim=True) + rows.square().sum(1) - 2 * z @ rows.t()).argmin(1)


# --- VQGAN and LlamaGen, under taming's names ------------------------------------------------------------------------


def vqgan_encode(state: State, x: Tensor, rows: Tensor, *, unit: bool) -> Tensor:
    """(B,3,H,W) in [-1,1] -> codes (B,h,w)."""
    z = image.conv(state, "quant_conv", image.encode(state, x)).permute(0, 2, 3, 1)
    flat = z.reshape(-1, z.shape[-1])
    return nearest(F.normalize(flat), F.normalize(rows)) if unit else nearest(flat, rows)


def vqgan_decode(state: State, codes: Tensor, rows: Tensor, *, unit: bool) -> Tensor:
    vectors = F.embedding(codes, F.normalize(rows) if unit else rows).permute(0, 3, 1, 2)
    return image.decode(state, image.conv(state, "post_quant_conv", vectors.contiguous()))


# --- SimVQ for images, under Open-MAGVIT2's names --------------------------------------------------------------------


def simvq_rows(state: State) -> Tensor:
    """The effective codebook, computed at every call as in the official code."""
    return F.linear(
        state["quantize.embedding.weight"],
        state["quantize.embedding_proj.weight"],
        state["quantize.embedding_proj.bias"],
    )


def simvq_image_encode(state: State, x: Tensor) -> Tensor:
    x = image.conv(state, "encoder.conv_in", x)
    level = 0
    while f"encoder.down.{level}.block.0.conv1.weight" in state:
        x = _blocks(state, f"encoder.down.{level}.block", x)
        if f"encoder.down.{level}.downsample.weight" in state:
            x = image.conv(state, f"encoder.down.{level}.downsample", x, stride=2)
        level += 1
    x = image.swish(image.norm(state, "encoder.norm_out", _blocks(state, "encoder.mid_block", x)))
    z = image.conv(state, "encoder.conv_out", x).permute(0, 2, 3, 1)
    return nearest(z.reshape(-1, z.shape[-1]), simvq_rows(state))


def simvq_image_decode(state: State, codes: Tensor) -> Tensor:
    vectors = F.embedding(codes, simvq_rows(state)).permute(0, 3, 1, 2).contiguous()
    x = _blocks(state, "decoder.mid_block", image.conv(state, "decoder.conv_in", vectors))
    levels = {int(key.split(".")[2]) for key in state if key.startswith("decoder.up.")}
    for level in sorted(levels, reverse=True):
        x = _blocks(state, f"decoder.up.{level}.block", x)
        if f"decoder.up.{level}.upsample.conv1.weight" in state:
            x = image.conv(state, f"decoder.up.{level}.upsample.conv1", x)
            batch, channels, height, width = x.shape
            x = x.view(batch, 2, 2, channels // 4, height, width).permute(0, 3, 4, 1, 5, 2)
            x = x.reshape(batch, channels // 4, 2 * height, 2 * width)
    return image.conv(state, "decoder.conv_out", image.swish(image.norm(state, "decoder.norm_out", x)))


def _blocks(state: State, name: str, x: Tensor) -> Tensor:
    index = 0
    while f"{name}.{index}.conv1.weight" in state:
        x = image.resnet_block(state, f"{name}.{index}", x)
        index += 1
    return x


# --- WavTokenizer and SimVQ's audio, under their official names ------------------------------------------------------


class SEANet:
    """The encoder: layers in the order of their numbers, weight norm at every call, torch's own LSTM.

    Args:
        state: official key -> tensor.
        prefix: stands before the numbers of the layers.
        causal: pad on the left only.
    """

    def __init__(self, state: State, prefix: str, *, causal: bool = False) -> None:
        self.state, self.prefix, self.causal = state, prefix, causal
        self.numbers = sorted({int(key.removeprefix(prefix).split(".")[0]) for key in state if key.startswith(prefix)})
        self.recurrent = {n: self._lstm(f"{prefix}{n}.lstm.") for n in self.numbers if self._has(f"{n}.lstm")}

    def __call__(self, x: Tensor) -> Tensor:
        """(B,1,T) -> (B,D,L)."""
        for number in self.numbers:
            name = f"{self.prefix}{number}"
            if self._has(f"{number}.block"):
                hidden = self._conv(f"{name}.block.1", F.elu(x))
                x = self._conv(f"{name}.shortcut", x) + self._conv(f"{name}.block.3", F.elu(hidden))
            elif number in self.recurrent:
                x = self.recurrent[number](x.permute(2, 0, 1))[0].permute(1, 2, 0) + x
            else:
                middle = number not in (self.numbers[0], self.numbers[-1])
                x = self._conv(name, x if number == 0 else F.elu(x), halved=middle)
        return x

    def _conv(self, name: str, x: Tensor, *, halved: bool = False) -> Tensor:
        """One residual layer per level has no dilation; strided layers have kernels of twice their stride."""
        gain, direction = self.state[f"{name}.conv.conv.weight_g"], self.state[f"{name}.conv.conv.weight_v"]
        weight = torch._weight_norm(direction, gain, 0)
        kernel = weight.shape[-1]
        stride = kernel // 2 if halved else 1
        total = kernel - stride
        extra = math.ceil((x.shape[-1] - kernel + total) / stride) * stride + (kernel - total) - x.shape[-1]
        right = 0 if self.causal else total // 2
        padded = audio.reflect(x, total - right, right + extra)
        return F.conv1d(padded, weight, self.state[f"{name}.conv.conv.bias"], stride)

    def _has(self, name: str) -> bool:
        return any(key.startswith(self.prefix + name) for key in self.state)

    def _lstm(self, name: str) -> nn.LSTM:
        own = {key.removeprefix(name): value for key, value in self.state.items() if key.startswith(name)}
        layers = sum(key.startswith("weight_ih") for key in own)
        lstm = nn.LSTM(own["weight_ih_l0"].shape[1], own["weight_hh_l0"].shape[1], layers)
        lstm.load_state_dict(own)
        return lstm.requires_grad_(False)


def vocos_decode(state: State, vectors: Tensor, hop: int, bandwidth: int = 0) -> Tensor:
    """(B,D,L) -> (B,L·hop)."""
    x = audio.zero_conv(state, "backbone.embed", vectors)
    for number in (0, 1, 2, 3, 4):
        name = f"backbone.pos_net.{number}"
        if number == 2:
            h = _group_norm(state, f"{name}.norm", x)
            q, k, v = (audio.zero_conv(state, f"{name}.{part}", h) for part in "qkv")
            weights = torch.softmax(torch.bmm(q.permute(0, 2, 1), k) * q.shape[1] ** -0.5, dim=2)
            x = x + audio.zero_conv(state, f"{name}.proj_out", torch.bmm(v, weights.permute(0, 2, 1)))
        else:
            h = audio.zero_conv(state, f"{name}.conv1", audio.swish(_group_norm(state, f"{name}.norm1", x)))
            x = x + audio.zero_conv(state, f"{name}.conv2", audio.swish(_group_norm(state, f"{name}.norm2", h)))
    x = _group_norm(state, "backbone.pos_net.5", x)
    x = _layer_norm(state, "backbone.norm", x.transpose(1, 2), bandwidth).transpose(1, 2)
    block = 0
    while f"backbone.convnext.{block}.gamma" in state:
        name = f"backbone.convnext.{block}"
        h = audio.zero_conv(state, f"{name}.dwconv", x, groups=x.shape[1]).transpose(1, 2)
        h = F.gelu(_linear(state, f"{name}.pwconv1", _layer_norm(state, f"{name}.norm", h, bandwidth)))
        x = x + (state[f"{name}.gamma"] * _linear(state, f"{name}.pwconv2", h)).transpose(1, 2)
        block += 1
    x = _layer_norm(state, "backbone.final_layer_norm", x.transpose(1, 2), bandwidth)
    return audio.head(state, x, hop)


def _linear(state: State, name: str, x: Tensor) -> Tensor:
    return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])


def _group_norm(state: State, name: str, x: Tensor) -> Tensor:
    return F.group_norm(x, 32, state[f"{name}.weight"], state[f"{name}.bias"], eps=1e-6)


def _layer_norm(state: State, name: str, x: Tensor, bandwidth: int) -> Tensor:
    if f"{name}.scale.weight" not in state:
        return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], eps=1e-6)
    scale, shift = state[f"{name}.scale.weight"][bandwidth], state[f"{name}.shift.weight"][bandwidth]
    return F.layer_norm(x, x.shape[-1:], eps=1e-6) * scale + shift
