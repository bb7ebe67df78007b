"""WavTokenizer's two mechanisms on small data: the k-means start of its codebook, and its decoder.

    real speech ──► small codec ──► share of 256 codes that held-out speakers use      k-means start : random start
    harmonic tones ──► small codec ──► log-mel L1 of unheard tones            ConvNeXt + ISTFT : mirrored SEANet

Acceptance checks 6 and 7 of the sheet. All sides of a comparison start from one encoder, see the same batches for the
same number of steps, and minimise the published loss without its discriminators (45 mel + 1000 commitment).

Check 6 is made twice: with the start alone, as the published training has it, whose replacements of unused codes are
overwritten; and with start and replacements, as the paper describes it and our default does it.

The encoder is not SEANet: its random start shrinks a waveform to latents that differ by less than 0.001, and it takes
far more than three minutes to grow out of that. Ours hears mel spectra.
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
from smalti.audio.speech import MelEncoder
from smalti.audio.vocos import ISTFTHead, VocosBackbone
from smalti.audio.wavtokenizer import WavTokenizer
from smalti.errors import InputError
from smalti.train.audio_objective import AudioObjective, LogMel

RATE = 16_000
CODES, DIM = 256, 16
STEPS, BATCH, SAMPLES = 300, 12, 8_000
LEARNING_RATE = 1e-3
KMEANS = 50  # iterations
MEL = MelSpectrogram(RATE, 1024, 256, 80)
MODEST = 0.9  # utilisation that the k-means start exceeds
CLEARLY = 0.2  # by how much the random start must stay below it
HELD_OUT = ("libri-1688", "libri-3005")

SEANET = SEANetEncoder.Config(filters=8, dimension=DIM, lstm_layers=1)  # its mirror image is the decoder to beat
FRONT_END = MelSpectrogram(RATE, 1024, SEANET.hop, 80)
SIZES = {"bandwidths": 0, "pos_net": False, "dropout": 0.0}
ENCODER = VocosBackbone.Config(input_channels=FRONT_END.mels, dim=96, intermediate_dim=288, layers=3, **SIZES)
BACKBONE = VocosBackbone.Config(input_channels=DIM, dim=96, intermediate_dim=288, layers=3, **SIZES)
HEAD = ISTFTHead.Config(dim=BACKBONE.dim, n_fft=4 * SEANET.hop, hop=SEANET.hop)

Draw = Callable[[torch.Generator], Tensor]  # a batch (BATCH, 1, SAMPLES)


def claims(data: Path, seed: int) -> Iterator[Claim]:
    """Both comparisons.

    Raises:
        InputError: if `data` has no folder `speech` as Smalti's data sets have it.
    """
    yield from start_of_the_codebook(data / "speech", seed)
    yield decoder(seed)


def start_of_the_codebook(folder: Path, seed: int) -> Iterator[Claim]:
    """Check 6: k-means on the first batch, against uniform rows as EnCodec draws them."""
    heard, unheard = read_speech(folder)

    def used(kmeans_iterations: int, replace: bool) -> tuple[float, float]:
        began = time.monotonic()
        model = Codec(seed, kmeans_iterations=kmeans_iterations, replace=replace)
        train(model, lambda draws: random_segments(heard, draws), seed)
        return utilisation(model, unheard), time.monotonic() - began

    baseline, waited = used(0, replace=False)
    for name, replace in (("a k-means start", False), ("a k-means start with replacements", True)):
        ours, seconds = used(KMEANS, replace)
        yield Claim(
            system="wavtokenizer",
            claim=f"{name} uses over {MODEST:.0%} of {CODES} codes, a uniform start alone at least {CLEARLY:.0%} less",
            metric=f"share of codes that occur in held-out speech after {STEPS} steps",
            better="higher",
            baseline=baseline,
            ours=ours,
            holds=ours > MODEST and baseline <= ours - CLEARLY,
            seconds=waited + seconds,
        )


def decoder(seed: int) -> Claim:
    """Check 7: the decoder that never up-samples, against SEANet's encoder mirrored, of as many parameters."""
    began = time.monotonic()
    mirrored = Mirrored(seed)
    size = parameters(mirrored.mirror)
    ours = Codec(seed, backbone=matched(size))
    distances = []
    for model in (mirrored, ours):
        train(model, harmonics, seed)
        distances.append(log_mel_of_unheard(model, seed))
    own = parameters(ours.backbone, ours.head)
    return Claim(
        system="wavtokenizer",
        claim=f"ConvNeXt + ISTFT ({own:,} parameters) beats a mirrored SEANet decoder ({size:,})",
        metric=f"log-mel L1 of unheard harmonic tones after {STEPS} steps",
        better="lower",
        baseline=distances[0],
        ours=distances[1],
        holds=distances[1] < distances[0],
        seconds=time.monotonic() - began,
    )


# --- models ----------------------------------------------------------------------------------------------------------


class Codec(WavTokenizer):
    """A small WavTokenizer that hears mel spectra: 50 tokens a second at 16 kHz.

    Args:
        seed: of the weights; the encoder depends on nothing else.
        kmeans_iterations: 0 for a uniform start.
        replace: codes that nothing chooses become latents of the batch.
        backbone: sizes of the ConvNeXt stack.
    """

    def __init__(
        self,
        seed: int,
        *,
        kmeans_iterations: int = KMEANS,
        replace: bool = True,
        backbone: VocosBackbone.Config = BACKBONE,
    ) -> None:
        torch.manual_seed(seed)
        super().__init__(
            WavTokenizer.Config(
                sample_rate=RATE,
                encoder=SEANET,
                backbone=backbone,
                head=HEAD,
                codes=CODES,
                kmeans_iterations=kmeans_iterations,
                legacy_training=not replace,
            )
        )
        if not kmeans_iterations:
            self._start_uniformly()
        torch.manual_seed(seed)
        self.encoder = MelEncoder(FRONT_END, ENCODER, DIM)  # type: ignore[assignment]

    @torch.no_grad()
    def _start_uniformly(self) -> None:
        """Rows as EnCodec draws them without k-means, in U(-sqrt(6 / D), sqrt(6 / D))."""
        table: Any = self.quantizer.alphabet
        nn.init.kaiming_uniform_(table.vectors.weight)
        table.ema_sum.copy_(table.vectors.weight)

    def analysis(self, inputs: Tensor, options: Any) -> Tensor:
        return self.encoder(inputs)


class Mirrored(Codec):
    """The same codec with EnCodec's decoder."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.mirror = SEANetDecoder(SEANET)
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


def train(model: Codec, draw: Draw, seed: int) -> None:
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


def utilisation(model: Codec, clips: list[Tensor]) -> float:
    """Share of the codebook that occurs in the codes of clips (T,)."""
    codes = torch.cat([model.encode(clip[None, None]).codes.flatten() for clip in clips])
    return len(codes.unique()) / CODES


@torch.no_grad()
def log_mel_of_unheard(model: Codec, seed: int) -> float:
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
