"""Where decoded files go: named after ids, all different, and never outside their folder."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from smalti.errors import InputError

LONGEST_NAME = 255  # bytes, of most file systems
SPARE = 20  # writing pictures and sounds needs a longer name for a moment


def output_names(ids: Sequence[str], suffix: str) -> dict[str, str]:
    """A file name per id, all different: the id with its suffix replaced, or kept where two would meet.

    Escaping can make a name longer than file systems allow; its end then becomes a hash of it.
    """
    kept = {name: name + suffix for name in ids}
    replaced = {name: str(Path(name).with_suffix(suffix)) for name in ids if Path(name).suffix}
    counts = Counter(replaced.values())
    free = {place for place, count in counts.items() if count == 1} - set(kept.values())
    return {
        name: _shortened(replaced[name] if replaced.get(name) in free else kept[name], suffix, LONGEST_NAME - SPARE)
        for name in ids
    }


def own_names(ids: Sequence[str]) -> dict[str, str]:
    """The ids themselves; the end of one that escaping made too long becomes a hash of it."""
    return {name: _shortened(name, "", LONGEST_NAME) for name in ids}


def _shortened(name: str, suffix: str, longest: int) -> str:
    folder, _, last = name.rpartition("/")
    if len(last.encode()) > longest:
        digest = hashlib.sha256(last.encode()).hexdigest()[:16]
        last = last.encode()[: longest - 40].decode("utf-8", "ignore") + f"~{digest}{suffix}"
    return f"{folder}/{last}" if folder else last


def inside(folder: Path, name: str) -> Path:
    """folder / name, if that stays inside the folder.

    Raises:
        InputError: if it would not.
    """
    path = folder / name
    if Path(name).is_absolute() or not path.resolve().is_relative_to(folder.resolve()):
        raise InputError(f"the id {name!r} leads outside {folder}")
    return path
