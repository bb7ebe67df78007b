"""A loss term over quantizers side by side, which keeps what they say apart.

Source: "Factorized Visual Tokenization and Generation" (FQGAN, 2024).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass
class Disentanglement:
    """Draws the vectors of different parts to right angles: the mean squared cosine of each pair of parts, averaged.

    Args:
        weight: of the term.
    """

    name: ClassVar[str] = "disentanglement"
    weight: float = 0.1

    def __call__(self, vectors: Sequence[Tensor]) -> Tensor:
        """A scalar from what each part made of the same real positions, (rows, dim) each, straight-through."""
        unit = [F.normalize(each.float(), dim=-1) for each in vectors]
        return torch.stack([(a * b).sum(-1).square().mean() for a, b in combinations(unit, 2)]).mean()
