"""Pyramid codes: directions on an integer lattice, so that no codebook is stored, whatever its size.

Sources: "A Pyramid Vector Quantizer" (1986); "Pyramid Vector Quantization for LLMs" (2024), which adds the amplitude.

    x (l) ──search──► y in Z^l, sum |y_i| = k ──enumeration──► code in 0..N(l,k)-1
    direction  y / |y|          amplitude  a level of the Beta law that a group's share of its row's energy follows
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from smalti.errors import ConfigError, InputError, UnavailableError
from smalti.quantize.base import Alphabet, refuse_nan
from smalti.quantize.compose import led_by
from smalti.quantize.enumeration import Enumeration
from smalti.quantize.neighbours import nearest_k, squared_distances
from smalti.quantize.scalars import MAX_SPELLED_OUT
from smalti.quantize.sums import folded_sum

Search = Literal["exact", "cosine", "l1"]
PAIRS_AT_ONCE = 2**22  # float64 numbers in one step of the exact search
GRID = 400_001  # published: points of (0, 1) on which Beta levels are computed


class Pyramid(Alphabet):
    """Unit vectors y / |y| of all y in Z^dim with sum |y_i| = pulses, numbered as in `enumeration`.

    Args:
        dim: l.
        pulses: k; the vocabulary is N(l, k), which grows with both. Above 2^63 it takes several slots: the 32-bit words
            of one number, lowest first, which mean something only together.
        search: "exact" finds the largest cosine over all points; "cosine" adds pulses greedily and is cheaper; "l1" is
            the nearest point after projecting x on the pyramid, as published.

    x counts by its direction alone. For x = 0 the code is that of (pulses, 0, ..., 0).
    """

    def __init__(self, dim: int, pulses: int, *, search: Search = "exact") -> None:
        super().__init__()
        if search not in SEARCHES:
            raise ConfigError(f"search must be one of {sorted(SEARCHES)}, got {search!r}")
        self.enumeration = Enumeration(dim, pulses)
        self.dim, self.pulses, self.search = dim, pulses, search
        self.vocab = self.enumeration.vocab

    def project(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=-1)

    def nearest(self, x: Tensor) -> Tensor:
        if len(self.vocab) > 1 and torch.compiler.is_compiling():
            raise UnavailableError(
                f"encode does not compile above 2^63 points, whose numbers are Python's: this pyramid has "
                f"{self.enumeration.size} points"
            )
        return self.enumeration.codes(nearest_pulses(x, self.pulses, self.search))

    def candidates(self, x: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """The answer of the search, then the nearest others, none of which counts as nearer than that answer.

        Raises:
            InputError: if the codebook has over 2^20 points, for more than one; exact search finds two of any number.
        """
        if self.enumeration.size <= MAX_SPELLED_OUT:
            codes = led_by(self.nearest(x), nearest_k(x, self.codebooks()[0], k)[0])[..., None]
        elif k == 1:
            codes = self.nearest(x)[:, None]
        elif k == 2 and self.search == "exact":
            codes = self.enumeration.codes(two_nearest_pulses(x, self.pulses).flatten(0, 1)).unflatten(0, (len(x), 2))
        else:
            raise InputError(
                f"of the {self.enumeration.size} points of this pyramid, which are not spelled out, "
                f"{'two' if self.search == 'exact' else 'one'} can be found by {self.search!r} search, not {k}"
            )
        costs = squared_distances(x[:, None], self.lookup(codes))
        return codes, costs.cummax(1).values

    def lookup(self, codes: Tensor) -> Tensor:
        dropped = (codes < 0).any(-1, keepdim=True)
        points = self.enumeration.points(codes.clamp(min=0).masked_fill(dropped, 0).flatten(0, -2))
        return directions(points).view(*codes.shape[:-1], self.dim).masked_fill(dropped, 0)

    def slot_vectors(self, codes: Tensor) -> Tensor:
        if len(self.vocab) > 1:
            raise InputError(f"the {len(self.vocab)} slots are words of one number and have no vectors of their own")
        return self.lookup(codes)[..., None, :]

    def codebooks(self) -> list[Tensor]:
        if self.enumeration.size > MAX_SPELLED_OUT:
            raise InputError(f"this codebook is implicit and has {self.enumeration.size} rows: look codes up instead")
        return [directions(self.enumeration.points(torch.arange(self.enumeration.size)[:, None]))]


def directions(pulses: Tensor) -> Tensor:
    """Unit vectors of points, float32."""
    exact = pulses.double()
    return (exact / exact.square().sum(-1, keepdim=True).sqrt()).float()


def least_squares_gain(x: Tensor, pulses: Tensor) -> Tensor:
    """The length along each direction that leaves the least error: <x, y> / |y|, (rows,), float32."""
    y = pulses.double()
    return (folded_sum(x.double() * y) / y.square().sum(-1).sqrt()).float()


def nearest_pulses(x: Tensor, pulses: int, search: Search = "exact") -> Tensor:
    """The point of the pyramid for each row.

    Args:
        x: (rows, dim), floating.
        pulses: k.
        search: as in `Pyramid`.

    Returns:
        (rows, dim), int64. Equal magnitudes: the first dimension gets the pulse.

    Raises:
        InputError: if a number is NaN or infinite.
    """
    refuse_nan(x)
    exact = x.detach().double()
    magnitude = exact.abs()
    largest = magnitude.amax(1, keepdim=True)
    found = SEARCHES[search](magnitude / torch.where(largest > 0, largest, 1), pulses)
    found = torch.where(exact < 0, -found, found)
    first = F.one_hot(torch.zeros_like(found[:, 0]), x.shape[1]) * pulses
    return torch.where(largest > 0, found, first)


def two_nearest_pulses(x: Tensor, pulses: int) -> Tensor:
    """The points of the pyramid with the largest cosine and the second largest.

    Args:
        x: (rows, dim), floating.
        pulses: k.

    Returns:
        (rows, 2, dim), int64; the first as `nearest_pulses` gives it.

    Raises:
        InputError: if a number is NaN or infinite.
    """
    best = nearest_pulses(x, pulses)
    exact = x.detach().double()
    magnitude = exact.abs()
    largest = magnitude.amax(1, keepdim=True)
    scaled, step = magnitude / torch.where(largest > 0, largest, 1), max(1, PAIRS_AT_ONCE // x.shape[1] ** 2)
    pairs = zip(scaled.split(step), best.abs().split(step), strict=True)
    second = torch.cat([_second(each, first, pulses) for each, first in pairs])
    second = torch.where(exact < 0, -second, second)
    return torch.stack([best, torch.where(largest > 0, second, -best)], 1)


def _second(x: Tensor, best: Tensor, pulses: int) -> Tensor:
    """The second best point for magnitudes x, of which `best` is the best.

    As in `_exact`, the second best y minimises |y|² - 2 a <x, y> for a = |y| / cos(y) among all points but the best: at
    this a only points with a larger cosine cost less. If the best does not cost less, y is on the walk, or as good as
    what is. If it does, y is one move of a pulse away from it, because these costs are convex in every coordinate: were
    y two moves away, a move from each towards the other would find a point between that is better than y. And a point
    with a pulse of the wrong sign is worse than with the right one, so it is the best with one coordinate turned.
    """
    dim = x.shape[1]
    x = x / folded_sum(x.square()).sqrt()[:, None].clamp(min=1e-300)
    best = best.double()
    second = _neighbour(x, best)
    cosine, total = _cosines(x, second), folded_sum(x)
    y, rows = _even(x, pulses), torch.arange(len(x), device=x.device)
    while bool(len(rows)):
        here = x[rows]
        score = torch.where((y == best[rows]).all(1), -torch.inf, _cosines(here, y))
        better = score > cosine[rows]
        cosine[rows] = torch.where(better, score, cosine[rows])
        second[rows] = torch.where(better[:, None], y, second[rows])
        alpha, moved = _move(here, y)
        going = alpha <= _last(cosine[rows], total[rows], pulses, dim)
        y, rows = moved[going], rows[going]
    return second.long()


def _neighbour(x: Tensor, y: Tensor) -> Tensor:
    """The best point that is one pulse away from y, or y with one coordinate turned."""
    dim, dot, square = x.shape[1], folded_sum(x * y)[:, None], y.square().sum(1, keepdim=True)
    taken = dot[..., None] - x[:, :, None] + x[:, None, :]
    score = taken / (square[..., None] - 2 * y[:, :, None] + 2 * y[:, None, :] + 2).sqrt()
    apart = ~torch.eye(dim, dtype=torch.bool, device=x.device) & (y > 0)[:, :, None]
    score = torch.where(apart, score, -torch.inf).flatten(1)
    turned = torch.where(y > 0, (dot - 2 * x * y) / square.sqrt(), -torch.inf)
    found = torch.cat([score, turned], 1).argmax(1)
    source, target = F.one_hot(found // dim % dim, dim), F.one_hot(found % dim, dim)
    return torch.where((found < dim * dim)[:, None], y - source + target, y - 2 * target * y)


def _l1(x: Tensor, pulses: int) -> Tensor:
    """Rounding after projection on the pyramid. Pulses too many or too few move where rounding moved most.

    No coordinate is moved twice, because the sum of what rounding moved is the number of pulses to move.
    """
    t = pulses * x / folded_sum(x)[:, None]
    y = t.round()  # half to even
    missing = pulses - y.sum(1, keepdim=True)
    residual = t - y
    up = _places(residual) < missing
    down = _places(torch.where(y > 0, -residual, -torch.inf)) < -missing
    return (y + up.double() - down.double()).long()


def _places(values: Tensor) -> Tensor:
    """Each value's place in its row, largest first, the first of equals first."""
    return values.argsort(dim=1, descending=True, stable=True).argsort(dim=1, stable=True)


def _cosine(x: Tensor, pulses: int) -> Tensor:
    """One pulse after another where it helps the cosine most, unless the projection is already better."""
    y = (pulses * x / folded_sum(x)[:, None]).floor()
    dot, square = folded_sum(x * y)[:, None], y.square().sum(1, keepdim=True)
    for _ in range(min(x.shape[1], pulses)):
        score = (dot + x).square() / (square + 2 * y + 1)
        best = F.one_hot(score.argmax(1), x.shape[1]).double()
        best = torch.where(y.sum(1, keepdim=True) < pulses, best, 0)
        dot = dot + (best * x).sum(1, keepdim=True)
        square = square + (best * (2 * y + 1)).sum(1, keepdim=True)
        y = y + best
    projected = _l1(x, pulses)
    return torch.where((_cosines(x, y) >= _cosines(x, projected.double()))[:, None], y.long(), projected)


def _cosines(x: Tensor, y: Tensor) -> Tensor:
    return folded_sum(x * y) / y.square().sum(1).sqrt()


def _exact(x: Tensor, pulses: int) -> Tensor:
    """The largest cosine over the whole pyramid.

    The best y minimises |y|² - 2 a <x, y> for a = |y| / cos(y), because |y|² - 2 a cos |y| is least at its own length.
    For a given a the minimiser is a choice of the k cheapest pulses; as a grows from 0 it changes by one pulse moving
    to a larger coordinate. So walking through all a visits the best point. The walk starts from equal shares and ends
    where a exceeds what the best cosine so far allows.
    """
    if torch.compiler.is_compiling():
        return _walk(x, pulses, x.shape[1] * pulses)
    step = max(1, PAIRS_AT_ONCE // x.shape[1] ** 2)
    return torch.cat([_walk(chunk, pulses, None) for chunk in x.split(step)])


def _walk(x: Tensor, pulses: int, steps: int | None) -> Tensor:
    """Args: steps: walk so many steps for all rows (compiled programs); None until every row has come to its end."""
    dim = x.shape[1]
    x = x / folded_sum(x.square()).sqrt()[:, None].clamp(min=1e-300)
    even = _even(x, pulses)
    best, cosine = even, _cosines(x, even)
    y, rows = even, torch.arange(x.shape[0], device=x.device)
    total, taken = folded_sum(x), 0
    while (taken < steps) if steps is not None else bool(len(rows)):
        here = x[rows]
        alpha, moved = _move(here, y)
        going = alpha <= _last(cosine[rows], total[rows], pulses, dim)
        y = torch.where(going[:, None], moved, y)
        score = _cosines(here, y)
        better = score > cosine[rows]
        cosine = cosine.index_put((rows,), torch.where(better, score, cosine[rows]))
        best = best.index_put((rows,), torch.where(better[:, None], y, best[rows]))
        taken += 1
        if steps is None:
            y, rows = y[going], rows[going]
    return best.long()


def _even(x: Tensor, pulses: int) -> Tensor:
    """Equal shares, what is left to the largest coordinates: the best point for a = 0, and right after it."""
    dim = x.shape[1]
    return torch.full_like(x, pulses // dim) + (_places(x) < pulses % dim)


def _move(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The least a where another point is as cheap as y, and that point."""
    dim = x.shape[1]
    # A pulse goes from i to j at the a where its costs 2y+1 - 2ax are equal.
    gain = x[:, None, :] - x[:, :, None]
    when = (y[:, None, :] - y[:, :, None] + 1) / torch.where(gain > 0, gain, 1)
    when = torch.where((gain > 0) & (y > 0)[:, :, None], when, torch.inf).flatten(1)
    soonest = when.argmin(1)
    moved = y - F.one_hot(soonest // dim, dim) + F.one_hot(soonest % dim, dim)
    return when.gather(1, soonest[:, None])[:, 0], moved


def _last(cosine: Tensor, total: Tensor, pulses: int, dim: int) -> Tensor:
    """No point with a larger cosine is optimal for a beyond this.

    a = |y| / cos and |y| <= k always; and k = |y| |cos x + sin n|_1 >= |y| (cos |x|_1 - sin sqrt(l)) for some unit n,
    where the right side grows with the cosine once that exceeds 0.71.
    """
    plain = pulses / cosine.clamp(min=1e-300)
    sine = (1 - cosine.square()).clamp(min=0).sqrt()
    reach = cosine.square() * total - cosine * sine * dim**0.5
    sharper = torch.where((cosine > 0.71) & (reach > 0), pulses / reach.clamp(min=1e-300), torch.inf)
    return torch.minimum(plain, sharper) * (1 + 1e-9)


SEARCHES = {"exact": _exact, "cosine": _cosine, "l1": _l1}


def beta_levels(dim: int, groups: int, levels: int) -> Tensor:
    """Levels for the share of a row's energy that one of its groups holds: (levels,), float32, ascending.

    A row of dim * groups numbers whose direction is uniform has shares |group|²/|row|² ~ Beta(dim/2, dim(groups-1)/2).
    These are Lloyd's levels of that law on a grid, from its quantiles, until they move less than 1e-12.

    Raises:
        ConfigError: if a number is not positive.
    """
    if min(dim, groups, levels) < 1:
        raise ConfigError(f"dim, groups and levels must be positive, got {dim}, {groups}, {levels}")
    return torch.ones(levels) if groups == 1 else torch.from_numpy(_beta_levels(dim, groups, levels)).float()


@lru_cache(maxsize=64)
def _beta_levels(dim: int, groups: int, levels: int) -> NDArray[np.float64]:
    share: NDArray[np.float64] = (np.arange(GRID) + 0.5) / GRID
    log_p = (dim / 2 - 1) * np.log(share) + (dim * (groups - 1) / 2 - 1) * np.log1p(-share)
    p = np.exp(log_p - log_p.max())
    mass, moment = (np.concatenate([[0.0], np.cumsum(each)]) for each in (p, p * share))
    edges = np.arange(GRID + 1) / GRID
    found = np.interp((np.arange(levels) + 0.5) / levels, mass / mass[-1], edges)
    for _ in range(100_000):
        cuts = np.concatenate([[0], np.searchsorted(share, (found[1:] + found[:-1]) / 2), [GRID]])
        weight = np.diff(mass[cuts])
        fresh = np.where(weight > 0, np.diff(moment[cuts]) / np.maximum(weight, 1e-300), found)
        change, found = np.abs(fresh - found).max(), fresh
        if change < 1e-12:
            break
    return found
