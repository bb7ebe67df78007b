"""Trains the provisional weights of smalti-photo-f8 on one CPU core in 45 minutes.

    python recipes/quick_photo.py --data ../shared/data/imagenet_sample/train --out smalti/weights/smalti-photo-f8

It resumes from the checkpoint in --work if there is one. Only mean errors are minimised (no adversary, no perceptual
network), so pictures come out soft.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

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
    model = PhotoTokenizer.Config().build().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    average = {key: value.clone() for key, value in model.state_dict().items()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, betas=(0.9, 0.99), weight_decay=0.01)
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
        batch = random_crops(images, args.batch, args.size, rng).contiguous(memory_format=torch.channels_last)
        out = model(batch * 2 - 1, raw=True)
        assert out.x is not None
        error = out.x - (batch * 2 - 1)
        loss = error.square().mean() + 0.1 * error.abs().mean()
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
            psnr = -10 * math.log10(float(error.detach().square().mean()) / 4)
            print(f"{spent / 60:5.1f} min  step {step}  loss {float(loss.detach()):.5f}  psnr {psnr:.2f}", flush=True)
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
    parser.add_argument("--work", type=Path, default=Path("runs/quick_photo"))
    parser.add_argument("--minutes", type=float, default=45)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    train(parser.parse_args())
