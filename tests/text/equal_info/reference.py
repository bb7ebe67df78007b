"""The sheet's definitions word by word, in Python integers and without regard to speed."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np

EPSILON = 2.0**-23
Weights = Callable[[bytes], Sequence[int]]  # of the next byte, given the bytes of the window


def arithmetic_code(symbols: Sequence[int], weights: Weights, precision: int) -> str:
    """3.1: the terminated code, as a string of digits."""
    low, high, pending, digits = 0, 2**precision - 1, 0, ""
    for place, symbol in enumerate(symbols):
        row = weights(bytes(symbols[:place]))
        p = [weight / sum(row) for weight in row]
        last = 0.0
        for each in p:
            last += each
        p = [(1 - 2 * len(p) * EPSILON) * (each / last) + EPSILON for each in p]
        width, q, total = high - low + 1, [0], 0.0
        for each in p:
            total += each
            q.append(math.floor(total * width))
        assert all(b > a for a, b in pairwise(q)) and q[-1] <= width
        low, high = low + q[symbol], low + q[symbol + 1] - 1
        lows, highs = f"{low:0{precision}b}", f"{high:0{precision}b}"
        while lows[0] == highs[0]:
            digits += lows[0] + ("1" if lows[0] == "0" else "0") * pending
            pending, lows, highs = 0, lows[1:] + "0", highs[1:] + "1"
        while lows[1] == "1" and highs[1] == "0":
            pending, lows, highs = pending + 1, lows[0] + lows[2:] + "0", highs[0] + highs[2:] + "1"
        low, high = int(lows, 2), int(highs, 2)
    return digits + f"{low:0{precision}b}"[0] + "1" * pending


def greedy(text: bytes, weights: Weights, bits: int, precision: int = 32) -> list[tuple[int, int]]:
    """3.2: (word, length) of every window, trying lengths until the code is too long."""
    found = []
    while text:
        n, code, longer = 0, "", arithmetic_code(text[:1], weights, precision)
        while len(longer) <= bits and n < len(text):
            n, code = n + 1, longer
            longer = arithmetic_code(text[: n + 1], weights, precision)
        found.append((int(code.ljust(bits, "0"), 2), n))
        text = text[n:]
    return found


def exact(text: bytes, weights: Weights, bits: int) -> list[tuple[int, int]]:
    """3.3: (word, length) of every window."""
    found, start = [], 0
    while start < len(text):
        low, n, k = 0, 2**bits, 0
        while start + k < len(text) and n > 1:
            ends = shares(weights(text[start : start + k]), n, k)
            s = text[start + k]
            if ends[s + 1] == ends[s]:
                break
            low, n, k = low + 1 + ends[s], ends[s + 1] - ends[s], k + 1
        found.append((low, k))
        start += k
    return found


def text_of(word: int, weights: Weights, bits: int) -> bytes:
    """3.3: the bytes of a word."""
    low, n, window = 0, 2**bits, b""
    while word != low:
        ends = shares(weights(window), n, len(window))
        s = next(j for j in range(256) if ends[j] <= word - low - 1 < ends[j + 1])
        low, n, window = low + 1 + ends[s], ends[s + 1] - ends[s], window + bytes([s])
    return window


def shares(row: Sequence[int], n: int, k: int) -> list[int]:
    """g(0) .. g(256)."""
    a, total, below, ends = n - 1, sum(row), 0, []
    for j in range(257):
        ends.append(j + (a - 256) * below // total if k == 0 else a * below // total)
        below += row[j] if j < 256 else 0
    return ends


def witten_bell(samples: Sequence[bytes], order: int, longest: int) -> Weights:
    """Counts with back-off in 30-bit fixed point, from dictionaries."""
    followed: dict[bytes, Counter[int]] = defaultdict(Counter)
    for sample in samples:
        for place, byte in enumerate(sample):
            for length in range(min(order, place) + 1):
                followed[sample[place - length : place]][byte] += 1

    def weights(window: bytes) -> list[int]:
        if len(window) >= longest:
            return [1] * 256
        row = [2**30 // 256] * 256
        for length in range(min(order, len(window)) + 1):
            counts = followed.get(window[len(window) - length :])
            if counts is None:
                break
            total = sum(counts.values()) + len(counts)
            keep = len(counts) * 2**31 // total
            row = [value * min(keep, 2**31 - 1) // 2**31 for value in row]
            for byte, count in counts.items():
                row[byte] += count * 2**30 // total
        return [max(1, value // 2**10) for value in row]

    return weights


def order1(counts: np.ndarray) -> Weights:
    """The golden cases' model: column sums first, then the row of the previous byte."""
    rows, columns = counts.tolist(), counts.sum(0).tolist()
    return lambda window: rows[window[-1]] if window else columns
