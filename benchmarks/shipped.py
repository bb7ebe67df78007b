"""Quality of the tokenizers that ship, on pictures and speakers that they were not trained on.

    python -m benchmarks.shipped --data ../shared/data [--json]

Pictures are 256x256 centre crops of the Kodak photos; speech is that of the held-out speakers of
`recipes/quick_speech.py`. Speeds belong to `benchmarks/codecs.py`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from recipes.quick_speech import HELD_OUT
from smalti import systems
from smalti.audio.io import read_audio
from smalti.audio.metrics import STOI, MelDistance
from smalti.image.io import read_image
from smalti.image.metrics import PSNR, SSIM
from smalti.image.resize import CentreCrop
from smalti.metric import SampleMean


def photos(folder: Path) -> dict[str, Any]:
    """PSNR and SSIM of smalti-photo-f8 on the Kodak photos."""
    tokenizer = systems.load("smalti-photo-f8")
    metrics: list[SampleMean] = [PSNR(), SSIM()]
    files = sorted(folder.glob("*.webp"))
    for file in files:
        image = read_image(file, [CentreCrop(size=256)])[None]
        rebuilt = tokenizer.decode(tokenizer.encode(image))
        for metric in metrics:
            metric.update(image, rebuilt)
    return {"tokenizer": "smalti-photo-f8", "samples": len(files), **_values(metrics)}


def speech(folder: Path) -> dict[str, Any]:
    """STOI and mel distance of smalti-speech on the speakers that were held out."""
    tokenizer = systems.load("smalti-speech")
    metrics: list[SampleMean] = [STOI(16_000), STOI(16_000, extended=True), MelDistance(16_000)]
    speakers = [speaker.removeprefix("libri-") for speaker in HELD_OUT.split(",")]
    files = sorted(file for speaker in speakers for file in folder.glob(f"librispeech/{speaker}-*.flac"))
    for file in files:
        waveform, rate = read_audio(file)
        rebuilt = tokenizer.decode(tokenizer.encode(waveform[None], sample_rate=rate))
        for metric in metrics:
            metric.update(waveform[None], rebuilt)
    return {"tokenizer": "smalti-speech", "samples": len(files), **_values(metrics)}


def _values(metrics: list[SampleMean]) -> dict[str, float]:
    return {metric.protocol: round(float(metric.compute()), 4) for metric in metrics}


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data", type=Path, required=True, help="the folder of the development data sets")
    options.add_argument("--json", action="store_true")
    arguments = options.parse_args()
    torch.set_num_threads(1)
    rows = [photos(arguments.data / "kodak"), speech(arguments.data / "speech")]
    if arguments.json:
        print(json.dumps(rows, indent=2))
    else:
        for row in rows:
            print("  ".join(f"{name} {value}" for name, value in row.items()))
