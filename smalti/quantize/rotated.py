"""OPQ: product quantization after the rotation that suits it.

Source: "Optimized Product Quantization" (2013; the non-parametric form).

    x ──R──► split into parts ──a codebook each──► joined ──R'──► x̂          R orthogonal, so distances stay

R and the codebooks are fitted in turn: codes and means for a given R; then R = U V' from the singular vectors of
X'X̂, the rotation that brings X nearest to its reconstruction.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from smalti.errors import ConfigError, InputError
from smalti.quantize.clustering import kmeans
from smalti.quantize.compose import Quantize
from smalti.quantize.distributed import from_first_rank, gather_rows
from smalti.quantize.neighbours import nearest, squared_distances
from smalti.quantize.parallel import Parallel
from smalti.quantize.residual import Residual
from smalti.quantize.table import Table


class Rotate(nn.Module):
    """z @ R, and back.

    Args:
        dim: of z. R starts as the identity; `Rotated.fit` sets it.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.matrix: Tensor
        self.register_buffer("matrix", torch.eye(dim, dtype=torch.float32))

    def forward(self, z: Tensor) -> Tensor:
        return z @ self.matrix


class RotateBack(nn.Module):
    """z @ R' for the R of a Rotate, whose state it shares."""

    def __init__(self, rotation: Rotate) -> None:
        super().__init__()
        self._rotation = (rotation,)  # in a tuple, so that its state is not listed twice

    def forward(self, z: Tensor) -> Tensor:
        return z @ self._rotation[0].matrix.t()


class Rotated(Residual):
    """A product of tables with a fitted rotation around it: the one level of a Residual, which has before and after.

    Args:
        product: Parallel, joined by "cat", of Quantize over Euclidean Tables without projections of their own.

    Raises:
        ConfigError: if it is something else.
    """

    def __init__(self, product: Parallel) -> None:
        if product.join != "cat" or not all(_plain(part) for part in product.parts):
            raise ConfigError("OPQ rotates Parallel(join='cat') of Quantize over Euclidean Tables")
        rotation = Rotate(product.dim)
        super().__init__([product], before=rotation, after=RotateBack(rotation))
        self.rotation, self.product = (rotation,), (product,)

    @torch.no_grad()
    def fit(self, x: Tensor, *, iterations: int = 20, start: Tensor | None = None, seed: int = 0) -> ProductFit:
        """Sets the rotation and all tables from vectors; see `fit_product`. Ranks fit all of theirs together.

        Args:
            x: (n, dim).
            iterations, start, seed: as in `fit_product`.
        """
        product = self.product[0]
        sizes = {part.vocab[0] for part in product.parts}
        if len(sizes) != 1 or len({part.dim for part in product.parts}) != 1:
            raise ConfigError("fitting needs parts of one dimension and size")
        found = fit_product(
            gather_rows(x), len(product.parts), sizes.pop(), rotate=True, iterations=iterations, start=start, seed=seed
        )
        self.rotation[0].matrix.copy_(from_first_rank(found.rotation))
        for part, table in zip(product.parts, found.codebooks, strict=True):
            assert isinstance(part, Quantize) and isinstance(part.alphabet, Table)  # checked at construction
            part.alphabet.vectors.weight.copy_(from_first_rank(table))
            part.alphabet.adopt_rows()
        return found


def _plain(part: nn.Module) -> bool:
    return (
        isinstance(part, Quantize)
        and isinstance(part.alphabet, Table)
        and part.alphabet.space == "euclidean"
        and isinstance(part.before, nn.Identity)
        and isinstance(part.after, nn.Identity)
    )


@dataclass(frozen=True)
class ProductFit:
    """What was fitted.

    Args:
        rotation: (d, d), R; the identity without one.
        codebooks: (M, K, d / M).
        errors: mean squared error after each iteration.
    """

    rotation: Tensor
    codebooks: Tensor
    errors: tuple[float, ...]


@torch.no_grad()
def fit_product(
    x: Tensor,
    parts: int,
    codes: int,
    *,
    rotate: bool,
    iterations: int = 20,
    start: Tensor | None = None,
    seed: int = 0,
) -> ProductFit:
    """Fits product codes (PQ), with a rotation if asked (OPQ). The error never rises from one iteration to the next.

    Args:
        x: (n, d).
        parts: M, which divides d.
        codes: K, of each part.
        rotate: fit R too.
        iterations: of one Lloyd step, and one of R.
        start: (d, d), the first R; the principal axes dealt out to the parts if None and `rotate`.
        seed: of the rows that means start from.
    """
    if x.ndim != 2 or len(x) == 0 or x.shape[1] % parts:
        raise InputError(f"vectors must be (n, d) with d divisible by {parts} parts, got {tuple(x.shape)}")
    x = x.detach().float()
    eye = torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
    rotation = (start if start is not None else principal_axes(x, parts)) if rotate else eye
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randperm(len(x), generator=generator)[:codes]
    if len(rows) < codes:
        rows = torch.randint(len(x), (codes,), generator=generator)
    pieces = (x @ rotation).unflatten(1, (parts, -1)).unbind(1)
    books = torch.stack([kmeans(piece, codes, 1, start=rows.to(x.device))[0] for piece in pieces])
    errors = []
    for _ in range(iterations):
        decoded, books = _lloyd((x @ rotation).unflatten(1, (parts, -1)), books)
        if rotate:
            left, _, right = torch.linalg.svd(x.double().t() @ decoded.double())
            rotation = (left @ right).float()
        errors.append(float(squared_distances(x @ rotation, decoded).mean()))
    return ProductFit(rotation, books, tuple(errors))


def _lloyd(pieces: Tensor, books: Tensor) -> tuple[Tensor, Tensor]:
    """One step in each part: reconstructions (n, d), and the means (M, K, d / M) that they are made of."""
    decoded, moved = [], []
    for part, table in enumerate(books):
        rows = pieces[:, part]
        index = nearest(rows, table)
        count = torch.bincount(index, minlength=len(table))[:, None]
        means = torch.zeros_like(table).index_add_(0, index, rows) / count.clamp(min=1)
        moved.append(torch.where(count > 0, means, table))
        decoded.append(moved[-1][index])
    return torch.cat(decoded, 1), torch.stack(moved)


def principal_axes(x: Tensor, parts: int) -> Tensor:
    """Principal axes (d, d), dealt out so that all parts have about the same product of variances (parametric OPQ)."""
    centred = x.double() - x.double().mean(0)
    values, vectors = torch.linalg.eigh(centred.t() @ centred / len(x))
    logs = values.clamp(min=1e-12).log()
    weights, size = (logs - logs.min()).tolist(), x.shape[1] // parts
    held: list[list[int]] = [[] for _ in range(parts)]
    for axis in sorted(range(len(weights)), key=lambda axis: -weights[axis]):
        open_parts = [part for part in range(parts) if len(held[part]) < size]
        held[min(open_parts, key=lambda part: sum(weights[each] for each in held[part]))].append(axis)
    return vectors[:, [axis for part in held for axis in part]].float()
