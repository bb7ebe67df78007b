"""Claims: each paper's mechanism against the baseline it improves on, on small real data, minutes on two cores.

    python -m benchmarks.claims SLUG --seed N [--data FOLDER] [--json]

A module `benchmarks/claims/SLUG.py` (hyphens become underscores) has

    def claims(data: Path, seed: int) -> Iterator[Claim]

and prints nothing. `data` is the folder with the data sets, whichever of them it needs. Baselines and thresholds are
the acceptance checks of the system's sheet. A claim that does not hold says so; nothing is tuned on the seed.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Literal


@dataclass(frozen=True)
class Claim:
    """One comparison.

    Args:
        system: slug of the system.
        claim: what is claimed, in words, with its threshold.
        metric: what `baseline` and `ours` are, with its unit.
        better: which direction of the metric is better.
        baseline, ours: the two numbers.
        holds: whether the claim, threshold and all, held in this run.
        seconds: wall clock that ours and the baseline took together.
    """

    system: str
    claim: str
    metric: str
    better: Literal["lower", "higher"]
    baseline: float
    ours: float
    holds: bool
    seconds: float

    def json(self) -> str:
        """One line, the fields in this order."""
        return json.dumps(asdict(self))
