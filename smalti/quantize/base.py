"""The two contracts of this package: Quantizer (latents <-> codes) and Alphabet (a finite set of vectors).

z (batch, *positions, dim) ──before──► x ──assign──► codes (batch, *positions, slots)
                                                       │ lookup
z_q ◄──after── estimator(x, q) ◄────────────────────── q
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import wraps
from typing import ClassVar, Literal, ParamSpec, Self, TypeVar

import torch
from torch import Tensor, nn

from smalti.errors import InputError, NotFiniteError

OR_TOO_LARGE = "or are too large for float32 where they are projected"  # what a search sees of latents that overflowed
DROPPED = -1  # the code of a masked position or a dropped level; it decodes to zero and exists only in this package

BitOrder = Literal["little", "big"]
P = ParamSpec("P")
R = TypeVar("R")
Noise = Mapping[str, Tensor]


@dataclass(frozen=True)
class Quantized:
    """What a quantizer's forward gives.

    Args:
        z: (batch, *positions, dim): the codes' vectors in value, with the estimator's gradient.
        codes: (batch, *positions, slots), int64; -1 where masked or dropped.
        loss: scalar, the weighted sum of the loss terms.
        terms: the loss terms by name, weighted, with gradient; and, detached, `perplexity` and `utilisation` of this
            batch over all ranks, a value per slot.
    """

    z: Tensor
    codes: Tensor
    loss: Tensor
    terms: dict[str, Tensor] = field(default_factory=dict)


class Quantizer(nn.Module, ABC):
    """Latents to codes and back.

    Attributes:
        dim: last dimension of z.
        vocab: number of values of each slot.
        bit_order: which end of a code's index its first dimension takes ("little": the least significant).
        statistics: names of buffers that training keeps and that decide no code.
        conditional: whether it needs a context.
    """

    dim: int
    vocab: tuple[int, ...]
    bit_order: BitOrder = "little"
    statistics: ClassVar[tuple[str, ...]] = ()
    conditional: bool = False

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Moves between devices; the type stays float32, also where the model around is cast to another."""

        def moved(tensor: Tensor) -> Tensor:
            new = fn(tensor)
            return tensor.to(new.device) if new.dtype != tensor.dtype else new

        return super()._apply(moved, recurse)

    @abstractmethod
    def forward(
        self,
        z: Tensor,
        *,
        mask: Tensor | None = None,
        context: Tensor | None = None,
        noise: Noise | None = None,
    ) -> Quantized:
        """Quantizes with gradients; in training it gathers statistics for `update`.

        Args:
            z: (batch, *positions, dim), any floating type; the arithmetic is float32.
            mask: (batch, *positions), bool, True where a position is real.
            context: (batch, *positions, dim) for conditional codebooks.
            noise: named random draws that replace torch's generator.
        """

    @abstractmethod
    def encode(self, z: Tensor, *, mask: Tensor | None = None, context: Tensor | None = None) -> Tensor:
        """Codes of z: (batch, *positions, slots). Changes no state and draws nothing at random."""

    @abstractmethod
    def decode(self, codes: Tensor, *, context: Tensor | None = None) -> Tensor:
        """Vectors of codes: (batch, *positions, slots) -> (batch, *positions, dim). Code -1 gives zero."""

    @abstractmethod
    def lookup(self, codes: Tensor) -> Tensor:
        """Each slot's own vector, before any shared projection: (..., slots) -> (..., slots, code dim)."""

    @abstractmethod
    def codebooks(self) -> list[Tensor]:
        """The effective table of each slot: (codes, code dim). Implicit ones are spelled out up to 2^20 rows."""

    @abstractmethod
    def candidates(self, z: Tensor, k: int, *, context: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """The k best codes, best first: codes (..., k, slots), values (..., k, dim), costs (..., k).

        Raises:
            InputError: if there are no k codes.
        """

    def members(self) -> Sequence[Quantizer]:
        """The quantizers that it is made of, whose slots it has one after another; none if it is made of none."""
        return ()

    def usage(self) -> Tensor:
        """Share of each slot's codes that training has chosen of late (65,536 positions or more), over all ranks.

        Returns:
            (slots,), or a value for each scale and slot; NaN for vocabularies over 2^20, which are not counted.
        """
        return torch.cat([member.usage() for member in self.members()])

    def encode_with_margin(
        self, z: Tensor, *, mask: Tensor | None = None, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Codes, and how far each was from being another.

        Returns:
            codes as `encode` gives them; and, of the same shape, float32, the cost of the second best code minus that
            of the best (squared distances, mostly). Slots that are chosen together share one margin. Where there is no
            other code, and at masked positions, it is infinite.
        """
        codes = self.encode(z, mask=mask, context=context)
        if mask is not None:  # whatever stands at masked positions, no arithmetic may meet it
            z = z.masked_fill(~mask[..., None], 0)
            context = None if context is None else context.masked_fill(~mask[..., None], 0)
        return codes, self.margin(z, codes, context=context).masked_fill(codes < 0, math.inf)

    @abstractmethod
    def margin(self, z: Tensor, codes: Tensor, *, context: Tensor | None = None) -> Tensor:
        """The margins of codes that `encode` gave for z; of the shape of the codes, float32."""

    def update(self) -> None:
        """Applies what `forward` gathered (moving averages, dead codes); call once per optimizer step."""
        for child in self.children():
            _update(child)


def _update(module: nn.Module) -> None:
    if isinstance(module, Quantizer | Alphabet):
        module.update()
    else:
        for child in module.children():
            _update(child)


class Alphabet(nn.Module, ABC):
    """A finite set of vectors, possibly a product of several (slots).

    Attributes:
        dim: dimension of the vectors that `nearest` compares (all slots side by side).
        vocab: number of values of each slot.
        conditional: whether its vectors depend on a context.
        parts: equal parts of x that are vectors of their own to an estimator.
    """

    dim: int
    vocab: tuple[int, ...]
    bit_order: BitOrder = "little"
    statistics: ClassVar[tuple[str, ...]] = ()
    conditional: bool = False
    parts: int = 1

    def project(self, x: Tensor) -> Tensor:
        """Moves x (..., dim) into the space where distances are measured, differentiably (the identity, mostly)."""
        return x

    def given(self, context: Tensor | None) -> Alphabet:
        """The alphabet under a context (rows, dim); itself unless it is conditional."""
        return self

    @abstractmethod
    def nearest(self, x: Tensor) -> Tensor:
        """Codes (rows, slots) of the nearest vectors of projected x (rows, dim)."""

    def choose(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """`nearest`, with the codes' vectors (rows, dim)."""
        codes = self.nearest(x)
        return codes, self.chosen(codes)

    @abstractmethod
    def candidates(self, x: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """The k nearest of each row, best first: codes (rows, k, slots) and squared distances (rows, k).

        Raises:
            InputError: if there are no k codes.
        """

    @abstractmethod
    def lookup(self, codes: Tensor) -> Tensor:
        """Vectors of codes (..., slots) -> (..., dim), differentiable in the table. -1 gives zero."""

    def chosen(self, codes: Tensor) -> Tensor:
        """`lookup` of codes none of which is -1."""
        return self.lookup(codes)

    @abstractmethod
    def slot_vectors(self, codes: Tensor) -> Tensor:
        """Each slot's own vector: (..., slots) -> (..., slots, dim of a slot)."""

    @abstractmethod
    def codebooks(self) -> list[Tensor]:
        """The effective table of each slot."""

    def start(self, x: Tensor, noise: Noise) -> None:
        """Initialises from the first training batch, x (rows, dim), where the learning rule asks for it."""

    def observe(self, x: Tensor, codes: Tensor, noise: Noise) -> None:
        """Gathers statistics of a training batch: real rows x (rows, dim) and their codes (rows, slots)."""

    def update(self) -> None:
        """Applies what `observe` gathered."""


def as_rows(z: Tensor, dim: int, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Latents as float32 rows, and the mask as a row of flags.

    Raises:
        InputError: if the last dimension is not dim, the mask does not fit, or a real latent is NaN or infinite.
    """
    if z.ndim < 2 or z.shape[-1] != dim or not z.is_floating_point():
        raise InputError(f"latents must be floating, (batch, *positions, {dim}), got {z.dtype} {tuple(z.shape)}")
    # Libraries add up the numbers of a row in another order where they lie apart.
    rows = z.float().reshape(-1, dim).contiguous()
    if mask is None:
        return rows, None
    if mask.shape != z.shape[:-1] or mask.dtype != torch.bool:
        raise InputError(f"mask must be bool {tuple(z.shape[:-1])}, got {mask.dtype} {tuple(mask.shape)}")
    return rows, mask.reshape(-1)


def refuse_nan(x: Tensor) -> None:
    """Raises NotFiniteError if latents, or what a projection made of them, hold NaN or infinity.

    A compiled program can't ask.
    """
    # A sum in float64 takes one pass, and finite float32 numbers can't overflow it.
    if not torch.compiler.is_compiling() and not bool(torch.isfinite(x.sum(dtype=torch.float64))):
        raise NotFiniteError(f"latents hold NaN or infinity, {OR_TOO_LARGE}")


def without_gradient(function: Callable[P, R]) -> Callable[P, R]:
    """torch.no_grad() as a decorator that does nothing where gradients are off already.

    Exported programs are cut at every switch, and can't be saved where nothing stands between two.
    """

    @wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        if not torch.is_grad_enabled():
            return function(*args, **kwargs)
        with torch.no_grad():
            return function(*args, **kwargs)

    return wrapped


def full_precision(device: torch.device) -> AbstractContextManager[object]:
    """No autocast inside, so that arithmetic is float32. Where none is active nothing is entered, or exported."""
    return torch.autocast(device.type, enabled=False) if torch.is_autocast_enabled(device.type) else nullcontext()


def check_codes(codes: Tensor, vocab: tuple[int, ...]) -> None:
    """Raises InputError unless codes are integers of shape (..., slots) in -1..vocab-1."""
    if codes.ndim < 1 or codes.shape[-1] != len(vocab) or codes.dtype != torch.int64:
        raise InputError(f"codes must be int64 (..., {len(vocab)}), got {codes.dtype} {tuple(codes.shape)}")
    if torch.compiler.is_compiling():
        return  # a compiled program makes no choice by value
    last = torch.tensor([size - 1 for size in vocab], device=codes.device)  # 2^63 codes: only the last one is an int64
    wrong = (codes < DROPPED) | (codes > last)
    if bool(wrong.any()):
        place = tuple(int(i) for i in wrong.nonzero()[0])
        raise InputError(f"code {int(codes[place])} at {place} is outside -1..{vocab[place[-1]] - 1}")


def check_candidates(k: int, vocab: Sequence[int]) -> None:
    """Raises InputError unless there are k codes of these vocabularies, one per slot."""
    codes = math.prod(vocab)
    if not 1 <= k <= codes:
        raise InputError(f"k must be in 1..{codes}, the number of codes, got {k}")


def count_codes(codes: Tensor, vocab: int) -> Tensor:
    """How often each code occurs in a vector of codes: (vocab,), float32, without waiting for a GPU."""
    if codes.device.type == "cpu":
        return torch.bincount(codes, minlength=vocab).float()
    return torch.zeros(vocab, device=codes.device).index_add_(0, codes, torch.ones_like(codes, dtype=torch.float32))
