"""A token store back into files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path

from smalti.errors import SmaltiError, StoreError
from smalti.store.coder import describe
from smalti.store.kinds import open_coder
from smalti.store.places import inside
from smalti.store.reader import ONE_PASS, TokenStore
from smalti.tokenizer import Tokenizer


@dataclass
class Decoded:
    """What a run wrote, and what failed: (id, reason)."""

    written: list[Path] = field(default_factory=list)
    failed: list[tuple[str, str]] = field(default_factory=list)


def decode_store(
    folder: str | Path,
    out: str | Path,
    tokenizer: Tokenizer,
    *,
    select: str | None = None,
    suffix: str | None = None,
    report: Callable[[int, int], None] | None = None,
) -> Decoded:
    """Decodes samples into files named after their ids.

    Args:
        folder: of the store.
        out: the folder to write to; nothing is written outside it.
        tokenizer: one whose codes hash is the store's (its decoder may be another).
        select: only ids that match this pattern.
        suffix: of the files (".png", ".jpg", ".webp"; ".wav", ".flac"); the modality's first if None. Text and
            executables keep their names.
        report: called with (done, total).

    Raises:
        StoreError: if the store was encoded by another tokenizer, or holds nothing that matches.
        ConfigError: for a suffix that can't be written.
    """
    store, target = TokenStore(folder, cache=ONE_PASS), Path(out)
    if store.header["codes_hash"] != tokenizer.codes_hash:
        raise StoreError(
            f"{folder} was encoded with {store.header['tokenizer']!r} (codes hash {store.header['codes_hash'][:12]}); "
            f"this {tokenizer.name} has codes hash {tokenizer.codes_hash[:12]}: its decoder would give noise"
        )
    coder = open_coder(tokenizer, store.header["recipe"])
    chosen = [name for name in store.ids if select is None or fnmatch(name, select)]
    places = coder.places(chosen, suffix)
    if not chosen:
        raise StoreError(
            f"{folder} holds no sample that matches {select!r}" if select else f"{folder} holds no samples"
        )
    result = Decoded()
    for done, name in enumerate(chosen):
        try:
            path = inside(target, places[name])
            path.parent.mkdir(parents=True, exist_ok=True)
            coder.decode(store, name, path)
            result.written.append(path)
        except (SmaltiError, OSError) as error:
            result.failed.append((name, describe(error)))
        if report is not None:
            report(done + 1, len(chosen))
    return result
