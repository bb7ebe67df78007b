"""A token store back into files."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path

from smalti.errors import ConfigError, InputError, SmaltiError, StoreError
from smalti.store.media import media
from smalti.store.reader import TokenStore
from smalti.tokenizer import NeuralTokenizer

LONGEST_NAME = 255 - 20  # bytes; writing needs a longer name for a moment


@dataclass
class Decoded:
    """What a run wrote, and what failed: (id, reason)."""

    written: list[Path] = field(default_factory=list)
    failed: list[tuple[str, str]] = field(default_factory=list)


def decode_store(
    folder: str | Path,
    out: str | Path,
    tokenizer: NeuralTokenizer,
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
        suffix: of the files (".png", ".jpg", ".webp"; ".wav", ".flac"); the modality's first if None.
        report: called with (done, total).

    Raises:
        StoreError: if the store was encoded by another tokenizer, or holds nothing that matches.
        ConfigError: for a suffix that can't be written.
    """
    store, target = TokenStore(folder), Path(out)
    if store.header["codes_hash"] != tokenizer.codes_hash:
        raise StoreError(
            f"{folder} was encoded with {store.header['tokenizer']!r} (codes hash {store.header['codes_hash'][:12]}); "
            f"this {tokenizer.name} has codes hash {tokenizer.codes_hash[:12]}: its decoder would give noise"
        )
    files = media(tokenizer.modality)
    ending = files.formats[0] if suffix is None else f".{suffix.lower().removeprefix('.')}"
    if ending not in files.formats:
        raise ConfigError(f"{tokenizer.modality} can be written as {', '.join(files.formats)}, not as {ending!r}")
    chosen = [(number, name) for number, name in enumerate(store.ids) if select is None or fnmatch(name, select)]
    if not chosen:
        raise StoreError(
            f"{folder} holds no sample that matches {select!r}" if select else f"{folder} holds no samples"
        )
    places = output_names([name for _, name in chosen], ending)
    result = Decoded()
    for done, (number, name) in enumerate(chosen):
        try:
            path = inside(target, places[name])
            tokens = store[number]
            sample = tokenizer.decode(tokens)[0]
            path.parent.mkdir(parents=True, exist_ok=True)
            conditions = {key: int(value[0]) for key, value in tokens.side.items() if key == "sample_rate"}
            files.write(path, sample.cpu(), conditions)
            result.written.append(path)
        except (SmaltiError, OSError) as error:
            result.failed.append((name, " ".join(str(error).split())))
        if report is not None:
            report(done + 1, len(chosen))
    return result


def output_names(ids: list[str], suffix: str) -> dict[str, str]:
    """A file name per id, all different: the id with its suffix replaced, or kept where two would meet.

    Escaping can make a name longer than file systems allow; its end then becomes a hash of it.
    """
    kept = {name: name + suffix for name in ids}
    replaced = {name: str(Path(name).with_suffix(suffix)) for name in ids if Path(name).suffix}
    counts = Counter(replaced.values())
    free = {place for place, count in counts.items() if count == 1} - set(kept.values())
    return {
        name: _shortened(replaced[name] if replaced.get(name) in free else kept[name], suffix) for name in ids
    }  # fmt: skip


def _shortened(name: str, suffix: str) -> str:
    folder, _, last = name.rpartition("/")
    if len(last.encode()) > LONGEST_NAME:
        digest = hashlib.sha256(last.encode()).hexdigest()[:16]
        last = last.encode()[: LONGEST_NAME - 40].decode("utf-8", "ignore") + f"~{digest}{suffix}"
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
