"""Sinkhorn assignment: a training batch is spread evenly over all codes, by entropic optimal transport.

    plan = argmin  <plan, cost> - eps H(plan),     rows of plan sum to 1 / N, columns to 1 / K
         = exp((f_i + g_k - cost_ik) / eps),       f and g by alternating normalisation

    code of row i = argmax_k plan_ik = argmax_k  g_k - cost_ik

Costs are squared distances. What depends on the row or the code alone is absorbed by f and g, so that
-2 (x_i - mean x).(e_k - mean e) stands for them, whatever offset latents or codes have. Only the codes' potential g is
kept; costs are made in chunks of rows, anew in each iteration.

Sources: "Sinkhorn Distances: Lightspeed Computation of Optimal Transport"; "Unsupervised Learning of Visual Features by
Contrasting Cluster Assignments" (SwAV: balanced codes of a batch).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from smalti.errors import ConfigError
from smalti.quantize.assign import Assigned, Nearest
from smalti.quantize.base import Alphabet, Noise, refuse_nan
from smalti.quantize.distributed import active, gather_rows, sum_over_ranks
from smalti.quantize.table import Table

BUFFER = 2**21  # float64 costs held at once


class Sinkhorn(Nearest):
    """In training codes come from a plan with uniform marginals over the batches of all ranks; otherwise the nearest.

    The alphabet is a Table. Codes of a training batch thus depend on the whole batch; encoding does not.

    Args:
        epsilon: weight of the entropy, in units of the costs' root mean square without the means of rows and codes;
            small is sharp.
        iterations: of alternating normalisation.
    """

    def __init__(self, epsilon: float = 0.05, iterations: int = 50) -> None:
        super().__init__()
        if epsilon <= 0 or iterations < 1:
            raise ConfigError(f"epsilon and iterations must be positive, got {epsilon} and {iterations}")
        self.epsilon, self.iterations = epsilon, iterations

    def forward(self, x: Tensor, alphabet: Alphabet, noise: Noise) -> Assigned:
        if not self.training:
            return super().forward(x, alphabet, noise)
        if not isinstance(alphabet, Table):
            raise ConfigError(f"Sinkhorn needs a Table, got {type(alphabet).__name__}")
        refuse_nan(x)
        codes = balanced(x.detach(), alphabet.rows().detach(), self.epsilon, self.iterations)[:, None]
        return Assigned(codes, alphabet.chosen(codes))


@torch.no_grad()
def balanced(x: Tensor, table: Tensor, epsilon: float, iterations: int) -> Tensor:
    """Codes (rows,) of a plan from latents x (rows, dim) of all ranks to a table (codes, dim)."""
    x, table = centred(x.double()), table.double() - table.double().mean(0)
    g = potential(x, table, epsilon, iterations)
    return torch.cat([x.new_zeros(0, dtype=torch.int64), *((g - cost).argmax(1) for cost in _costs(x, table))])


def centred(x: Tensor) -> Tensor:
    """Latents of this rank (rows, dim) without the mean of those of all ranks."""
    total = sum_over_ranks(torch.cat([x.sum(0), x.new_full((1,), len(x))]))
    return x - total[:-1] / total[-1].clamp(min=1)


def potential(x: Tensor, table: Tensor, epsilon: float, iterations: int) -> Tensor:
    """The codes' potential g, after columns were normalised last: (codes,).

    Args:
        x: (rows, dim), float64, this rank's, centred.
        table: (codes, dim), float64, centred.
        epsilon: in units of the costs' root mean square over all ranks.
        iterations: of alternating normalisation.
    """
    rows = sum_over_ranks(x.new_full((), len(x))).clamp(min=1)
    spread = sum_over_ranks(x.t() @ x) / rows
    # The mean square of x.e over all pairs is the trace of the product of both second moments.
    square = 4 * (spread * (table.t() @ table / len(table))).sum()
    scale = epsilon * square.sqrt().clamp(min=torch.finfo(x.dtype).tiny)
    g = x.new_zeros(len(table))
    for _ in range(iterations):
        gathered = x.new_full((len(table),), -torch.inf)
        for cost in _costs(x, table):
            # A row's own potential makes its line of the plan sum to 1; the columns then say how far they are off.
            lines = torch.log_softmax((g - cost) / scale, dim=1)
            gathered = torch.logaddexp(gathered, lines.logsumexp(0))
        if active():
            gathered = gather_rows(gathered[None]).logsumexp(0)
        g = g + scale * ((rows / len(table)).log() - gathered)  # every code shall get rows / codes
    return g


def _costs(x: Tensor, table: Tensor) -> Iterator[Tensor]:
    """Costs, a chunk of rows at a time: (n, codes)."""
    for part in x.split(max(1, BUFFER // len(table))):
        if len(part):
            yield -2 * part @ table.t()
