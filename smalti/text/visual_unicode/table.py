"""Frozen embeddings: a fixed vector for every token, instead of a trained one.

    bits (V, pixels) ──centre, principal components──► (V, n) ──rows to length 1──► visual table
    ids  (V,)        ──binary digits──────────────────► (V, n) ──rows to length 1──► binary code
    seed             ──normal numbers─────────────────► (V, n) ──rows to length 1──► random table

With as many components as pixels, the visual table is the centred pictures turned as a whole.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from smalti.errors import ConfigError, InputError
from smalti.text.visual_unicode.glyphs import ByteArray, GlyphPainter

CHUNK = 1 << 13  # rows at once


@dataclass(frozen=True, eq=False)
class FrozenTable:
    """Vectors of all tokens.

    Args:
        weight: (tokens, dim), float32, rows of length 1.
        fingerprint: SHA-256 over what it was made from, by which a table that was made again is known. That of a visual
            table is over its bits, so it does not depend on how a linear algebra library rounds.
    """

    weight: Tensor
    fingerprint: str

    def __len__(self) -> int:
        return len(self.weight)

    @property
    def dim(self) -> int:
        return self.weight.shape[1]


@dataclass(frozen=True, eq=False)
class PrincipalComponents:
    """What was found in a matrix of bits.

    Args:
        mean: (pixels,).
        components: (components, pixels), orthonormal rows, by falling variance. The entry of a row that is largest in
            magnitude is positive.
        variance: (components,), of the scores, with N - 1 in the denominator.
        scores: (rows, components).
    """

    mean: Tensor
    components: Tensor
    variance: Tensor
    scores: Tensor


def visual_table(tokens: Iterable[str], painter: GlyphPainter, components: int) -> FrozenTable:
    """Draws all tokens and gives their table.

    Args:
        tokens: the string of every id.
        painter: how they are drawn.
        components: dim of the table.

    Raises:
        ConfigError: if there are fewer pixels or tokens than components.
    """
    return table_of_bits(painter.bits(tokens), components)


def table_of_bits(bits: ByteArray, components: int) -> FrozenTable:
    """The visual table of bits (tokens, pixels)."""
    found = principal_components(bits, components)
    return FrozenTable(unit_rows(found.scores).float(), _fingerprint("visual", components, np.packbits(bits, axis=1)))


def binary_code_table(tokens: int, dim: int | None = None) -> FrozenTable:
    """The binary digits of every id, as -1 and 1, the lowest first; by default as many as are needed.

    Raises:
        ConfigError: if there are too few digits for all ids.
    """
    needed = max(1, (tokens - 1).bit_length())
    dim = needed if dim is None else dim
    if dim < needed:
        raise ConfigError(f"{tokens} ids need {needed} binary digits, got {dim}")
    digits = (torch.arange(tokens)[:, None] >> torch.arange(dim)) & 1
    return FrozenTable(unit_rows(2.0 * digits - 1), _fingerprint("binary", tokens, dim))


def random_table(tokens: int, dim: int, seed: int = 0) -> FrozenTable:
    """Normal random numbers."""
    draw = torch.Generator().manual_seed(seed)
    return given_table(unit_rows(torch.randn(tokens, dim, generator=draw)))


def given_table(weight: Tensor) -> FrozenTable:
    """A table that was made elsewhere, such as a published one; its fingerprint is over its numbers.

    Raises:
        InputError: if it is no table of finite numbers.
    """
    if weight.ndim != 2 or not weight.is_floating_point() or not bool(torch.isfinite(weight).all()):
        raise InputError(f"a table is (tokens, dim), finite, got {weight.dtype} {tuple(weight.shape)}")
    weight = weight.detach().float().cpu().contiguous()
    return FrozenTable(weight, _fingerprint("given", *weight.shape, weight.numpy()))


def unit_rows(rows: Tensor) -> Tensor:
    """Rows divided by their lengths; rows of zeros stay."""
    lengths = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    return rows / torch.where(lengths > 0, lengths, 1.0)


def principal_components(bits: ByteArray, components: int) -> PrincipalComponents:
    """Principal components of bits, from their covariance.

    How often two pixels are ink together are whole numbers, so the covariance is exact up to its last bit; the
    components are its eigenvectors in float64.

    Args:
        bits: (rows, pixels), 0 or 1.
        components: how many are kept.

    Raises:
        ConfigError: if there are fewer rows or pixels.
    """
    rows, pixels = bits.shape
    if not 1 <= components <= min(rows, pixels):
        raise ConfigError(f"{components} components of {rows} rows and {pixels} pixels: at most {min(rows, pixels)}")
    together = torch.zeros(pixels, pixels, dtype=torch.float64)
    for start in range(0, rows, CHUNK):
        part = torch.from_numpy(bits[start : start + CHUNK]).float()
        together += part.T @ part  # exact: counts below 2^24
    counts = together.diagonal().clone()
    covariance = (together - torch.outer(counts, counts) / rows) / max(1, rows - 1)
    values, vectors = torch.linalg.eigh(covariance)
    vectors, variance = vectors.flip(1)[:, :components], values.flip(0)[:components].clamp(min=0)
    largest = vectors.abs().argmax(dim=0)
    vectors = vectors * torch.sign(vectors[largest, torch.arange(components)])
    mean = counts / rows
    scores = torch.empty(rows, components, dtype=torch.float32)
    offset = mean @ vectors
    for start in range(0, rows, CHUNK):
        part = torch.from_numpy(bits[start : start + CHUNK]).double()
        scores[start : start + CHUNK] = (part @ vectors - offset).float()
    return PrincipalComponents(mean.float(), vectors.T.float(), variance.float(), scores)


def _fingerprint(kind: str, *parts: Any) -> str:
    digest = hashlib.sha256(kind.encode())
    for part in parts:
        if isinstance(part, np.ndarray):
            digest.update(f"{part.shape}{part.dtype}".encode())
            digest.update(np.ascontiguousarray(part).tobytes())
        else:
            digest.update(f" {part}".encode())
    return digest.hexdigest()
