"""Reading other projects' checkpoints: as data only, unwrapped, under names that a system can map to its own.

    file ──read──► plain data ──unwrap──► state (official key -> tensor), EMA preferred, and which copy it was
    state ──drop, rename, fold_weight_norm──► the system's own state dict

Nothing that a file holds is ever run. Pickles are read by torch's restricted reader (`weights_only=True`); the few
harmless classes that published files mention besides tensors become plain dictionaries.
"""

from __future__ import annotations

import fnmatch
import json
import pickle
import re
import struct
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from smalti.errors import CheckpointError

EMA_WRAPPERS = ("ema", "ema_state_dict", "model_ema", "state_dict_ema")
WRAPPERS = ("state_dict", "model", "module", "generator")
LIT_EMA = "model_ema."  # Lightning modules of taming-transformers and its descendants
PREFIXES = ("_orig_mod.", "module.")  # torch.compile's and DistributedDataParallel's
MAX_ENTRIES = 200_000  # in a zip archive; published checkpoints have thousands
MAX_DIRECTORY_BYTES = MAX_ENTRIES * 256  # what lists them
MAX_PICKLE_BYTES = 2**26  # an archive's pickle holds names and settings; the tensors lie beside it
MAX_CONFIG_BYTES = 2**24

# Whatever torch's reader raises on bytes that are no checkpoint; it promises no one kind.
READING_ERRORS = (
    pickle.UnpicklingError, RuntimeError, ValueError, TypeError, AttributeError, LookupError, EOFError, OSError,
    ArithmeticError, AssertionError, MemoryError, struct.error, zipfile.BadZipFile,
)  # fmt: skip


@dataclass(frozen=True)
class Official:
    """What a published file holds.

    Args:
        state: official key -> tensor.
        config: the configuration that lies beside it (config.json), or None.
        source: which copy was taken, for people ("ema of vq_ds16_c2i.pt").
    """

    state: dict[str, Tensor]
    config: dict[str, Any] | None
    source: str


class Plain:
    """What a class that a pickle mentions becomes: its attributes, and nothing that it could do."""

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments

    def __setstate__(self, state: Any) -> None:
        self.__dict__.update(state if isinstance(state, dict) else {"state": state})


# Classes that published checkpoints mention beside tensors. They hold settings, not weights.
PLAIN_CLASSES = (
    "argparse.Namespace",
    "typing.Any",
    "omegaconf.dictconfig.DictConfig",
    "omegaconf.listconfig.ListConfig",
    "omegaconf.base.ContainerMetadata",
    "omegaconf.base.Metadata",
    "omegaconf.nodes.AnyNode",
    "pathlib.PosixPath",
    "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
    "lightning.pytorch.callbacks.model_checkpoint.ModelCheckpoint",
    "pytorch_lightning.utilities.parsing.AttributeDict",
    "lightning_fabric.utilities.data.AttributeDict",
)


def read_official(path: str | Path) -> Official:
    """Reads a published checkpoint: a .safetensors file, a torch pickle, or a folder that holds one of them.

    Raises:
        CheckpointError: if there is no such file, it can't be read without running code, it holds no tensors, or a
            tensor says that it is larger than its data.
    """
    file, config = _locate(Path(path))
    data = _read_safetensors(file) if _is_safetensors(file) else _read_pickle(file)
    state, source = unwrap(data)
    for key, tensor in state.items():
        _check_tensor(key, tensor)
    return Official(state, config, f"{source} of {file.name}")


def unwrap(data: Any) -> tuple[dict[str, Tensor], str]:
    """The state dict inside the wrappers that trainers put around it, EMA preferred.

    Args:
        data: plain data, as read.

    Returns:
        the state (key -> tensor) without prefixes that every key has, and which copy it was. A tensor alone is called
        "tensor".

    Raises:
        CheckpointError: if no dictionary of tensors is found.
    """
    if isinstance(data, Tensor):
        return {"tensor": data}, "the tensor"
    if not isinstance(data, Mapping):
        raise CheckpointError(f"a checkpoint must hold a dictionary, this one holds a {type(data).__name__}")
    for wrapper in (*EMA_WRAPPERS, *WRAPPERS):
        inner = data.get(wrapper)
        if isinstance(inner, Mapping) and _has_tensors(inner):
            state, source = unwrap(inner)
            return state, wrapper if source == "the state" else f"{wrapper}/{source}"
    state = {str(key): value for key, value in data.items() if isinstance(value, Tensor)}
    if not state:
        raise CheckpointError(f"no tensors found; the top level holds {sorted(map(str, data))[:12]}")
    for prefix in PREFIXES:
        if all(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state, "the state"


def drop(state: Mapping[str, Tensor], patterns: Sequence[str]) -> dict[str, Tensor]:
    """The state without the keys that match one of the patterns (`fnmatch`)."""
    ignored = re.compile("|".join(fnmatch.translate(pattern) for pattern in patterns) or r"(?!)")
    return {key: value for key, value in state.items() if not ignored.match(key)}


def rename(state: Mapping[str, Tensor], rules: Iterable[tuple[str, str]]) -> dict[str, Tensor]:
    """Keys rewritten by regular expressions, each rule applied to all keys in order.

    Raises:
        CheckpointError: if two keys become one.
    """
    compiled = [(re.compile(pattern), replacement) for pattern, replacement in rules]
    renamed: dict[str, Tensor] = {}
    for key, value in state.items():
        new = key
        for pattern, replacement in compiled:
            new = pattern.sub(replacement, new)
        if new in renamed:
            raise CheckpointError(f"{key} becomes {new}, which another key became already")
        renamed[new] = value
    return renamed


class KeyTable:
    """Official names and a system's own, both ways.

        KeyTable({"layers.{}.attention.wo.": "blocks.{}.attention.out.", "norm.": "norm."})

    Args:
        templates: official -> own. A template is the beginning of a key, `{}` in it any number; the numbers keep their
            order. The longest template that fits is used; a key that none fits keeps its name.
    """

    def __init__(self, templates: Mapping[str, str]) -> None:
        self._to_own = _rules(templates.items())
        self._to_official = _rules((own, official) for official, own in templates.items())

    def own(self, key: str) -> str:
        return _translate(key, self._to_own)

    def official(self, key: str) -> str:
        return _translate(key, self._to_official)

    def own_state(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The state under our names.

        Raises:
            CheckpointError: if two keys become one.
        """
        renamed: dict[str, Tensor] = {}
        for key, value in state.items():
            if self.own(key) in renamed:
                raise CheckpointError(f"{key} becomes {self.own(key)}, which another key became already")
            renamed[self.own(key)] = value
        return renamed

    def official_names(self, own_keys: Iterable[str]) -> dict[str, str]:
        """Own name -> official name, for the messages of `smalti.folder.fill`."""
        return {key: self.official(key) for key in own_keys}


def _rules(pairs: Iterable[tuple[str, str]]) -> list[tuple[re.Pattern[str], str]]:
    ordered = sorted(pairs, key=lambda pair: len(pair[0]), reverse=True)
    return [(re.compile(re.escape(old).replace(r"\{\}", r"(\d+)")), new) for old, new in ordered]


def _translate(key: str, rules: Sequence[tuple[re.Pattern[str], str]]) -> str:
    for pattern, template in rules:
        if match := pattern.match(key):
            pieces = zip_longest(template.split("{}"), match.groups(), fillvalue="")
            return "".join(text + number for text, number in pieces) + key[match.end() :]
    return key


def prefer_averaged(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state with LitEma's moving averages in place of the live tensors, where it holds any.

    LitEma keeps the average of `encoder.conv_in.weight` under `model_ema.encoderconv_inweight`, for the trained
    parameters only; what was not trained has its live tensor alone.

    Raises:
        CheckpointError: if there is an average of something that has no live tensor.
    """
    averages = {key: value for key, value in state.items() if key.startswith(LIT_EMA)}
    for counter in ("decay", "num_updates"):
        averages.pop(LIT_EMA + counter, None)
    preferred = {
        key: averages.pop(LIT_EMA + key.replace(".", ""), value)
        for key, value in state.items()
        if not key.startswith(LIT_EMA)
    }
    if averages:
        raise CheckpointError(f"averages of tensors that the checkpoint lacks: {sorted(averages)[:8]}")
    return preferred


def fold_weight_norm(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Replaces weight-normalised pairs by the weight that they make: g v / |v|, the norm over all axes but the first.

    Both layouts are known: `weight_g`, `weight_v`, and `parametrizations.weight.original0`, `original1`.

    Raises:
        CheckpointError: if one half of a pair is missing.
    """
    folded = dict(state)
    for gain, direction in (
        ("weight_g", "weight_v"),
        ("parametrizations.weight.original0", "parametrizations.weight.original1"),
    ):
        names = {key.removesuffix(end) for key in state for end in (gain, direction) if key.endswith(f".{end}")}
        for name in sorted(names):
            if name + gain not in folded or name + direction not in folded:
                raise CheckpointError(f"{name}{gain} and {name}{direction} belong together, one is missing")
            folded[name + "weight"] = torch._weight_norm(folded.pop(name + direction), folded.pop(name + gain), 0)
    return folded


def take(state: Mapping[str, Tensor], key: str) -> Tensor:
    """A tensor by its official key, for reading sizes off.

    Raises:
        CheckpointError: if it is missing.
    """
    if key not in state:
        near = [name for name in state if name.split(".")[0] == key.split(".")[0]][:4]
        raise CheckpointError(f"the checkpoint has no {key}; near it are {near or sorted(state)[:4]}")
    return state[key]


# --- files -----------------------------------------------------------------------------------------------------------


def _locate(path: Path) -> tuple[Path, dict[str, Any] | None]:
    if path.is_dir():
        files = sorted(
            file for file in path.iterdir() if file.suffix in {".safetensors", ".pt", ".pth", ".ckpt", ".bin", ".th"}
        )
        if len(files) != 1:
            names = [file.name for file in files]
            raise CheckpointError(f"{path} holds {len(files)} checkpoint files {names}: name one of them")
        return files[0], _read_config(path / "config.json")
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist")
    return path, _read_config(path.parent / "config.json")


def _read_config(path: Path) -> dict[str, Any] | None:
    if not path.is_file() or path.stat().st_size > MAX_CONFIG_BYTES:
        return None
    try:
        config = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} can't be read: {error}") from None
    return config if isinstance(config, dict) else None


def _is_safetensors(path: Path) -> bool:
    """By content: a header length that fits the file, then the opening brace of the header."""
    try:
        with path.open("rb") as file:
            head = file.read(9)
    except OSError as error:
        raise CheckpointError(f"{path} can't be read: {error}") from None
    return len(head) == 9 and head[8:9] == b"{" and struct.unpack("<Q", head[:8])[0] <= path.stat().st_size


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError, ValueError) as error:
        raise CheckpointError(f"{path} can't be read: {error}") from None


def _read_pickle(path: Path) -> Any:
    is_zip = _check_archive(path)
    try:
        with torch.serialization.safe_globals([(Plain, name) for name in PLAIN_CLASSES]):
            data = torch.load(path, map_location="cpu", weights_only=True, mmap=True if is_zip else None)
    except READING_ERRORS as error:
        raise CheckpointError(
            f"{path} can't be read as data, and Smalti never runs what a checkpoint holds: {_reason(error)}"
        ) from None
    return _plain(data)


def _reason(error: BaseException) -> str:
    """What a reader found, without torch's advice to read the file unsafely."""
    found = re.search(r"GLOBAL (\S+)", str(error))
    if found:
        return f"it needs {found[1]}"
    lines = [line.strip() for line in str(error).splitlines() if line.strip() and "weights_only" not in line]
    return lines[0][:200] if lines else type(error).__name__


def _check_archive(path: Path) -> bool:
    """Whether the file is a zip archive; refuses absurd ones before torch parses them."""
    size = path.stat().st_size
    with path.open("rb") as file:
        if file.read(4) != b"PK\x03\x04":
            return False
        file.seek(max(0, size - 2**16 - 22))
        tail = file.read()
    end = tail.rfind(b"PK\x05\x06")
    if end < 0 or len(tail) < end + 22:
        raise CheckpointError(f"{path} is a truncated archive")
    entries, directory = struct.unpack_from("<HI", tail, end + 10)
    wide = tail.rfind(b"PK\x06\x06")
    if wide >= 0 and len(tail) >= wide + 48:
        wide_entries, wide_directory = struct.unpack_from("<QQ", tail, wide + 32)
        entries = wide_entries if entries == 0xFFFF else entries
        directory = wide_directory if directory == 0xFFFFFFFF else directory
    if entries > MAX_ENTRIES or directory > MAX_DIRECTORY_BYTES:
        raise CheckpointError(
            f"{path} claims {entries} entries, listed in {directory} bytes, more than the {MAX_ENTRIES} entries in "
            f"{MAX_DIRECTORY_BYTES} bytes that a checkpoint may have"
        )
    _check_entries(path, entries)
    return True


def _check_entries(path: Path, claimed: int) -> None:
    """Refuses what torch never writes and would unpack: compressed, overlapping or doubly listed data."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except READING_ERRORS as error:
        raise CheckpointError(f"{path} is a broken archive: {error}") from None
    if len(entries) != claimed:
        raise CheckpointError(f"{path} claims {claimed} entries and lists {len(entries)}")
    for entry in entries:
        if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
            raise CheckpointError(f"{path}: {entry.filename[:100]} is compressed, which checkpoints never are")
        if entry.filename.endswith(".pkl") and entry.file_size > MAX_PICKLE_BYTES:
            raise CheckpointError(
                f"{path}: {entry.filename[:100]} has {entry.file_size} bytes, more than {MAX_PICKLE_BYTES}"
            )
    if sum(entry.file_size for entry in entries) > path.stat().st_size:
        raise CheckpointError(f"{path} claims more data than the file has: entries overlap")


def _check_tensor(key: str, tensor: Tensor) -> None:
    """Refuses tensors that would grow when they are copied: those that say little data many times, or have none."""
    if tensor.layout != torch.strided or tensor.is_nested or tensor.device.type != "cpu":
        raise CheckpointError(f"{key} is no plain tensor: {tensor.layout}, on {tensor.device}")
    held = tensor.untyped_storage().nbytes()
    if tensor.numel() * tensor.element_size() > held:
        raise CheckpointError(f"{key} is {tuple(tensor.shape)} of {tensor.dtype}, but has only {held} bytes of data")


def _plain(data: Any) -> Any:
    """Stand-ins as dictionaries of their attributes, all the way down. What is shared stays shared."""
    # Without the memory, a few nested lists that hold one another many times over would be walked for ever.
    return _plain_once(data, {}, 0)


def _plain_once(data: Any, done: dict[int, Any], depth: int) -> Any:
    if depth > 64:
        raise CheckpointError("the checkpoint is nested more than 64 deep")
    if not isinstance(data, Plain | Mapping | list | tuple):
        return data
    if id(data) not in done:
        items = vars(data) if isinstance(data, Plain) else data
        done[id(data)] = (
            {key: _plain_once(value, done, depth + 1) for key, value in items.items()}
            if isinstance(items, Mapping)
            else [_plain_once(value, done, depth + 1) for value in items]
        )
    return done[id(data)]


def _has_tensors(data: Mapping[Any, Any]) -> bool:
    return any(isinstance(value, Tensor) for value in data.values()) or any(
        isinstance(data.get(wrapper), Mapping) for wrapper in (*EMA_WRAPPERS, *WRAPPERS)
    )
