"""Trains the provisional weights of smalti-speech on one CPU core in 40 minutes.

    python recipes/quick_speech.py --data ../shared/data/speech --out smalti/weights/smalti-speech

It resumes from the checkpoint in --work if there is one. Only spectral distances are minimised (no adversary), so
speech comes out slightly buzzy. Speakers whose name is in --held-out are not trained on.
"""

from __future__ import annotations

import argparse
import csv
import math
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from smalti.audio.io import read_audio, resample
from smalti.audio.losses import multi_resolution_stft_distance
from smalti.audio.mel import MelSpectrogram
from smalti.audio.speech import SpeechCodec

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
    """Log-mel distances at three windows and the spectral convergence and log distance of three STFTs."""
    mel = sum(
        (transform(x).clamp(min=1e-4).log() - transform(y).clamp(min=1e-4).log()).abs().mean() for transform in MELS
    )
    return mel + multi_resolution_stft_distance(x[:, None], y[:, None]).mean()


def train(args: argparse.Namespace) -> None:
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    rng = np.random.default_rng(args.seed)
    clips = read_speech(args.data, set(args.held_out.split(",")))
    print(f"{len(clips)} clips, {sum(map(len, clips)) / 16_000 / 60:.1f} minutes", flush=True)
    model = SpeechCodec.Config().build()
    average = {key: value.clone() for key, value in model.state_dict().items()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, betas=(0.9, 0.99), weight_decay=0.05)
    args.work.mkdir(parents=True, exist_ok=True)
    checkpoint, spent, step = args.work / "last.pt", 0.0, 0
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        average, spent, step = saved["average"], saved["spent"], saved["step"]
    begun, logged = time.monotonic() - spent, time.monotonic()
    while (spent := time.monotonic() - begun) < 60 * args.minutes:
        progress = spent / (60 * args.minutes)
        for group in optimizer.param_groups:
            group["lr"] = args.lr * min(1.0, (step + 1) / 200) * (0.02 + 0.98 * (1 + math.cos(math.pi * progress)) / 2)
        batch = random_segments(clips, args.batch, args.samples, rng)
        out = model(batch, raw=True)
        assert out.x is not None
        loss = spectral_loss(batch[:, 0], out.x[:, 0, : args.samples])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step += 1
        decay = min(0.999, (step + 1) / (step + 10))
        for key, value in model.state_dict().items():
            average[key].lerp_(value, 1 - decay) if value.is_floating_point() else average[key].copy_(value)
        if time.monotonic() - logged > 20:
            logged = time.monotonic()
            print(f"{spent / 60:5.1f} min  step {step}  loss {float(loss.detach()):.4f}", flush=True)
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "average": average}
            torch.save({**state, "spent": spent, "step": step}, checkpoint.with_suffix(".tmp"))
            checkpoint.with_suffix(".tmp").replace(checkpoint)
    model.load_state_dict(average)
    model.save(args.out, dtype=torch.float16, licence="Apache-2.0")
    print(f"saved {args.out} after {step} steps")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("runs/quick_speech"))
    parser.add_argument("--held-out", default="", help="speakers to leave out, separated by commas")
    parser.add_argument("--minutes", type=float, default=40)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--samples", type=int, default=16_000)
    parser.add_argument("--lr", type=float, default=8e-4)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    train(parser.parse_args())
