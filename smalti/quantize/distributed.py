"""The few collective operations that keep codebooks equal on all ranks. Without a process group they do nothing."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def active() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """The sum over all ranks, in place."""
    if active():
        dist.all_reduce(tensor)
    return tensor


def mean_over_ranks(tensor: Tensor) -> Tensor:
    """The mean over all ranks, in place."""
    return sum_over_ranks(tensor).div_(dist.get_world_size()) if active() else tensor


def from_first_rank(tensor: Tensor) -> Tensor:
    """The first rank's tensor, in place."""
    if active():
        dist.broadcast(tensor, src=0)
    return tensor


def gather_rows(rows: Tensor) -> Tensor:
    """The rows of all ranks, in rank order, equal on all of them; ranks may hold different numbers of rows."""
    if not active():
        return rows
    counts = [torch.zeros((), dtype=torch.int64, device=rows.device) for _ in range(dist.get_world_size())]
    dist.all_gather(counts, torch.tensor(len(rows), device=rows.device))
    longest = max(int(count) for count in counts)
    padded = rows.new_zeros(longest, *rows.shape[1:])
    padded[: len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(parts, padded)
    return torch.cat([part[: int(count)] for part, count in zip(parts, counts, strict=True)])


def random_rows(available: int, wanted: int, device: torch.device) -> Tensor:
    """Numbers of `wanted` random rows of `available`, equal on all ranks, without repeats while there are enough."""
    if available >= wanted:
        chosen = torch.randperm(available, device=device)[:wanted]
    else:
        chosen = torch.randint(available, (wanted,), device=device)
    return from_first_rank(chosen)
