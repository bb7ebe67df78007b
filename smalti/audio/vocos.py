"""Vocos: a decoder that never up-samples; it predicts a spectrum per latent and leaves the rest to the inverse STFT.

A base, not a system. Sources: "Vocos: Closing the gap between time-domain and Fourier-based neural vocoders" (2023);
the attention stack (`pos_net`) is from "WavTokenizer" (2024), jishengpeng/WavTokenizer.

    (B,L,C) ──► embed ──► pos_net ──► norm ──► ConvNeXt blocks ──► norm ──► (B,L,dim)                     VocosBackbone
    (B,L,dim) ──► linear ──► magnitude, phase ──► irfft ──► window, overlap-add ──► (B,L·hop)             ISTFTHead

    pos_net        residual block x 2, attention over the whole utterance, residual block x 2, group norm
    ConvNeXt       depth-wise convolution, norm, linear, GELU, linear, scale; plus the input
    norm           LayerNorm, or AdaLayerNorm with a scale and a shift per bandwidth

Parameters carry Vocos's names.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

import smalti.config
from smalti.audio.conv import Conv1d, pad
from smalti.config import Training
from smalti.errors import CheckpointError

EPS = 1e-6  # of every norm here
GROUPS = 32  # of every group norm
LOUDEST = 100.0  # magnitudes are cut here, as every published head was trained
INIT_STD = 0.02


class VocosBackbone(nn.Module):
    """Latents to features, at the latents' rate.

    Shape:
        (batch, time, input channels)  ->  (batch, time, dim)
    """

    class Config(smalti.config.Config):
        """Sizes; the defaults are WavTokenizer's.

        Args:
            input_channels: of the latents.
            dim: width of all blocks.
            intermediate_dim: width inside ConvNeXt blocks.
            layers: number of ConvNeXt blocks.
            bandwidths: rows of the adaptive norms; 0 for plain LayerNorm.
            pos_net: whether the attention stack is there.
            dropout: probability inside its residual blocks, in training.
        """

        input_channels: int = Field(512, ge=1)
        dim: int = Field(768, ge=1)
        intermediate_dim: int = Field(2304, ge=1)
        layers: int = Field(12, ge=1)
        bandwidths: int = Field(4, ge=0)
        pos_net: bool = True
        dropout: Training[float] = Field(0.1, ge=0, lt=1)

        @model_validator(mode="after")
        def _check(self) -> Self:
            if self.pos_net and self.dim % GROUPS:
                raise ValueError(f"dim {self.dim} must be a multiple of {GROUPS}, the groups of pos_net's norms")
            return self

        def build(self) -> VocosBackbone:
            return VocosBackbone(self)

        @classmethod
        def of_official(cls, state: Mapping[str, Tensor]) -> Self:
            """Reads the sizes off the backbone's tensors ("embed.weight", "convnext.0.gamma" ...).

            Raises:
                CheckpointError: if these are not the tensors of such a backbone.
            """
            try:
                adaptive = state.get("norm.scale.weight")
                return cls(
                    input_channels=state["embed.weight"].shape[1],
                    dim=state["embed.weight"].shape[0],
                    intermediate_dim=state["convnext.0.pwconv1.weight"].shape[0],
                    layers=1 + max(int(name.split(".")[1]) for name in state if name.startswith("convnext.")),
                    bandwidths=0 if adaptive is None else len(adaptive),
                    pos_net=any(name.startswith("pos_net.") for name in state),
                )
            except (KeyError, ValueError, IndexError) as error:
                raise CheckpointError(f"the decoder's tensors are not those of a Vocos backbone: {error}") from None

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.embed = ZeroPaddedConv(config.input_channels, config.dim, 7)
        self.norm = _norm(config)
        self.convnext = nn.ModuleList(ConvNeXtBlock(config) for _ in range(config.layers))
        self.final_layer_norm = LayerNorm(config.dim, eps=EPS)
        self.apply(_init)
        # Made after the initialisation, as in the official code: its layers keep torch's own start.
        self.pos_net = PosNet(config.dim, config.dropout) if config.pos_net else nn.Identity()

    def forward(self, x: Tensor, bandwidth: int = 0) -> Tensor:
        """Features of latents (batch, time, input channels); `bandwidth` is the row of the adaptive norms."""
        x = self.norm(self.pos_net(self.embed(x)), bandwidth)
        for block in self.convnext:
            x = block(x, bandwidth)
        return self.final_layer_norm(x)


class ConvNeXtBlock(nn.Module):
    """x + gamma * linear(GELU(linear(norm(depth-wise convolution of x))))."""

    def __init__(self, config: VocosBackbone.Config) -> None:
        super().__init__()
        self.dwconv = ZeroPaddedConv(config.dim, config.dim, 7, groups=config.dim)
        self.norm = _norm(config)
        self.pwconv1 = nn.Linear(config.dim, config.intermediate_dim)
        self.pwconv2 = nn.Linear(config.intermediate_dim, config.dim)
        self.gamma = nn.Parameter(torch.full((config.dim,), 1 / config.layers))

    def forward(self, x: Tensor, bandwidth: int) -> Tensor:
        h = self.norm(self.dwconv(x), bandwidth)
        return torch.addcmul(x, self.gamma, self.pwconv2(F.gelu(self.pwconv1(h))))


class PosNet(nn.Sequential):
    """Residual blocks around one attention over the whole utterance, without positions: what WavTokenizer adds."""

    def __init__(self, dim: int, dropout: float) -> None:
        super().__init__(
            ResnetBlock(dim, dropout),
            ResnetBlock(dim, dropout),
            AttnBlock(dim),
            ResnetBlock(dim, dropout),
            ResnetBlock(dim, dropout),
            GroupNorm(GROUPS, dim, EPS),
        )


class ResnetBlock(nn.Module):
    """x + conv(swish(norm(conv(swish(norm(x))))))."""

    def __init__(self, dim: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = GroupNorm(GROUPS, dim, EPS)
        self.conv1 = ZeroPaddedConv(dim, dim, 3)
        self.norm2 = GroupNorm(GROUPS, dim, EPS)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = ZeroPaddedConv(dim, dim, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        return x + self.conv2(self.dropout(F.silu(self.norm2(h))))


class AttnBlock(nn.Module):
    """Self-attention over time, one head, with a residual."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = GroupNorm(GROUPS, dim, EPS)
        self.q, self.k, self.v = Conv1d(dim, dim, 1), Conv1d(dim, dim, 1), Conv1d(dim, dim, 1)
        self.proj_out = Conv1d(dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = (part(h).unsqueeze(1) for part in (self.q, self.k, self.v))
        return x + self.proj_out(F.scaled_dot_product_attention(q, k, v).squeeze(1))


class ZeroPaddedConv(Conv1d):
    """A convolution of odd kernel that keeps the length: zeros on both sides."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(pad(x, self.kernel // 2, self.kernel // 2, "constant"))


class LayerNorm(nn.LayerNorm):
    """LayerNorm that takes a bandwidth, like the adaptive one, and has no use for it."""

    def forward(self, input: Tensor, bandwidth: int = 0) -> Tensor:
        return super().forward(input)


class AdaLayerNorm(nn.Module):
    """LayerNorm whose scale and shift are rows of two tables, one row per bandwidth."""

    def __init__(self, bandwidths: int, dim: int) -> None:
        super().__init__()
        self.scale, self.shift = nn.Embedding(bandwidths, dim), nn.Embedding(bandwidths, dim)
        nn.init.ones_(self.scale.weight)
        nn.init.zeros_(self.shift.weight)

    def forward(self, x: Tensor, bandwidth: int) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self.scale.weight[bandwidth], self.shift.weight[bandwidth], EPS)


class GroupNorm(nn.GroupNorm):
    """Group norm over (batch, time, channels): statistics over all of time."""

    def forward(self, input: Tensor) -> Tensor:
        image = input[:, None].permute(0, 3, 1, 2)  # (B,C,1,T), channels-last in memory without a copy
        # The function below `torch.nn.functional.group_norm`, which refuses groups of one value; they become the bias.
        return torch.group_norm(image, self.num_groups, self.weight, self.bias, self.eps).permute(0, 2, 3, 1)[:, 0]


class ISTFTHead(nn.Module):
    """Features to waveform: a log magnitude and a phase per bin, then the inverse STFT.

    Shape:
        (batch, time, dim)  ->  (batch, time * hop)
    """

    class Config(smalti.config.Config):
        """Sizes; the defaults are WavTokenizer's at 75 tokens a second.

        Args:
            dim: of the features.
            n_fft: samples per frame, even.
            hop: samples from frame to frame, less than n_fft.
        """

        dim: int = Field(768, ge=1)
        n_fft: int = Field(1280, ge=2, multiple_of=2)
        hop: int = Field(320, ge=1)

        @model_validator(mode="after")
        def _check(self) -> Self:
            if self.hop >= self.n_fft:
                raise ValueError(f"n_fft {self.n_fft} must be larger than hop {self.hop}, so that frames overlap")
            return self

        def build(self) -> ISTFTHead:
            return ISTFTHead(self)

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.hop = config.hop
        self.out = nn.Linear(config.dim, config.n_fft + 2)
        self.window: Tensor
        self.register_buffer("window", torch.hann_window(config.n_fft))

    def forward(self, x: Tensor) -> Tensor:
        predicted = self.out(x)
        # Half precision has no complex numbers worth the name.
        predicted = predicted.to(torch.promote_types(predicted.dtype, torch.float32))
        log_magnitude, phase = predicted.chunk(2, dim=-1)
        return inverse_stft(torch.polar(log_magnitude.exp().clamp(max=LOUDEST), phase), self.window, self.hop)


def inverse_stft(spectrum: Tensor, window: Tensor, hop: int) -> Tensor:
    """The signal whose windowed frames best fit a spectrum, with "same" padding: exactly `hop` samples per frame.

    Frame t is centred on the middle of samples t*hop .. (t+1)*hop, unlike `torch.istft(center=True)`, whose frames are
    centred on t*hop.

    Args:
        spectrum: (batch, frames, len(window) // 2 + 1), complex.
        window: of analysis and synthesis.
        hop: samples from frame to frame, less than len(window).

    Returns:
        (batch, frames * hop).
    """
    frames = torch.fft.irfft(spectrum, len(window), dim=-1) * window
    envelope = overlap_add(window.square().expand(1, frames.shape[1], -1), hop)
    edge = (len(window) - hop) // 2
    kept = slice(edge, edge + frames.shape[1] * hop)
    return overlap_add(frames, hop)[:, kept] / envelope[:, kept]


def overlap_add(frames: Tensor, hop: int) -> Tensor:
    """Sums frames that start every `hop` samples: (batch, count, size) -> (batch, (count - 1) * hop + size)."""
    batch, count, size = frames.shape
    parts = -(-size // hop)
    if size < parts * hop:
        frames = F.pad(frames, (0, parts * hop - size))
    # Cut into parts of one hop, part j of every frame lands on whole rows: a few long additions instead of many short.
    blocks = frames.unflatten(-1, (parts, hop))
    out = frames.new_zeros(batch, count + parts - 1, hop)
    for part in range(parts):
        out[:, part : part + count] += blocks[:, :, part]
    return out.flatten(1)[:, : (count - 1) * hop + size]


def _norm(config: VocosBackbone.Config) -> LayerNorm | AdaLayerNorm:
    return AdaLayerNorm(config.bandwidths, config.dim) if config.bandwidths else LayerNorm(config.dim, eps=EPS)


def _init(module: nn.Module) -> None:
    if isinstance(module, Conv1d | nn.Linear):
        nn.init.trunc_normal_(module.weight, std=INIT_STD)
        nn.init.zeros_(module.bias)
