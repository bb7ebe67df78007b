"""The toy comparison of quantizers: CIFAR-10 at 16x16 through a small convolutional autoencoder to a 4x4 grid.

    pictures (B,3,16,16) in [-1,1] ──► 3 convolutions ──► z (B,4,4,D) ──quantizer──► z_q ──► 3 convolutions ──► pictures

Protocol of the sheets of FVQ and SimVQ: widths 32 and 64, batch 64, 1500 steps of Adam at 1e-3, a linear warm-up of 100
steps, constant for three tenths of the rest, then down to a hundredth; MSE + the quantizer's own loss. Everything that
is compared starts from the same network and sees the same batches.
"""

from __future__ import annotations

import io
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from smalti.errors import InputError
from smalti.quantize import Quantizer

SIDE = 16
WIDTHS = (32, 64)
BATCH, STEPS, WARM_UP, RATE, LEAST = 64, 1500, 100, 1e-3, 0.01
CONSTANT = 0.3  # share of the steps behind the warm-up that keep the full rate
TESTED = 2048  # pictures


@dataclass(frozen=True)
class Outcome:
    """What a quantizer reached.

    Args:
        mse: on test pictures in [-1,1].
        usage: share of the codes that occur in the test pictures, the mean of all slots.
        seconds: wall clock of training and test.
        codes: of the test pictures, (N, 4, 4, slots).
    """

    mse: float
    usage: float
    seconds: float
    codes: Tensor


class Autoencoder(nn.Module):
    """The network around a quantizer.

    Shape:
        (B, 3, 16, 16)  ->  reconstruction of the same shape, and the quantizer's result
    """

    def __init__(self, quantizer: Quantizer) -> None:
        super().__init__()
        narrow, wide = WIDTHS
        self.encoder = nn.Sequential(
            nn.Conv2d(3, narrow, 4, 2, 1),
            nn.SiLU(),
            nn.Conv2d(narrow, wide, 4, 2, 1),
            nn.SiLU(),
            nn.Conv2d(wide, quantizer.dim, 3, 1, 1),
        )
        self.quantizer = quantizer
        self.decoder = nn.Sequential(
            nn.Conv2d(quantizer.dim, wide, 3, 1, 1),
            nn.SiLU(),
            nn.ConvTranspose2d(wide, narrow, 4, 2, 1),
            nn.SiLU(),
            nn.ConvTranspose2d(narrow, 3, 4, 2, 1),
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Reconstruction, codes, and the quantizer's loss."""
        quantized = self.quantizer(self.encoder(x).permute(0, 2, 3, 1))
        return self.decoder(quantized.z.permute(0, 3, 1, 2)), quantized.codes, quantized.loss


def cifar(data: Path, split: str) -> Tensor:
    """Pictures of the subset of CIFAR-10 at half size: (N, 3, 16, 16) in [-1,1].

    Raises:
        InputError: if the archive is not there.
    """
    path = data / "cifar10" / f"{split}.npz"
    if not path.is_file():
        raise InputError(f"this claim needs {path}: --data is the folder that holds cifar10/")
    with np.load(path) as archive:
        stream, offsets = archive["jpeg_bytes"], archive["offsets"]
    images = np.stack(
        [
            np.asarray(Image.open(io.BytesIO(stream[start:end].tobytes())).convert("RGB"))
            for start, end in pairwise(offsets)
        ]
    )
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
    return F.avg_pool2d(pixels, pixels.shape[-1] // SIDE)


def outcome(quantizer: Quantizer, train: Tensor, test: Tensor, seed: int, *, steps: int = STEPS) -> Outcome:
    """Trains an autoencoder around a quantizer, and tests it.

    Args:
        quantizer: with its own random start; the network's start and the batches depend on the seed alone.
        train, test: (N, 3, 16, 16).
        seed: of network and batches.
        steps: of the optimizer.
    """
    started = time.perf_counter()
    torch.manual_seed(seed)
    model = Autoencoder(quantizer)
    optimizer = torch.optim.Adam([each for each in model.parameters() if each.requires_grad], lr=RATE)
    draw = torch.Generator().manual_seed(seed)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = RATE * rate(step, steps)
        x = train[torch.randint(len(train), (BATCH,), generator=draw)]
        rebuilt, _, loss = model(x)
        optimizer.zero_grad()
        (F.mse_loss(rebuilt, x) + loss).backward()
        optimizer.step()
        quantizer.update()
    model.eval()
    with torch.no_grad():
        rebuilt, codes, _ = model(test[:TESTED])
    used = [len(codes[..., slot].unique()) / size for slot, size in enumerate(quantizer.vocab)]
    mse = float(F.mse_loss(rebuilt, test[:TESTED]))
    return Outcome(mse, sum(used) / len(used), time.perf_counter() - started, codes)


def rate(step: int, steps: int = STEPS) -> float:
    """Learning rate of a step over its maximum."""
    if step < WARM_UP:
        return 0.005 + 0.995 * step / WARM_UP
    progress = (step - WARM_UP) / (steps - 1 - WARM_UP)
    return 1.0 if progress < CONSTANT else LEAST + (1 - LEAST) * (1 - progress) / (1 - CONSTANT)
