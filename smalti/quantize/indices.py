"""One index for several codes, and the two orders of its digits.

    codes (3, 1) of slots with 5 and 4 values  ◄──►  index 3 + 5 * 1 = 8         join_codes, split_codes
    bits (b0 b1 b2):   little  b0 + 2 b1 + 4 b2  ◄──►  big  4 b0 + 2 b1 + b2      reverse_digits

Little-endian (the first dimension is the fastest digit): FSQ, Open-MAGVIT2, WeTok. Big-endian: BSQ and
vector-quantize-pytorch's LFQ. A code of a masked position, -1, stays -1.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from math import prod

import torch
from torch import Tensor

from smalti.errors import ConfigError
from smalti.quantize.base import DROPPED, BitOrder, check_codes
from smalti.tokens import MAX_VOCAB


def strides(levels: Sequence[int], order: BitOrder = "little") -> list[int]:
    """What a step of each digit adds to the index.

    Raises:
        ConfigError: if there are more indices than 63 bits hold.
    """
    if prod(levels) > MAX_VOCAB:
        raise ConfigError(f"a slot holds at most 63 bits, {tuple(levels)} has {prod(levels)} codes: use groups")
    digits = list(levels) if order == "little" else list(levels)[::-1]
    steps = list(accumulate(digits[:-1], lambda step, level: step * level, initial=1))
    return steps if order == "little" else steps[::-1]


def join_codes(codes: Tensor, vocab: Sequence[int], order: BitOrder = "little") -> Tensor:
    """One index for all slots: (..., slots) -> (...). Where a slot is -1, so is the index.

    Raises:
        InputError: if a code is outside its vocabulary.
        ConfigError: if the index would need more than 63 bits.
    """
    check_codes(codes, tuple(vocab))
    index = (codes * torch.tensor(strides(vocab, order), device=codes.device)).sum(-1)
    return index.masked_fill((codes < 0).any(-1), DROPPED)


def split_codes(index: Tensor, vocab: Sequence[int], order: BitOrder = "little") -> Tensor:
    """The slots of joined indices: (...) -> (..., slots).

    Raises:
        InputError: if an index is outside the joint vocabulary.
    """
    steps = torch.tensor(strides(vocab, order), device=index.device)
    check_codes(index[..., None], (prod(vocab),))
    codes = index[..., None] // steps % torch.tensor(list(vocab), device=index.device)
    return codes.masked_fill((index < 0)[..., None], DROPPED)


def reverse_digits(index: Tensor, levels: Sequence[int], order: BitOrder) -> Tensor:
    """Indices in `order` as indices in the other order, for any levels; for bits, `levels` is (2,) * bits.

    Raises:
        InputError: if an index is outside the vocabulary.
    """
    other: BitOrder = "big" if order == "little" else "little"
    return join_codes(split_codes(index, levels, order), levels, other)
