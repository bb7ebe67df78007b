"""Texts that tests share: words of a small language, and bytes that are nothing of the kind."""

from __future__ import annotations

import numpy as np

WORDS = "the of and window information table is a code every byte that model equal small large it was"


def prose(size: int, seed: int = 0) -> bytes:
    """Sentences of a language of 18 words."""
    draw, names = np.random.default_rng(seed), WORDS.split()
    words = [names[int(i)] for i in draw.zipf(1.5, size // 3) % len(names)]
    return ". ".join(" ".join(words[i : i + 9]) for i in range(0, len(words), 9)).encode()[:size]


def noise(size: int, seed: int = 0) -> bytes:
    return np.random.default_rng(seed).bytes(size)


AWKWARD = (b"", b"\0", b"a", b"\xff\xfe\x80", bytes(range(256)), b"\0" * 3000, b"a" * 3000, noise(700), prose(1500))
