"""WavTokenizer's two mechanisms on small data: the k-means start of its codebook, and its decoder.

    real speech ──► small codec ──► share of 256 codes that held-out speakers use      k-means start : random start
    harmonic tones ──► small codec ──► log-mel L1 of unheard tones            ConvNeXt + ISTFT : mirrored SEANet

Acceptance checks 6 and 7 of the sheet. Both sides of a comparison start from one encoder, see the same batches for the
same number of steps, and minimise the published loss without its discriminators (45 mel + 1000 commitment). As in the
published training no code is ever replaced, so the start is all that differs in the first comparison.
"""

from __future__ import annotations

import csv
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from benchmarks.claims import Claim
from smalti.audio.io import read_audio
from smalti.audio.losses import log_mel_distance
from smalti.audio.mel import MelSpectrogram
from smalti.audio.seanet import SEANetEncoder
from smalti.audio.vocos import ISTFTHead, VocosBackbone
from smalti.audio.wavtokenizer import WavTokenizer
from smalti.errors import InputError
from smalti.train.audio_objective import AudioObjective, LogMel

RATE = 16_000
CODES = 256
STEPS, BATCH, SAMPLES = 300, 12, 8_000
LEARNING_RATE = 1e-3
MEL = MelSpectrogram(RATE, 1024, 256, 80)
MODEST = 0.9  # utilisation that the k-means start exceeds
CLEARLY = 0.2  # by how much the random start must stay below it
HELD_OUT = ("libri-1688", "libri-3005")

ENCODER = SEANetEncoder.Config(filters=8, dimension=64, ratios=(5, 4, 4, 2), lstm_layers=1, weight_norm=True)
HEAD = ISTFTHead.Config(dim=96, n_fft=4 * ENCODER.hop, hop=ENCODER.hop)
BACKBONE = VocosBackbone.Config(
    input_channels=64, dim=96, intermediate_dim=288, layers=3, bandwidths=0, pos_net=False, dropout=0
)

Draw = Callable[[torch.Generator], Tensor]  # a batch (BATCH, 1, SAMPLES)


def claims(data: Path, seed: int) -> Iterator[Claim]:
    """Both comparisons.

    Raises:
        InputError: if `data` has no folder `speech` as Smalti's data sets have it.
    """
    yield start_of_the_codebook(data / "speech", seed)
    yield decoder(seed)


def start_of_the_codebook(folder: Path, seed: int) -> Claim:
    """Check 6: k-means on the first batch, against uniform rows as EnCodec draws them."""
    began = time.monotonic()
    heard, unheard = read_speech(folder)
    used = {}
    for iterations in (0, 50):
        model = codec(seed, kmeans_iterations=iterations)
        train(model, lambda draws: random_segments(heard, draws), seed)
        used[iterations] = utilisation(model, unheard)
    return Claim(
        system="wavtokenizer",
        claim=f"a k-means start uses over {MODEST:.0%} of {CODES} codes, a uniform one at least {CLEARLY:.0%} less",
        metric="share of codes that occur in held-out speech",
        better="higher",
        baseline=used[0],
        ours=used[50],
        holds=used[50] > MODEST and used[0] <= used[50] - CLEARLY,
        seconds=time.monotonic() - began,
    )


def decoder(seed: int) -> Claim:
    """Check 7: the decoder that never up-samples, against the encoder's mirror image of as many parameters."""
    began = time.monotonic()
    mirrored = Mirrored(seed)
    ours = codec(seed, kmeans_iterations=50, backbone=matched(parameters(mirrored.mirror)))
    distances = []
    for model in (mirrored, ours):
        train(model, harmonics, seed)
        distances.append(log_mel_of_unheard(model, seed))
    sizes = parameters(mirrored.mirror), parameters(ours.backbone, ours.head)
    return Claim(
        system="wavtokenizer",
        claim=f"ConvNeXt + ISTFT ({sizes[1]:,} parameters) beats a mirrored SEANet decoder ({sizes[0]:,})",
        metric=f"log-mel L1 of unheard harmonic tones after {STEPS} steps",
        better="lower",
        baseline=distances[0],
        ours=distances[1],
        holds=distances[1] < distances[0],
        seconds=time.monotonic() - began,
    )


# --- models ----------------------------------------------------------------------------------------------------------


def configuration(kmeans_iterations: int, backbone: VocosBackbone.Config = BACKBONE) -> WavTokenizer.Config:
    """A small WavTokenizer at 16 kHz, 100 tokens a second, that never replaces a code."""
    return WavTokenizer.Config(
        sample_rate=RATE,
        encoder=ENCODER,
        backbone=backbone,
        head=HEAD,
        codes=CODES,
        kmeans_iterations=kmeans_iterations,
        legacy_training=True,
    )


def codec(seed: int, *, kmeans_iterations: int, backbone: VocosBackbone.Config = BACKBONE) -> WavTokenizer:
    """The codec with random weights; its encoder depends on the seed alone."""
    torch.manual_seed(seed)
    model = WavTokenizer(configuration(kmeans_iterations, backbone))
    if not kmeans_iterations:
        uniform_start(model)
    return model


@torch.no_grad()
def uniform_start(model: WavTokenizer) -> None:
    """Rows of about the length that normalised features have, as EnCodec draws them without k-means."""
    table: Any = model.quantizer.alphabet
    nn.init.kaiming_uniform_(table.vectors.weight)
    table.ema_sum.copy_(table.vectors.weight)


class Mirrored(WavTokenizer):
    """The same codec with EnCodec's decoder."""

    def __init__(self, seed: int) -> None:
        torch.manual_seed(seed)
        super().__init__(configuration(kmeans_iterations=50))
        self.mirror = SEANetDecoder(ENCODER)
        del self.backbone, self.head

    def synthesis(self, vectors: Tensor, options: Any) -> Tensor:
        return self.mirror(vectors)


class SEANetDecoder(nn.Module):
    """SEANet's encoder backwards: every level halves the channels and multiplies the rate.

    Shape:
        (batch, time, dimension)  ->  (batch, 1, time * hop)
    """

    def __init__(self, config: SEANetEncoder.Config) -> None:
        super().__init__()
        width = config.width
        self.conv_in = _conv(config.dimension, width, config.last_kernel)
        self.lstm = nn.LSTM(width, width, config.lstm_layers, batch_first=True)
        levels: list[nn.Module] = []
        for ratio in config.ratios:
            up = nn.ConvTranspose1d(
                width, width // 2, 2 * ratio, ratio, padding=(ratio + 1) // 2, output_padding=ratio % 2
            )
            width //= 2
            levels += [nn.ELU(), weight_norm(up), Residual(width, config.residual_kernel, config.compress)]
        self.levels = nn.Sequential(*levels, nn.ELU(), _conv(width, 1, config.kernel))

    def forward(self, vectors: Tensor) -> Tensor:
        h = self.conv_in(vectors.transpose(1, 2)).transpose(1, 2)
        return self.levels((h + self.lstm(h)[0]).transpose(1, 2))


class Residual(nn.Module):
    """ELU, convolution, ELU, pointwise convolution; plus a pointwise shortcut. (batch, width, time), kept."""

    def __init__(self, width: int, kernel: int, compress: int) -> None:
        super().__init__()
        inner = width // compress
        self.body = nn.Sequential(nn.ELU(), _conv(width, inner, kernel), nn.ELU(), _conv(inner, width, 1))
        self.shortcut = _conv(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) + self.shortcut(x)


def _conv(inputs: int, outputs: int, kernel: int) -> nn.Module:
    return weight_norm(nn.Conv1d(inputs, outputs, kernel, padding=kernel // 2, padding_mode="reflect"))


def parameters(*networks: nn.Module) -> int:
    """How many numbers they train."""
    return sum(each.numel() for network in networks for each in network.parameters())


def matched(wanted: int) -> VocosBackbone.Config:
    """The backbone that, with the head, comes closest to a number of parameters, by its inner width."""
    narrow, wide = (
        parameters(BACKBONE.replace(intermediate_dim=width).build(), HEAD.build()) for width in (1, 2)
    )  # it grows by as much with every unit
    backbone: VocosBackbone.Config = BACKBONE.replace(intermediate_dim=1 + round((wanted - narrow) / (wide - narrow)))
    return backbone


# --- training and measuring ------------------------------------------------------------------------------------------


def train(model: WavTokenizer, draw: Draw, seed: int) -> None:
    """STEPS steps of AdamW on the published loss without discriminators."""
    mel = LogMel.Config(n_fft=MEL.n_fft, hop=MEL.hop, mels=MEL.mels)
    objective = AudioObjective.Config(mels=(mel,), adversaries=()).build(model)
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE)
    draws = torch.Generator().manual_seed(seed)
    model.train()
    for step in range(STEPS):
        loss = objective.losses(model, {"x": draw(draws)}, step)["model"].loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        model.quantizer.update()
    model.eval()


def utilisation(model: WavTokenizer, clips: list[Tensor]) -> float:
    """Share of the codebook that occurs in the codes of clips (T,)."""
    codes = torch.cat([model.encode(clip[None, None]).codes.flatten() for clip in clips])
    return len(codes.unique()) / CODES


@torch.no_grad()
def log_mel_of_unheard(model: WavTokenizer, seed: int) -> float:
    """Mean log-mel L1 over four batches of tones that training does not draw."""
    draws = torch.Generator().manual_seed(seed + 1_000_003)
    values = []
    for _ in range(4):
        x = harmonics(draws)
        y = model(x, raw=True).x
        assert y is not None  # a codec has a decoder
        values.append(log_mel_distance(x, y[..., :SAMPLES], MEL).mean())
    return float(torch.stack(values).mean())


# --- data ------------------------------------------------------------------------------------------------------------


def read_speech(folder: Path) -> tuple[list[Tensor], list[Tensor]]:
    """LibriSpeech at 16 kHz as (T,): speakers to train on, speakers held out."""
    index = folder / "metadata.csv"
    if not index.is_file():
        raise InputError(f"there is no speech at {folder}: --data must name the folder with the data sets")
    with index.open() as file:
        rows = [row for row in csv.DictReader(file) if row["dataset"] == "librispeech" and float(row["seconds"]) >= 1]
    heard: list[Tensor] = []
    unheard: list[Tensor] = []
    for row in rows:
        waveform, _ = read_audio(folder / row["file"])
        (unheard if row["speaker"] in HELD_OUT else heard).append(waveform[0])
    return heard, unheard


def random_segments(clips: list[Tensor], draws: torch.Generator) -> Tensor:
    """Half a second of random clips, longer ones more often, at peaks of -6 to -1 dB: (BATCH, 1, SAMPLES)."""
    lengths = torch.tensor([float(len(clip)) for clip in clips])
    segments = []
    for index in torch.multinomial(lengths, BATCH, replacement=True, generator=draws).tolist():
        start = int(torch.randint(len(clips[index]) - SAMPLES + 1, (), generator=draws))
        segment = clips[index][start : start + SAMPLES]
        decibels = -6 + 5 * torch.rand((), generator=draws)
        segments.append(segment * 10 ** (decibels / 20) / segment.abs().max().clamp(min=1e-3))
    return torch.stack(segments)[:, None]


def harmonics(draws: torch.Generator) -> Tensor:
    """Tones with up to 20 harmonics, gliding by up to a third of an octave, swelling: (BATCH, 1, SAMPLES)."""

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(BATCH, *shape, generator=draws)

    seconds = torch.arange(SAMPLES) / RATE
    glide = 2 ** (uniform(-1 / 3, 1 / 3, 1) * seconds / seconds[-1])
    frequency = 80 * 2 ** uniform(0, 2, 1) * glide  # 80 to 320 Hz at the start
    phase = 2 * math.pi * torch.cumsum(frequency, dim=1) / RATE
    number = torch.arange(1, 21)
    strength = number ** -uniform(0.5, 1.5, 1) * uniform(0.2, 1, 20)
    audible = (frequency[:, None] * number[:, None] < RATE / 2).float()
    waves = torch.sin(phase[:, None] * number[:, None] + uniform(0, 2 * math.pi, 20, 1)) * audible
    swell = 1 + 0.8 * torch.sin(2 * math.pi * (uniform(1, 4, 1) * seconds + uniform(0, 1, 1)))
    tone = (strength[..., None] * waves).sum(1) * swell
    noise = 1e-3 * torch.randn(BATCH, SAMPLES, generator=draws)  # nothing real is silent between its harmonics
    return (0.7 * F.normalize(tone, p=math.inf, dim=1) + noise)[:, None]
