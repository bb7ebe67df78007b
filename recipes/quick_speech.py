"""Trains the provisional weights of smalti-speech on one CPU core in 38 minutes.

    python -m recipes.quick_speech --data ../shared/data/speech --out smalti/weights/smalti-speech

Only spectral distances are minimised (no adversary), so speech comes out slightly buzzy. The speakers of --held-out
are not trained on.
"""

from __future__ import annotations

import argparse
import csv
import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from recipes.quick import fit, parser
from smalti.audio.io import read_audio, resample
from smalti.audio.losses import log_mel_distance, multi_resolution_stft_distance
from smalti.audio.mel import MelSpectrogram
from smalti.audio.speech import SpeechCodec

HELD_OUT = "libri-1688,libri-3005"
MELS = [MelSpectrogram(16_000, n_fft, n_fft // 4, mels) for n_fft, mels in ((512, 40), (1024, 80), (2048, 120))]


def read_speech(folder: Path, held_out: set[str]) -> list[Tensor]:
    """All recordings of at least a second as (T,) at 16 kHz; the 8 kHz digits carry too little and are left out."""
    with (folder / "metadata.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if float(row["seconds"]) >= 1 and int(row["sample_rate"]) >= 16_000]
    clips = []
    for row in rows:
        if row["speaker"] not in held_out:
            waveform, rate = read_audio(folder / row["file"])
            clips.append(resample(waveform[None], rate, 16_000)[0, 0])
    return clips


def random_segments(clips: list[Tensor], batch: int, samples: int, rng: np.random.Generator) -> Tensor:
    """Segments of random clips at random levels and slightly changed speeds: (batch, 1, samples)."""
    seconds = np.array([len(clip) for clip in clips], dtype=float)
    segments = []
    for index in rng.choice(len(clips), size=batch, p=seconds / seconds.sum()):
        speed = rng.uniform(0.85, 1.18)
        wanted = math.ceil(samples * speed) + 1
        clip = clips[index]
        if len(clip) < wanted:
            clip = clip.repeat(-(-wanted // len(clip)))
        start = rng.integers(len(clip) - wanted + 1)
        piece = clip[start : start + wanted]
        stretched = torch.nn.functional.interpolate(piece[None, None], size=round(wanted / speed), mode="linear")
        segment = stretched[0, 0, :samples]
        peak = float(segment.abs().max()) + 1e-3
        segments.append(segment * float(10 ** rng.uniform(-0.6, 0.0)) * 0.9 / peak)
    return torch.stack(segments)[:, None]


def spectral_loss(x: Tensor, y: Tensor) -> Tensor:
    """Log-mel distances at three windows, and the spectral convergence and log distance of three STFTs."""
    total = multi_resolution_stft_distance(x, y).mean()
    for transform in MELS:
        total = total + log_mel_distance(x, y, transform, floor=1e-4).mean()
    return total


def train(args: argparse.Namespace) -> None:
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    rng = np.random.default_rng(args.seed)
    clips = read_speech(args.data, set(args.held_out.split(",")))
    print(f"{len(clips)} clips, {sum(map(len, clips)) / 16_000 / 60:.1f} minutes", flush=True)
    model = SpeechCodec(SpeechCodec.Config())

    def loss_of_batch() -> Tensor:
        batch = random_segments(clips, args.batch, args.samples, rng)
        rebuilt = model(batch, raw=True).x
        assert rebuilt is not None  # a codec has a decoder
        return spectral_loss(batch, rebuilt[..., : args.samples])

    fit(model, loss_of_batch, args, decay=0.05)


if __name__ == "__main__":
    options = parser(__doc__, "runs/quick_speech", minutes=38, learning_rate=8e-4)
    options.add_argument("--held-out", default=HELD_OUT, help="speakers to leave out, separated by commas")
    options.add_argument("--samples", type=int, default=16_000, help="length of the segments")
    train(options.parse_args())
