"""The loop of the two quick recipes: AdamW with warm-up and cosine over a time budget, averaged weights, resumption.

`smalti train` replaces it; these recipes only make the provisional weights that ship until then.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from smalti.tokenizer import NeuralTokenizer

LOG_EVERY = 20.0  # seconds, and so often is a checkpoint written
WARM_UP = 200  # steps
AVERAGE = 0.999


def parser(description: str | None, work: str, minutes: float, learning_rate: float) -> argparse.ArgumentParser:
    """The options that both recipes have."""
    options = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data", type=Path, required=True)
    options.add_argument("--out", type=Path, required=True)
    options.add_argument("--work", type=Path, default=Path(work), help="where it resumes from")
    options.add_argument("--minutes", type=float, default=minutes)
    options.add_argument("--batch", type=int, default=8)
    options.add_argument("--lr", type=float, default=learning_rate)
    options.add_argument("--threads", type=int, default=1)
    options.add_argument("--seed", type=int, default=0)
    return options


def fit(model: NeuralTokenizer, loss_of_batch: Callable[[], Tensor], args: argparse.Namespace, decay: float) -> None:
    """Trains for `args.minutes` and saves the averaged weights as float16.

    Args:
        model: with random weights.
        loss_of_batch: draws a batch and gives its loss.
        args: the options of `parser`.
        decay: weight decay.
    """
    average = {key: value.clone() for key, value in model.state_dict().items()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, betas=(0.9, 0.99), weight_decay=decay)
    args.work.mkdir(parents=True, exist_ok=True)
    checkpoint, spent, step = args.work / "last.pt", 0.0, 0
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        average, spent, step = saved["average"], saved["spent"], saved["step"]
    begun, logged = time.monotonic() - spent, time.monotonic()
    while (spent := time.monotonic() - begun) < 60 * args.minutes:
        cosine = (1 + math.cos(math.pi * spent / (60 * args.minutes))) / 2
        for group in optimizer.param_groups:
            group["lr"] = args.lr * min(1.0, (step + 1) / WARM_UP) * (0.02 + 0.98 * cosine)
        loss = loss_of_batch()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step += 1
        rate = 1 - min(AVERAGE, (step + 1) / (step + 10))
        for key, value in model.state_dict().items():
            average[key].lerp_(value, rate) if value.is_floating_point() else average[key].copy_(value)
        if time.monotonic() - logged > LOG_EVERY:
            logged = time.monotonic()
            print(f"{spent / 60:5.1f} min  step {step}  loss {float(loss.detach()):.5f}", flush=True)
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "average": average}
            torch.save({**state, "spent": spent, "step": step}, checkpoint.with_suffix(".tmp"))
            checkpoint.with_suffix(".tmp").replace(checkpoint)
    model.load_state_dict(average)
    model.save(args.out, dtype=torch.float16, licence="Apache-2.0")
    print(f"saved {args.out} after {step} steps")
