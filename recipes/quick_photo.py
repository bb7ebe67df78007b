"""Trains the provisional weights of smalti-photo-f8 on one CPU core in 40 minutes.

    python -m recipes.quick_photo --data ../shared/data/imagenet_sample/train --out smalti/weights/smalti-photo-f8

Only mean errors are minimised (no adversary, no perceptual network), so pictures come out soft.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from recipes.quick import fit, parser
from smalti.image.photo import PhotoTokenizer


def read_images(folder: Path) -> list[Tensor]:
    """All photos of a folder as (3,H,W) uint8."""
    files = sorted(file for file in folder.iterdir() if file.suffix in {".jpg", ".png", ".webp"})
    return [torch.from_numpy(np.array(Image.open(file).convert("RGB"))).permute(2, 0, 1) for file in files]


def random_crops(images: list[Tensor], batch: int, size: int, rng: np.random.Generator) -> Tensor:
    """Crops of random pictures, half of them from the picture at half its size, flipped at random."""
    crops = []
    for index in rng.integers(len(images), size=batch):
        image = images[index].float() / 255
        if rng.random() < 0.5 and min(image.shape[1:]) >= 2 * size:
            image = F.avg_pool2d(image, 2)
        top = rng.integers(image.shape[1] - size + 1)
        left = rng.integers(image.shape[2] - size + 1)
        crop = image[:, top : top + size, left : left + size]
        crops.append(crop.flip(2) if rng.random() < 0.5 else crop)
    return torch.stack(crops)


def train(args: argparse.Namespace) -> None:
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    rng = np.random.default_rng(args.seed)
    images = read_images(args.data)
    model = PhotoTokenizer(PhotoTokenizer.Config()).to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def loss_of_batch() -> Tensor:
        batch = random_crops(images, args.batch, args.size, rng).contiguous(memory_format=torch.channels_last) * 2 - 1
        rebuilt = model(batch, raw=True).x
        assert rebuilt is not None  # a photo tokenizer has a decoder
        error = rebuilt - batch
        return error.square().mean() + 0.1 * error.abs().mean()

    fit(model, loss_of_batch, args, decay=0.01)


if __name__ == "__main__":
    options = parser(__doc__, "runs/quick_photo", minutes=40, learning_rate=5e-4)
    options.add_argument("--size", type=int, default=96, help="side of the crops")
    train(options.parse_args())
