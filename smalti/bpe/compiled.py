"""How kernels are compiled: by numba, once for a machine, kept in its cache, and announced when it takes a while.

numba's cache looks at a function's own file only. Kernels call kernels of other files, so what is kept of a folder is
dropped when any file of it, or of this one, has changed.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from numba import njit
from numba.core import event

KEPT = ("*.nbi", "*.nbc")
STAMP = "kernels.sha256"
HERE = Path(__file__).parent


def kernel(function: Callable[..., Any]) -> Callable[..., Any]:
    """A compiled function that holds no lock of the interpreter."""
    refresh(Path(function.__code__.co_filename).parent)
    return njit(cache=True, nogil=True)(function)


def inlined(function: Callable[..., Any]) -> Callable[..., Any]:
    """A compiled function that becomes a part of its callers: a call costs more than most of these do."""
    refresh(Path(function.__code__.co_filename).parent)
    return njit(cache=True, inline="always")(function)


@cache
def refresh(folder: Path) -> None:
    """Drops compiled kernels of a folder's files if one that they may call is not what it was."""
    sources = sorted({*folder.glob("*.py"), *HERE.glob("*.py")})
    digest = hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()
    kept = folder / "__pycache__"
    stamp = kept / STAMP
    try:
        if stamp.is_file() and stamp.read_text() == digest:
            return
        kept.mkdir(exist_ok=True)
        for pattern in KEPT:
            for file in kept.glob(pattern):
                file.unlink(missing_ok=True)
        stamp.write_text(digest)
    except OSError:  # a read-only installation: its files do not change, and numba keeps kernels elsewhere
        return


class _Announcer(event.Listener):
    """Says once that kernels are compiled, because the first run waits for it."""

    def __init__(self) -> None:
        self.said = False

    def on_start(self, event: event.Event) -> None:
        ours = "smalti" in str(getattr(event.data.get("dispatcher"), "__module__", ""))
        if ours and not self.said:
            self.said = True
            logging.getLogger("smalti").warning("compiling kernels for this machine; this is done once")

    def on_end(self, event: event.Event) -> None:
        return


event.register("numba:compile", _Announcer())
