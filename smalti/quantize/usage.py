"""Usage: which codes training has chosen of late, so that a collapse shows while it happens."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

WINDOW = 65_536  # positions; between one and two windows are remembered


class Usage(nn.Module):
    """Which codes of each slot occurred in the last positions, a flag per code.

    Two windows are kept, a full one and one that fills, so no history of codes is stored. Nothing of it is saved.

    Args:
        vocab: codes of each slot; 0 for slots that are not counted.
    """

    def __init__(self, vocab: Sequence[int]) -> None:
        super().__init__()
        self.vocab = tuple(vocab)
        self.positions = 0  # in the window that fills
        self.recent: Tensor
        self.earlier: Tensor
        self.register_buffer("recent", torch.zeros(sum(vocab), dtype=torch.bool), persistent=False)
        self.register_buffer("earlier", torch.zeros(sum(vocab), dtype=torch.bool), persistent=False)

    @torch.no_grad()
    def add(self, counts: Sequence[Tensor], positions: int) -> None:
        """Takes in how often each code of each slot occurred, (codes,) each, in so many positions."""
        if self.positions >= WINDOW:
            self.earlier.copy_(self.recent)
            self.recent.zero_()
            self.positions = 0
        self.recent |= torch.cat(list(counts)) > 0
        self.positions += positions

    def share(self) -> Tensor:
        """Share of each slot's codes that occurred: (slots,); NaN for slots that are not counted."""
        seen = (self.recent | self.earlier).float().split(self.vocab)
        return torch.stack([each.mean() for each in seen])
