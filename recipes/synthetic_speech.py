"""Makes the spoken clip that `smalti demo` falls back on: a formant synthesiser says one sentence, the same every time.

    python recipes/synthetic_speech.py --out smalti/bench/assets/speech.flac

    phones ──durations, targets──► tracks every 5 ms (pitch, formants, amplitudes), eased from target to target
    pulses of the voice + breath ──► five resonators in a row ──┐
    noise ──► a band of its own (s, z, k, t, v) ────────────────┴──► lips ──► 16 kHz, 16 bits

After "Software for a cascade/parallel formant synthesizer" (Klatt, 1980), with fewer controls.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from smalti.audio.io import write_audio

RATE = 16_000
FRAME = RATE // 200  # samples between two settings of the controls
EASE = 0.045  # seconds in which one target gives way to the next
BANDWIDTHS = (70.0, 90.0, 130.0, 250.0, 300.0)  # Hz of the five resonators
HIGH = (3_300.0, 3_850.0)  # Hz of the upper two, which hardly move

Samples = np.ndarray[tuple[int, ...], np.dtype[np.float64]]


@dataclass(frozen=True)
class Phone:
    """What the vocal tract does for a while.

    Args:
        seconds: how long.
        formants: Hz of the lower three resonators.
        voice: amplitude of the vocal folds.
        breath: amplitude of noise at the vocal folds.
        hiss: amplitude of noise at a narrow place in the mouth.
        band: Hz, centre and width of that noise.
    """

    seconds: float
    formants: tuple[float, float, float]
    voice: float = 1.0
    breath: float = 0.01
    hiss: float = 0.0
    band: tuple[float, float] = (4_500.0, 2_000.0)


def vowel(seconds: float, *targets: tuple[float, float, float]) -> list[Phone]:
    return [Phone(seconds / len(targets), target) for target in targets]


def stop(place: tuple[float, float, float], band: tuple[float, float], breath: float) -> list[Phone]:
    """Silence, a burst, and the breath before the voice sets in again."""
    return [
        Phone(0.065, place, voice=0.0, breath=0.0),
        Phone(0.015, place, voice=0.0, breath=0.05, hiss=0.35, band=band),
        Phone(0.035, place, voice=0.1, breath=breath),
    ]


S = [Phone(0.12, (320, 1_500, 2_600), voice=0.0, breath=0.0, hiss=0.30, band=(5_600, 1_800))]
Z = [Phone(0.08, (300, 1_500, 2_600), voice=0.35, breath=0.0, hiss=0.14, band=(5_400, 1_800))]
V = [Phone(0.06, (280, 1_100, 2_300), voice=0.45, breath=0.01, hiss=0.04, band=(3_500, 4_000))]
M = [Phone(0.075, (270, 1_050, 2_200), voice=0.42, breath=0.0)]
L = [Phone(0.075, (360, 950, 2_700), voice=0.7)]
K = stop((340, 2_000, 2_500), (2_100, 700), 0.25)
T = stop((330, 1_750, 2_650), (4_300, 1_600), 0.22)
D = [Phone(0.05, (270, 1_700, 2_600), voice=0.15, breath=0.0), Phone(0.012, (300, 1_700, 2_600), voice=0.4, hiss=0.12)]
AH = vowel(0.06, (520, 1_200, 2_400))
AO = vowel(0.15, (590, 880, 2_450))
AY = vowel(0.19, (730, 1_200, 2_500), (420, 1_950, 2_600))
EY = vowel(0.16, (500, 1_900, 2_550), (340, 2_200, 2_750))
IH = vowel(0.09, (400, 1_950, 2_550))
OW = vowel(0.17, (540, 1_000, 2_400), (390, 850, 2_350))
OY = vowel(0.24, (560, 850, 2_400), (390, 1_900, 2_500))
REST = [Phone(0.22, (450, 1_400, 2_450), voice=0.0, breath=0.0)]

# Small tiles make mosaics, small codes make a voice.
SENTENCE = [
    *REST, *S, *M, *AO, *L, *T, *AY, *L, *Z, *M, *EY, *K, *M, *OW, *Z, *EY, *IH, *K, *S, *REST,
    *S, *M, *AO, *L, *K, *OW, *D, *Z, *M, *EY, *K, *AH, *V, *OY, *S, *REST,
]  # fmt: skip


def tracks(phones: list[Phone]) -> Samples:
    """The controls over time: (frames, 8): three formants, voice, breath, hiss, centre and width of the band."""
    ends = np.cumsum([phone.seconds for phone in phones])
    times = np.arange(0, ends[-1], FRAME / RATE)
    targets = np.array([[*p.formants, p.voice, p.breath, p.hiss, *p.band] for p in phones])
    rows = targets[np.minimum(np.searchsorted(ends, times, side="right"), len(phones) - 1)]
    width = round(EASE * RATE / FRAME)
    window = np.hanning(width + 2)[1:-1] / np.hanning(width + 2).sum()
    padded = np.pad(rows, ((width // 2, width - 1 - width // 2), (0, 0)), mode="edge")
    eased = np.stack([np.convolve(column, window, mode="valid") for column in padded.T], axis=1)
    eased[:, 5] = np.minimum(rows[:, 5], 2 * eased[:, 5])  # bursts begin at once and fade
    return eased


def pitch(count: int) -> Samples:
    """Hz of the voice in every frame: it falls over each half of the sentence, with a little unrest."""
    place = np.linspace(0, 2, count) % 1
    wander = 3 * np.sin(2 * math.pi * 4.7 * np.arange(count) * FRAME / RATE)
    return 128 - 34 * place + 10 * np.sin(3 * math.pi * place) + wander


def voice(frequencies: Samples, rng: np.random.Generator) -> Samples:
    """Rosenberg's pulses: the flow opens over 40 % of a period, closes over 16 %, and rests; then its derivative."""
    phase, flow = 0.0, np.zeros(len(frequencies) * FRAME)
    for index in range(len(flow)):
        phase += frequencies[index // FRAME] / RATE
        if phase >= 1:
            phase -= 1 + 0.01 * rng.standard_normal()
        if phase < 0.40:
            flow[index] = 0.5 * (1 - math.cos(math.pi * max(0.0, phase) / 0.40))
        elif phase < 0.56:
            flow[index] = math.cos(math.pi / 2 * (phase - 0.40) / 0.16)
    return np.diff(flow, prepend=0.0)


def resonate(signal: Samples, centres: Samples, widths: Samples) -> Samples:
    """A resonator of gain 1 at 0 Hz whose centre and width move from frame to frame."""
    out, before, earlier = np.zeros(len(signal)), 0.0, 0.0
    for start in range(0, len(signal), FRAME):
        radius = math.exp(-math.pi * widths[start // FRAME] / RATE)
        b, c = 2 * radius * math.cos(2 * math.pi * centres[start // FRAME] / RATE), -radius * radius
        for index in range(start, min(start + FRAME, len(signal))):
            value = (1 - b - c) * signal[index] + b * before + c * earlier
            out[index], earlier, before = value, before, value
    return out


def speak(phones: list[Phone], seed: int = 0) -> Samples:
    """The waveform, at most 0.9."""
    rng = np.random.default_rng(seed)
    controls = tracks(phones)
    frames = len(controls)
    smooth = np.repeat(controls[:, 3:6], FRAME, axis=0)
    source = voice(pitch(frames), rng) * smooth[:, 0] + 0.2 * rng.standard_normal(frames * FRAME) * smooth[:, 1]
    centres = [*controls[:, :3].T, *(np.full(frames, high) for high in HIGH)]
    for centre, width in zip(centres, BANDWIDTHS, strict=True):
        source = resonate(source, centre, np.full(frames, width))
    hiss = resonate(rng.standard_normal(frames * FRAME), controls[:, 6], controls[:, 7])
    hiss = np.diff(hiss, prepend=0.0) * smooth[:, 2]
    out = np.diff(source, prepend=0.0) / np.abs(np.diff(source)).max() + 0.12 * hiss / np.abs(hiss).max()
    return 0.9 * out / np.abs(out).max()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    waveform = speak(SENTENCE, args.seed)
    write_audio(args.out, torch.from_numpy(waveform).float()[None], RATE)
    print(f"{args.out}: {len(waveform) / RATE:.1f} s, {args.out.stat().st_size} bytes")
