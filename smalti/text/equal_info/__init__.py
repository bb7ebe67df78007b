"""equal-info: windows of text that compress to equally many bits."""

from __future__ import annotations

from smalti.errors import require

require("numba", "text")  # the kernels below need it; without it this says which extra brings it

from smalti.text.equal_info.coder import ArithmeticTokens, decode_bits, encode_bits  # noqa: E402
from smalti.text.equal_info.counts import CountModel  # noqa: E402
from smalti.text.equal_info.model import Cursor, NextByte  # noqa: E402
from smalti.text.equal_info.neural import ByteTransformer, NeuralModel, Training  # noqa: E402
from smalti.text.equal_info.table import Table  # noqa: E402
from smalti.text.equal_info.tokenizer import Counts, EqualInfoTokenizer, Fixed, Neural  # noqa: E402
from smalti.text.equal_info.windows import decode_windows, encode_windows, greedy_windows  # noqa: E402

__all__ = [
    "ArithmeticTokens",
    "ByteTransformer",
    "CountModel",
    "Counts",
    "Cursor",
    "EqualInfoTokenizer",
    "Fixed",
    "Neural",
    "NeuralModel",
    "NextByte",
    "Table",
    "Training",
    "decode_bits",
    "decode_windows",
    "encode_bits",
    "encode_windows",
    "greedy_windows",
]
