"""Which codes a vector gets. The best sum is a hard problem: every pair of codebooks interacts.

Ordered      codebook after codebook, the best H partial sums kept; H = 1 is residual quantization
Beam         partial sums over any subset of the codebooks, in any order (Babenko and Lempitsky)
LocalSearch  from another's codes: change some at random, settle each in turn, keep what is better (LSQ)
Exhaustive   all K^M sums
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import torch
from torch import Tensor

from smalti.errors import ConfigError
from smalti.quantize.additive.energy import Energy, add_up
from smalti.quantize.base import check_candidates, refuse_nan
from smalti.quantize.neighbours import nearest, nearest_k, squared_distances

# Rows are counted by `x.shape[0]` here: `len(x)` would fix their number while tracing.

HELD = 2**22  # float64 numbers of one step
MOST_SUMS = 10**6


class Encoder(ABC):
    """A search for codes. Its answer for a row depends on that row and the codebooks alone."""

    @abstractmethod
    def best(self, x: Tensor, codebooks: Tensor, k: int = 1) -> tuple[Tensor, Tensor]:
        """The k best codes found for each row, best first.

        Args:
            x: (rows, d), float32.
            codebooks: (M, K, d), float32.
            k: how many.

        Returns:
            codes (rows, k, M), int64, and squared distances (rows, k), float64.

        Raises:
            InputError: if there are fewer than k sums, or a number is NaN or infinite.
        """

    def encode(self, x: Tensor, codebooks: Tensor, start: Tensor | None = None) -> Tensor:
        """Codes (rows, M); `start` (rows, M) may be used as a first guess."""
        return self.best(x, codebooks)[0][:, 0]


@dataclass(frozen=True)
class Ordered(Encoder):
    """Beam search in the order of the codebooks.

    Args:
        width: H, partial sums kept.
    """

    width: int = 4

    def __post_init__(self) -> None:
        _check_width(self.width)

    def best(self, x: Tensor, codebooks: Tensor, k: int = 1) -> tuple[Tensor, Tensor]:
        _check(x, codebooks, k)
        width = max(self.width, k)
        numbers = width * max(codebooks.shape[2], min(width, codebooks.shape[1]))
        found = [self._search(chunk, codebooks, width, k) for chunk in _chunks(x, numbers)]
        return torch.cat([codes for codes, _ in found]), torch.cat([costs for _, costs in found])

    def _search(self, x: Tensor, codebooks: Tensor, width: int, k: int) -> tuple[Tensor, Tensor]:
        residual = x[:, None]
        codes = torch.zeros(x.shape[0], 1, 0, dtype=torch.int64, device=x.device)
        for table in codebooks:
            options = min(width, len(table))
            found, costs = _options(residual.flatten(0, 1), table, options)
            ends = (x.shape[0], residual.shape[1] * options)
            order = costs.view(ends).argsort(dim=1, stable=True)[:, :width]
            parent, step = order // options, found.view(ends).gather(1, order)
            residual = _pick(residual, parent) - table[step]
            codes = torch.cat([_pick(codes, parent), step[..., None]], -1)
        return _ranked(x, codes, None, codebooks, k)


@dataclass(frozen=True)
class Beam(Encoder):
    """Beam search over partial sums in any order of the codebooks, each set of codewords held once.

    Args:
        width: H, partial sums kept; 16 in training and 64 for final codes, as published.
    """

    width: int = 16

    def __post_init__(self) -> None:
        _check_width(self.width)

    def best(self, x: Tensor, codebooks: Tensor, k: int = 1) -> tuple[Tensor, Tensor]:
        _check(x, codebooks, k)
        width = max(self.width, k)
        energy = Energy.of(codebooks)
        words = codebooks.shape[0] * codebooks.shape[1]
        chunks = _chunks(x, width * max(words, min(width, words), codebooks.shape[2]))
        found = [_ranked(chunk, *_beam(energy, chunk, width), codebooks, k) for chunk in chunks]
        return torch.cat([codes for codes, _ in found]), torch.cat([costs for _, costs in found])


def _beam(energy: Energy, x: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Codes (rows, beams, M), and which beams are real: fewer sets than beams leave some that are not."""
    singles = energy.singles(x)
    rows, levels, size = singles.shape
    marks = _marks(levels, size, x.device)
    added = singles[:, None]  # what each codeword would add to a beam's cost; infinite once its codebook is used
    cost = torch.zeros(rows, 1, dtype=torch.float64, device=x.device)
    key = torch.zeros(rows, 1, dtype=torch.int64, device=x.device)
    codes = torch.zeros(rows, 1, levels, dtype=torch.int64, device=x.device)
    for _ in range(levels):
        ends = cost[..., None] + added.flatten(2)
        kept = min(width, levels * size)
        top = ends.topk(kept, dim=2, largest=False)
        word = top.indices.flatten(1)
        keys = (key[..., None] + marks[top.indices]).flatten(1)
        costs = torch.where(_repeated(keys), torch.inf, top.values.flatten(1))
        order = costs.argsort(dim=1, stable=True)[:, :width]
        parent, word = order // kept, word.gather(1, order)
        cost, key = costs.gather(1, order), keys.gather(1, order)
        level, code = word // size, word % size
        codes = _pick(codes, parent).scatter(2, level[..., None], code[..., None])
        added = _pick(added.flatten(2), parent).unflatten(2, (levels, size)) + energy.pairs[level, code]
        used = torch.zeros(*level.shape, levels, dtype=torch.bool, device=x.device).scatter(2, level[..., None], True)
        added = added.masked_fill(used[..., None], torch.inf)
    return codes, torch.isfinite(cost)


def _marks(levels: int, size: int, device: torch.device) -> Tensor:
    """A 64-bit number for each codeword: a set's sum of them tells it from other sets, in whatever order.

    Mixed by arithmetic (SplitMix64), because tracing refuses generators.
    """
    mixed = torch.arange(1, levels * size + 1, device=device) * -7046029254386353131
    for shift, factor in ((30, -4658895280553007687), (27, -7723592293110705685)):
        mixed = (mixed ^ ((mixed >> shift) & (2 ** (64 - shift) - 1))) * factor
    return mixed ^ ((mixed >> 31) & (2**33 - 1))


def _repeated(keys: Tensor) -> Tensor:
    """Which keys of a row occur earlier in it."""
    order = keys.argsort(dim=1, stable=True)
    ordered = keys.gather(1, order)
    same = torch.cat([torch.zeros_like(ordered[:, :1], dtype=torch.bool), ordered[:, 1:] == ordered[:, :-1]], 1)
    return torch.zeros_like(same).scatter(1, order, same)


@dataclass(frozen=True)
class LocalSearch(Encoder):
    """Iterated conditional modes: codes are changed at random, settled one after another, and kept if that is better.

    The changes are the same for all rows, so that a row's codes do not depend on its batch.

    Args:
        rounds: how often codes are changed; 8 in training and 32 for final codes, as published.
        sweeps: how often every code is settled after that.
        changed: how many codes are changed.
        first: finds the codes that the search starts from.
        seed: of the changes.
    """

    rounds: int = 8
    sweeps: int = 4
    changed: int = 4
    first: Encoder = field(default_factory=lambda: Ordered(1))
    seed: int = 0

    def best(self, x: Tensor, codebooks: Tensor, k: int = 1) -> tuple[Tensor, Tensor]:
        if k == 1:
            codes = self.encode(x, codebooks)
            return codes[:, None], squared_distances(x, add_up(codes, codebooks))[:, None]
        # Different starts may end at the same codes: the starts themselves, which differ, fill the gaps.
        starts, _ = self.first.best(x, codebooks, k)
        rows = x[:, None].expand(-1, k, -1).flatten(0, 1)
        settled = self.encode(rows, codebooks, starts.flatten(0, 1)).view_as(starts)
        both = torch.cat([settled, starts], 1)
        same = (both[:, :, None] == both[:, None]).all(-1).tril(-1).any(-1)
        return _ranked(x, both, ~same, codebooks, k)

    @torch.no_grad()
    def encode(self, x: Tensor, codebooks: Tensor, start: Tensor | None = None) -> Tensor:
        _check(x, codebooks, 1)
        codes = self.first.encode(x, codebooks) if start is None else start
        energy = Energy.of(codebooks)
        numbers = 2 * max(codebooks.shape[0] * codebooks.shape[1], codebooks.shape[2])
        pieces = zip(_chunks(x, numbers), _chunks(codes, numbers), strict=True)
        return torch.cat([self._settle(energy, rows, codebooks, piece) for rows, piece in pieces])

    def _settle(self, energy: Energy, x: Tensor, codebooks: Tensor, codes: Tensor) -> Tensor:
        levels, size = energy.squares.shape
        draw = _Draws(self.seed)
        singles = energy.singles(x)
        cost = squared_distances(x, add_up(codes, codebooks))
        for _ in range(self.rounds):
            columns = list(codes.unbind(1))
            for level in draw.order(levels)[: self.changed]:
                columns[level] = torch.full_like(columns[level], draw.below(size))
            for _ in range(self.sweeps):
                for level in draw.order(levels):
                    columns[level] = _settled(energy, singles, columns, level)
            trial = torch.stack(columns, 1)
            changed = squared_distances(x, add_up(trial, codebooks))
            better = changed < cost
            codes, cost = torch.where(better[:, None], trial, codes), torch.where(better, changed, cost)
        return codes


def _settled(energy: Energy, singles: Tensor, columns: list[Tensor], level: int) -> Tensor:
    """The best code of one level, given those of the others."""
    cost = singles[:, level]
    for other, codes in enumerate(columns):
        if other != level:
            cost = cost + energy.pairs[other, codes, level]
    return cost.argmin(1)


class _Draws:
    """Random whole numbers that tracing takes for constants, which those of torch's generators are not."""

    def __init__(self, seed: int) -> None:
        self.state = (seed * 69621 + 12345) % (2**31 - 2) + 1
        self.below(2)

    def below(self, top: int) -> int:
        self.state = self.state * 48271 % (2**31 - 1)
        return self.state % top

    def order(self, count: int) -> list[int]:
        places = list(range(count))
        for last in range(count - 1, 0, -1):
            other = self.below(last + 1)
            places[last], places[other] = places[other], places[last]
        return places


@dataclass(frozen=True)
class Exhaustive(Encoder):
    """The best of all sums, of which there may be a million."""

    def best(self, x: Tensor, codebooks: Tensor, k: int = 1) -> tuple[Tensor, Tensor]:
        _check(x, codebooks, k)
        levels, size, dim = codebooks.shape
        if size**levels > MOST_SUMS:
            raise ConfigError(f"{size}^{levels} sums are too many to try: use Beam or LocalSearch")
        sums = codebooks[0]
        for table in codebooks[1:]:
            sums = (sums[:, None] + table).reshape(-1, dim)
        index, costs = nearest_k(x, sums, k)
        places = size ** torch.arange(levels - 1, -1, -1, device=x.device)
        return index[..., None] // places % size, costs


def _chunks(rows: Tensor, numbers: int) -> tuple[Tensor, ...]:
    """Rows in parts, of which each takes `numbers` numbers a row; a compiled program has no loop over rows."""
    return (rows,) if torch.compiler.is_compiling() else rows.split(max(1, HELD // numbers))


def _check_width(width: int) -> None:
    if width < 1:
        raise ConfigError(f"a beam keeps at least one partial sum, got {width}")


def _check(x: Tensor, codebooks: Tensor, k: int) -> None:
    if torch.compiler.is_compiling():
        return
    levels, size, _ = codebooks.shape
    check_candidates(k, (size,) * levels)
    refuse_nan(x)


def _options(rows: Tensor, table: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The nearest rows of a table, (rows, count), and their squared distances."""
    if count == 1:
        found = nearest(rows, table)[:, None]
    elif not torch.compiler.is_compiling():
        return nearest_k(rows, table, count)
    else:
        exact = table.double()
        scores = rows.double() @ exact.t() - exact.square().sum(1) / 2
        found = scores.topk(count, dim=1).indices.sort(dim=1).values
    costs = squared_distances(rows[:, None], table[found])
    order = costs.argsort(dim=1, stable=True)
    return found.gather(1, order), costs.gather(1, order)


def _ranked(x: Tensor, codes: Tensor, real: Tensor | None, codebooks: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k best of codes (rows, beams, M), measured exactly; beams that are not real come last."""
    costs = squared_distances(x[:, None], add_up(codes, codebooks))
    if real is not None:
        costs = torch.where(real, costs, torch.inf)
    order = costs.argsort(dim=1, stable=True)[:, :k]
    return _pick(codes, order), costs.gather(1, order)


def _pick(values: Tensor, order: Tensor) -> Tensor:
    """values (rows, n, d) at order (rows, k): (rows, k, d)."""
    return values.gather(1, order[..., None].expand(*order.shape, values.shape[-1]))
