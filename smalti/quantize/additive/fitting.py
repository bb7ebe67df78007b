"""Codebooks from vectors: residual k-means to start with, then codes and least squares in turn (LSQ, LSQ++)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from smalti.errors import InputError
from smalti.quantize.additive.encoders import Encoder, LocalSearch
from smalti.quantize.additive.energy import add_up
from smalti.quantize.clustering import kmeans
from smalti.quantize.neighbours import nearest, squared_distances


@dataclass(frozen=True)
class Fit:
    """What was fitted.

    Args:
        codebooks: (M, K, d).
        codes: (n, M), those of the vectors.
        errors: mean squared error |x - sum|² after the start and after each iteration.
    """

    codebooks: Tensor
    codes: Tensor
    errors: tuple[float, ...]


def residual_kmeans(
    x: Tensor, levels: int, codes: int, *, iterations: int = 10, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Codebooks (M, K, d), each the k-means of what those before it left, and the greedy codes (n, M)."""
    generator = torch.Generator().manual_seed(seed)
    residual, tables, chosen = x.detach().float(), [], []
    for _ in range(levels):
        start = torch.randperm(len(x), generator=generator)[:codes]
        if len(start) < codes:
            start = torch.randint(len(x), (codes,), generator=generator)
        means, _ = kmeans(residual, codes, iterations, start=start.to(x.device))
        index = nearest(residual, means)
        residual = residual - means[index]
        tables.append(means)
        chosen.append(index)
    return torch.stack(tables), torch.stack(chosen, 1)


def normal_equations(x: Tensor, codes: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """B'B (MK, MK) and B'X (MK, d) of the one-hot matrix B of codes (n, M), float64, without B."""
    levels = codes.shape[1]
    place = codes + size * torch.arange(levels, device=codes.device)
    whole = levels * size
    both = (place[:, :, None] * whole + place[:, None, :]).flatten()
    gram = torch.bincount(both, minlength=whole**2).view(whole, whole).double()
    rows = x.double()[:, None].expand(-1, levels, -1).flatten(0, 1)
    return gram, torch.zeros(whole, x.shape[1], dtype=torch.float64, device=x.device).index_add_(
        0, place.flatten(), rows
    )


def least_squares(gram: Tensor, moments: Tensor, *, damping: float = 1e-4, towards: Tensor | None = None) -> Tensor:
    """Codewords (MK, d), float64, that minimise |X - B C|² + damping |C - towards|².

    Shifting codebooks against each other changes no sum, so without damping there is no single answer.

    Args:
        gram: B'B.
        moments: B'X.
        damping: positive.
        towards: (MK, d), where words stay that nothing chose; zero if None. With the present words the error of the
            present codes cannot rise.
    """
    system = gram.double() + damping * torch.eye(len(gram), dtype=torch.float64, device=gram.device)
    wanted = moments.double() if towards is None else moments.double() + damping * towards.double()
    return torch.cholesky_solve(wanted, torch.linalg.cholesky(system))


@torch.no_grad()
def fit(
    x: Tensor,
    levels: int,
    codes: int,
    *,
    iterations: int = 25,
    encoder: Encoder | None = None,
    perturbation: float = 0.0,
    damping: float = 1e-4,
    seed: int = 0,
) -> Fit:
    """Fits codebooks to vectors (LSQ).

    Args:
        x: (n, d).
        levels: M.
        codes: K.
        iterations: of least squares and encoding.
        encoder: finds codes, from the present ones where it can; `LocalSearch` if None.
        perturbation: noise on the codebooks before each encoding but the last, as a share of the vectors' deviation
            over sqrt(M), which fades out with the square root of the iterations left. LSQ++ has 1; measured here, 1
            hurts in 25 iterations, and 0.05 helps in 50.
        damping: of the least squares.
        seed: of everything random.

    Raises:
        InputError: if there is no vector.
    """
    if x.ndim != 2 or len(x) == 0:
        raise InputError(f"additive codebooks are fitted to vectors (n, d), got {tuple(x.shape)}")
    x = x.detach().float()
    encoder = LocalSearch() if encoder is None else encoder
    books, chosen = residual_kmeans(x, levels, codes, seed=seed)
    errors = [_error(x, chosen, books)]
    generator = torch.Generator().manual_seed(seed)
    spread = perturbation * x.double().std(0) / levels**0.5
    for turn in range(iterations):
        words = least_squares(*normal_equations(x, chosen, codes), damping=damping, towards=books.flatten(0, 1))
        books = words.float().view_as(books)
        searched = books
        if perturbation > 0 and turn < iterations - 1:
            noise = torch.randn(books.shape, generator=generator, dtype=torch.float64).to(x.device)
            searched = (books + noise * spread * (1 - (turn + 1) / iterations) ** 0.5).float()
        if isinstance(encoder, LocalSearch):
            encoder = replace(encoder, seed=encoder.seed + 1)  # the same changes every time would find nothing new
        chosen = encoder.encode(x, searched, chosen)
        words = least_squares(*normal_equations(x, chosen, codes), damping=damping, towards=books.flatten(0, 1))
        books = words.float().view_as(books)
        errors.append(_error(x, chosen, books))
    return Fit(books, chosen, tuple(errors))


def _error(x: Tensor, codes: Tensor, codebooks: Tensor) -> float:
    return float(squared_distances(x, add_up(codes, codebooks)).mean())
