"""SEANet: the convolutional and recurrent encoder of EnCodec, which most neural audio codecs build on.

A base, not a system. Sources: "SEANet: A Multi-modal Speech Enhancement Network" (2020) and "High Fidelity Neural Audio
Compression" (2022), facebookresearch/encodec; also in WavTokenizer, SimVQ, SpeechTokenizer, DM-Codec and Mimi.

    (B,T,1) ──► conv_in ──► level 0 ──► ... ──► level n-1 ──► LSTM + skip ──► ELU, conv_out ──► (B,L,D)

    level     residual blocks, then ELU and a convolution of stride r and kernel 2r that doubles the channels
    residual  ELU, convolution, ELU, pointwise convolution; plus a pointwise shortcut
    L         ceil(T / hop), hop = product of the strides

Every convolution pads itself so that its output covers its input: on both sides, or only on the left (causal).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

import smalti.config
from smalti.audio.conv import Conv1d, PadMode, pad, sums_in_place
from smalti.errors import CheckpointError

# Activations of the first level are then 8 MB; larger ones leave the cache, and are mapped anew at every allocation.
SAMPLES_AT_ONCE = 2**16
LOG2_E = math.log2(math.e)
ELU_AT_ONCE = 2**18  # a scratch tensor of 1 MiB is kept in cache; one as large as the activations costs its allocation


class SEANetEncoder(nn.Module):
    """Waveform to latents.

    Shape:
        (batch, time, channels)  ->  (batch, ceil(time / hop), dimension)
    """

    class Config(smalti.config.Config):
        """Sizes and choices; the defaults are WavTokenizer's at 75 tokens a second.

        Args:
            channels: audio channels.
            filters: width of the first level; every level doubles it.
            dimension: of the latents.
            ratios: strides as they are published, in the order of the decoder; the encoder applies them from the last.
            kernel, last_kernel, residual_kernel: of conv_in, conv_out and the first convolution of residual blocks.
            residual_layers: residual blocks per level; block j has dilation `dilation_base ** j`.
            compress: by how much residual blocks narrow the width inside.
            true_skip: residual blocks add their input itself, not a pointwise convolution of it.
            lstm_layers: 0 leaves the LSTM out.
            bidirectional: the LSTM runs both ways; it gives twice the width.
            causal: outputs do not hear what comes later (but see `pad_mode`).
            pad_mode: "reflect", or "constant" for zeros. Mirrored samples on the left let the first outputs of a causal
                network hear a little of what comes next.
            weight_norm: train each convolution's weight as direction and length. Published checkpoints are folded into
                plain weights, which are quicker.
        """

        channels: int = Field(1, ge=1)
        filters: int = Field(32, ge=1)
        dimension: int = Field(512, ge=1)
        ratios: tuple[int, ...] = Field((8, 5, 4, 2), min_length=1)
        kernel: int = Field(7, ge=1)
        last_kernel: int = Field(7, ge=1)
        residual_kernel: int = Field(3, ge=1)
        residual_layers: int = Field(1, ge=0)
        dilation_base: int = Field(2, ge=1)
        compress: int = Field(2, ge=1)
        true_skip: bool = False
        lstm_layers: int = Field(2, ge=0)
        bidirectional: bool = False
        causal: bool = False
        pad_mode: PadMode = "reflect"
        weight_norm: bool = False

        @model_validator(mode="after")
        def _check(self) -> Self:
            if any(ratio < 1 for ratio in self.ratios):
                raise ValueError(f"ratios must be positive, got {self.ratios}")
            if self.filters < self.compress:
                raise ValueError(f"filters {self.filters} can't be narrowed by compress {self.compress}")
            return self

        @property
        def hop(self) -> int:
            """Samples per latent."""
            return math.prod(self.ratios)

        @property
        def reach(self) -> int:
            """Samples that one output of the last level hears, but one."""
            reach, step = self.kernel - 1, 1
            for ratio in reversed(self.ratios):
                reach += (
                    sum((self.residual_kernel - 1) * self.dilation_base**j for j in range(self.residual_layers)) * step
                )
                reach, step = reach + (2 * ratio - 1) * step, step * ratio
            return reach

        @property
        def width(self) -> int:
            """Channels of the last level."""
            return self.filters * 2 ** len(self.ratios)

        def build(self) -> SEANetEncoder:
            return SEANetEncoder(self)

        def official_names(self, official: str, conv: str, own: str) -> dict[str, str]:
            """Names of EnCodec's numbered layers (activations count too) -> names of our modules.

            Args:
                official: what stands before the number of a layer, such as "encoder.model.".
                conv: what stands between a layer's name and its convolution's tensors, such as ".conv.conv".
                own: what stands before our names.
            """
            names, index = {f"0{conv}": "conv_in"}, 1
            for level in range(len(self.ratios)):
                for block in range(self.residual_layers):
                    place = f"levels.{level}.blocks.{block}"
                    names[f"{index}.block.1{conv}"] = f"{place}.conv1"
                    names[f"{index}.block.3{conv}"] = f"{place}.conv2"
                    names[f"{index}.shortcut{conv}"] = f"{place}.shortcut"
                    index += 1
                names[f"{index + 1}{conv}"] = f"levels.{level}.down"
                index += 2
            if self.lstm_layers:
                names[f"{index}.lstm"] = "recurrent.lstm"
                index += 1
            names[f"{index + 1}{conv}"] = "conv_out"
            return {f"{official}{layer}.": f"{own}{module}." for layer, module in names.items()}

        @classmethod
        def of_official(cls, state: Mapping[str, Tensor], official: str, conv: str, **choices: object) -> Self:
            """Reads the sizes off EnCodec's numbered layers.

            Args:
                state: folded tensors; others may be among them.
                official, conv: as in `official_names`.
                choices: what tensors can't tell: causal, pad_mode, dilation_base.

            Raises:
                CheckpointError: if these are not the layers of such an encoder.
            """
            layers = {
                key.removeprefix(official).replace(f"{conv}.", "."): value
                for key, value in state.items()
                if key.startswith(official)
            }
            try:
                return cls(**_sizes(layers), **choices)
            except (KeyError, ValueError, IndexError, StopIteration) as error:
                raise CheckpointError(
                    f"the tensors {official}* are not those of a SEANet encoder: {error or type(error).__name__}"
                ) from None

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.hop, self.margin = config.hop, -(-config.reach // config.hop)
        widths = [config.filters * 2**level for level in range(len(config.ratios))]
        last = config.width * (2 if config.bidirectional and config.lstm_layers else 1)
        self.conv_in = _conv(config, config.channels, config.filters, config.kernel)
        self.levels = nn.ModuleList(
            Level(config, width, ratio) for width, ratio in zip(widths, reversed(config.ratios), strict=True)
        )
        self.recurrent = SkipLSTM(config) if config.lstm_layers else nn.Identity()
        self.conv_out = _conv(config, last, config.dimension, config.last_kernel)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv_out.activated(self.recurrent(self._convolved(x)))

    def _convolved(self, x: Tensor) -> Tensor:
        """All that comes before the LSTM; long sounds in overlapping pieces, whose joints nothing reaches across."""
        frames, step = -(-x.shape[1] // self.hop), max(1, SAMPLES_AT_ONCE // self.hop)
        if frames <= step or torch.is_grad_enabled() or x.device.type != "cpu":
            return self._levels(x)
        parts = []
        for start in range(0, frames, step):
            first, stop = max(0, start - self.margin), min(start + step, frames)
            piece = self._levels(x[:, first * self.hop : (stop + self.margin) * self.hop])
            parts.append(piece[:, start - first : stop - first])
        return torch.cat(parts, dim=1)

    def _levels(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for level in self.levels:
            x = level(x)
        return x


class Level(nn.Module):
    """Residual blocks at one rate, then the step to the next."""

    def __init__(self, config: SEANetEncoder.Config, width: int, ratio: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            ResidualBlock(config, width, config.dilation_base**block) for block in range(config.residual_layers)
        )
        self.down = _conv(config, width, 2 * width, 2 * ratio, stride=ratio)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.down.activated(x)


class ResidualBlock(nn.Module):
    """conv2(ELU(conv1(ELU(x)))) + shortcut(x)."""

    def __init__(self, config: SEANetEncoder.Config, width: int, dilation: int) -> None:
        super().__init__()
        inner = width // config.compress
        self.conv1 = _conv(config, width, inner, config.residual_kernel, dilation=dilation)
        self.conv2 = _conv(config, inner, width, 1)
        self.shortcut = nn.Identity() if config.true_skip else _conv(config, width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        hidden = elu_(self.conv1.activated(x))
        if isinstance(self.shortcut, nn.Identity) or not sums_in_place(x):
            return self.conv2(hidden) + self.shortcut(x)
        # Two matrix products into one sum: no second output, and no pass over both to add them.
        total = F.linear(x, self.shortcut.weight[..., 0], self.shortcut.bias + self.conv2.bias)
        total.flatten(0, 1).addmm_(hidden.flatten(0, 1), self.conv2.weight[..., 0].t())
        return total


class SkipLSTM(nn.Module):
    """LSTM(x) + x, with x twice side by side where the LSTM runs both ways."""

    def __init__(self, config: SEANetEncoder.Config) -> None:
        super().__init__()
        self.lstm = nn.LSTM(
            config.width, config.width, config.lstm_layers, batch_first=True, bidirectional=config.bidirectional
        )

    def forward(self, x: Tensor) -> Tensor:
        heard, _ = self.lstm(x)
        return heard + (torch.cat([x, x], dim=-1) if self.lstm.bidirectional else x)


class PaddedConv(Conv1d):
    """A convolution that gives ceil(time / stride) outputs, by SEANet's rule of padding.

    The padding that a stride leaves (reach - stride) goes to both sides, or to the left; what is then missing for the
    last output to be whole goes to the right.
    """

    causal: bool = False
    pad_mode: PadMode = "reflect"

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self._padded(x))

    def activated(self, x: Tensor) -> Tensor:
        """The convolution of ELU(x). The padded copy is nobody else's, so it takes the activation in place."""
        padded = self._padded(x)
        return super().forward(elu_(padded.clone() if padded is x else padded))

    def _padded(self, x: Tensor) -> Tensor:
        total, extra = self.reach - self.stride, -x.shape[1] % self.stride
        right = 0 if self.causal else total // 2
        return pad(x, total - right, right + extra, self.pad_mode)


def elu_(x: Tensor) -> Tensor:
    """ELU of a tensor that nobody needs again: in place where no gradient is recorded."""
    if torch.is_grad_enabled() or not x.is_contiguous():
        return F.elu(x)
    if x.device.type != "cpu":
        return F.elu_(x)
    # exp(min(x,0)) - 1 lies above x below zero and is 0 above it. torch's ELU takes twice as long, because expm1 costs
    # four times what exp2 does; its error is 3e-8 at most, this one's 7e-8.
    scratch = torch.empty(min(x.numel(), ELU_AT_ONCE), dtype=x.dtype)
    for piece in x.view(-1).split(ELU_AT_ONCE):
        negative = torch.mul(piece, LOG2_E, out=scratch[: len(piece)]).clamp_(max=0).exp2_().sub_(1)
        torch.maximum(piece, negative, out=piece)
    return x


def _conv(
    config: SEANetEncoder.Config, inputs: int, outputs: int, kernel: int, *, stride: int = 1, dilation: int = 1
) -> PaddedConv:
    conv = PaddedConv(inputs, outputs, kernel, stride=stride, dilation=dilation)
    conv.causal, conv.pad_mode = config.causal, config.pad_mode
    return weight_norm(conv) if config.weight_norm else conv


def _sizes(state: Mapping[str, Tensor]) -> dict[str, object]:
    """The fields of Config that tensors tell."""
    weights = {name.removesuffix(".weight"): tensor for name, tensor in state.items() if name.endswith(".weight")}
    numbered = sorted((int(name), tensor) for name, tensor in weights.items() if name.isdecimal())
    (_, first), *downs, (_, last) = numbered
    blocks = [name.removesuffix(".block.1") for name in weights if name.endswith(".block.1")]
    narrowed = [weights[f"{name}.block.1"].shape[:2] for name in blocks]
    recurrent = [match for name in state if (match := re.search(r"\.lstm\.\w+_l(\d+)(_reverse)?$", name))]
    sizes: dict[str, object] = {
        "channels": first.shape[1],
        "filters": first.shape[0],
        "kernel": first.shape[2],
        "dimension": last.shape[0],
        "last_kernel": last.shape[2],
        "ratios": tuple(tensor.shape[2] // 2 for _, tensor in reversed(downs)),
        "residual_layers": len(blocks) // len(downs),
        "lstm_layers": max((1 + int(match[1]) for match in recurrent), default=0),
        "bidirectional": any(match[2] for match in recurrent),
    }
    if blocks:
        sizes["residual_kernel"] = weights[f"{blocks[0]}.block.1"].shape[2]
        # Widths that compress does not divide are rounded down, so only a look at all levels tells it.
        sizes["compress"] = next(
            factor
            for factor in range(1, first.shape[0] + 1)
            if all(width // factor == inner for inner, width in narrowed)
        )
        sizes["true_skip"] = f"{blocks[0]}.shortcut" not in weights
    return sizes
