"""The Leech lattice's 196 560 minimal vectors, as a fixed codebook on the unit sphere of 24 dimensions (17.6 bits).

No two directions are closer than 60 degrees, and no other 196 560 points of the sphere keep such a distance: the
densest codebook of its size, with nothing to learn and nothing to collapse.

In the coordinates where vectors have squared length 32, for the 4096 words of the binary Golay code:

    (±2^8, 0^16)      signs on an octad (a word of weight 8), an even number of them negative      759 * 2^7 =  97 152
    (∓3, ±1^23)       all ones, one of them -3, then the signs of a word turned                   24 * 4096 =  98 304
    (±4^2, 0^22)      any two places, any signs                                                                 1 104

Sources: "Sphere Packings, Lattices and Groups" (Conway and Sloane), chapter 4; "Spherical Leech Quantization for Visual
Tokenization and Generation" (arXiv 2512.14697). Their file's order of rows is not published with the paper; the order
here is our own.
"""

from __future__ import annotations

from itertools import combinations, product

import torch
from torch import Tensor

SQUARED_LENGTH = 32


def golay_words() -> Tensor:
    """The extended binary Golay code: (4096, 24), int64 of 0 and 1, in the order of the 12 message bits.

    It is the extended quadratic residue code of 23: the residues' indicator and its shifts span it.
    """
    residues = sorted({i * i % 23 for i in range(1, 23)})
    circulant = torch.zeros(23, 24, dtype=torch.int64)
    for shift in range(23):
        for residue in residues:
            circulant[shift, (residue + shift) % 23] = 1
        circulant[shift, 23] = len(residues) % 2
    basis = _independent_rows(circulant)
    messages = torch.tensor(list(product((0, 1), repeat=12)))
    return messages @ basis % 2


def _independent_rows(rows: Tensor) -> Tensor:
    """A basis over GF(2) of what rows span, in reduced form."""
    left = rows.clone()
    basis: list[Tensor] = []
    for column in range(rows.shape[1]):
        pivots = left[:, column].nonzero()[:, 0]
        if len(pivots) == 0:
            continue
        pivot = left[pivots[0]].clone()
        left = torch.where(left[:, column, None] == 1, left ^ pivot, left)
        basis = [row ^ pivot if row[column] else row for row in basis] + [pivot]
    return torch.stack(basis)


def leech_vectors() -> Tensor:
    """All minimal vectors, of squared length 32: (196560, 24), int8."""
    words = golay_words()
    octads = words[words.sum(1) == 8]
    signs = torch.tensor([s for s in product((1, -1), repeat=8) if s.count(-1) % 2 == 0])
    twos = torch.zeros(len(octads), len(signs), 24, dtype=torch.int64)
    places = octads.nonzero()[:, 1].view(-1, 1, 8).expand(-1, len(signs), -1)
    twos.scatter_(2, places, (2 * signs).expand(len(octads), -1, -1))

    threes = torch.ones(24, 24, dtype=torch.int64) - 4 * torch.eye(24, dtype=torch.int64)
    threes = (1 - 2 * words[:, None]) * threes

    fours = torch.zeros(1104, 24, dtype=torch.int64)
    for row, ((i, j), (a, b)) in enumerate(product(combinations(range(24), 2), product((4, -4), repeat=2))):
        fours[row, i], fours[row, j] = a, b
    return torch.cat([twos.flatten(0, 1), threes.flatten(0, 1), fours]).to(torch.int8)


def leech_codebook() -> Tensor:
    """The minimal vectors at length 1: (196560, 24), float32."""
    return (leech_vectors().double() / SQUARED_LENGTH**0.5).float()
