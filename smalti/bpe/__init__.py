"""Byte pair encoding over integers: a trainer, and an encoder that takes linear time.

    segments ──train──► Merges ──Encoder──► tokens of any sequence of symbols

Text, executables and speech units use it; it knows none of them.
"""

from __future__ import annotations

from smalti.errors import require

require("numba", "text")

from smalti.bpe.corpus import Pieces  # noqa: E402
from smalti.bpe.encoder import Encoder  # noqa: E402
from smalti.bpe.trainer import Trained, Training, train  # noqa: E402
from smalti.bpe.vocabulary import Merges, Strings  # noqa: E402

__all__ = ["Encoder", "Merges", "Pieces", "Strings", "Trained", "Training", "train"]
