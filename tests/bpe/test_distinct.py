"""Different pieces, against counting them one by one."""

from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from smalti.bpe.distinct import SHORT, distinct

PIECE = st.binary(max_size=2) | st.text("a\0", min_size=SHORT - 1, max_size=SHORT + 3).map(str.encode)


@settings(deadline=None)
@given(st.lists(PIECE, max_size=80))
def test_equal_pieces_are_counted_once(parts: list[bytes]) -> None:
    ends = np.cumsum([len(part) for part in parts]).astype(np.int64)
    pieces, counts = distinct(np.frombuffer(b"".join(parts), np.uint8), ends)
    assert list(zip(map(bytes, pieces.views()), counts.tolist(), strict=True)) == list(Counter(parts).items())


def test_many_different_pieces_are_counted() -> None:
    values = np.random.default_rng(0).integers(0, 70_000, 200_000)
    data = np.stack([values >> 16, values >> 8, values], axis=1).astype(np.uint8).reshape(-1)
    pieces, counts = distinct(data, np.arange(3, 3 * len(values) + 1, 3))
    assert dict(zip(map(bytes, pieces.views()), counts.tolist(), strict=True)) == {
        int(value).to_bytes(3, "big"): count for value, count in Counter(values.tolist()).items()
    }
