"""Checkpoints are read as data: nothing runs, wrappers come off, keys map, and what is odd is refused by name."""

from __future__ import annotations

import argparse
import ast
import builtins
import contextlib
import os
import pickle
import struct
import time
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn

from smalti.checkpoint import MAX_ENTRIES, MAX_PICKLE_BYTES, drop, fold_weight_norm, read_official, rename, take, unwrap
from smalti.errors import CheckpointError

ROOT = Path(__file__).parents[1]
STATE = {"encoder.weight": torch.arange(6.0).reshape(2, 3), "encoder.bias": torch.ones(2)}


class Payload:
    """Pickles into a call."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.call


class Stateful:
    def __getstate__(self) -> dict[str, object]:
        return {"x": 1}


def payloads(marker: Path) -> dict[str, object]:
    touch = f"import pathlib; pathlib.Path({str(marker)!r}).touch()"
    return {
        "os.system": Payload(os.system, f"touch {marker}"),
        "os.popen": Payload(os.popen, f"touch {marker}"),
        "os.mkdir": Payload(os.mkdir, str(marker)),
        "eval": Payload(builtins.eval, f"__import__('os').mkdir({str(marker)!r})"),
        "exec": Payload(builtins.exec, touch),
        "open": Payload(builtins.open, str(marker), "w"),
        "getattr": Payload(builtins.getattr, "text", "upper"),
        "__import__": Payload(builtins.__import__, "antigravity"),
        "torch.hub": Payload(torch.hub.load, "x/y", "z"),
        "torch.load": Payload(torch.load, str(marker)),
        "module": nn.Linear(2, 2),
        "own class": Stateful(),
        "function": os.system,
        "nested": {"state_dict": {"a": torch.ones(1), "b": [Payload(os.system, f"touch {marker}")]}},
        "beside tensors": {**STATE, "extra": Payload(os.system, f"touch {marker}")},
        "as key": {Payload(os.getcwd): torch.ones(1)},
        "in an ordered dictionary": OrderedDict(a=Payload(os.system, f"touch {marker}")),
        "bytes of another pickle": Payload(pickle.loads, pickle.dumps(Payload(os.system, f"touch {marker}"))),
    }


WRITERS: dict[str, Callable[[object, Path], None]] = {
    "torch": lambda data, path: torch.save(data, path),
    "torch legacy": lambda data, path: torch.save(data, path, _use_new_zipfile_serialization=False),
    "plain pickle": lambda data, path: path.write_bytes(pickle.dumps(data)) and None,
}


@pytest.mark.parametrize("writer", sorted(WRITERS))
@pytest.mark.parametrize("name", sorted(payloads(Path("marker"))))
def test_nothing_in_a_checkpoint_runs(name: str, writer: str, tmp_path: Path) -> None:
    marker, file = tmp_path / "ran", tmp_path / "model.pt"
    payload = payloads(marker)[name]
    WRITERS[writer](payload, file)
    with pytest.raises(CheckpointError, match="data"):
        read_official(file)
    assert not marker.exists()


def test_torchscript_is_refused(tmp_path: Path) -> None:
    torch.jit.script(nn.Linear(2, 2)).save(str(tmp_path / "model.pt"))
    with pytest.raises(CheckpointError):
        read_official(tmp_path / "model.pt")


def test_settings_beside_tensors_become_plain_data(tmp_path: Path) -> None:
    torch.save({"state_dict": STATE, "args": argparse.Namespace(lr=0.1, name="x")}, tmp_path / "model.ckpt")
    assert read_official(tmp_path / "model.ckpt").state.keys() == STATE.keys()


@pytest.mark.parametrize(
    ("wrapped", "source"),
    [
        (STATE, "the state"),
        ({"model": STATE, "step": 3}, "model"),
        ({"state_dict": STATE, "epoch": 3}, "state_dict"),
        ({"module": STATE}, "module"),
        ({"ema": STATE, "model": {"encoder.weight": torch.zeros(2, 3)}}, "ema"),
        ({"model": {"ema": STATE}}, "model/ema"),
        ({"model": {f"_orig_mod.{key}": value for key, value in STATE.items()}}, "model"),
        ({"model": {f"module.{key}": value for key, value in STATE.items()}}, "model"),
        ({f"_orig_mod.module.{key}": value for key, value in STATE.items()}, "the state"),
    ],
)
@pytest.mark.parametrize("writer", ["torch", "torch legacy"])
def test_wrappers_and_prefixes_come_off(wrapped: Any, source: str, writer: str, tmp_path: Path) -> None:
    WRITERS[writer](wrapped, tmp_path / "model.pt")
    official = read_official(tmp_path / "model.pt")
    assert official.source == f"{source} of model.pt"
    assert official.state.keys() == STATE.keys()
    assert all(torch.equal(official.state[key], value) for key, value in STATE.items())


def test_safetensors_and_the_config_beside_it(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"hidden": 3}')
    official = read_official(tmp_path)
    assert official.config == {"hidden": 3}
    assert torch.equal(official.state["encoder.weight"], STATE["encoder.weight"])


@pytest.mark.parametrize(
    "content",
    [b"", b"hello", b"PK\x03\x04", b"\x80\x02.", b"\x00" * 100, b"{}", struct.pack("<Q", 2**60) + b"{", b"\x80\x04N."],
)
def test_files_that_are_no_checkpoints_are_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_bytes(content)
    with pytest.raises(CheckpointError):
        read_official(tmp_path / "model.pt")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data(), st.sampled_from(["torch", "torch legacy", "safetensors"]))
def test_damaged_files_never_raise_anything_else(tmp_path: Path, data: st.DataObject, kind: str) -> None:
    file = tmp_path / "model.bin"
    if kind == "safetensors":
        save_file(STATE, file)
    else:
        WRITERS[kind]({"state_dict": STATE}, file)
    content = bytearray(file.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    file.write_bytes(content[: data.draw(st.integers(1, len(content)))])
    with contextlib.suppress(CheckpointError):
        read_official(file)


def test_an_archive_that_claims_a_million_entries_is_refused_at_once(tmp_path: Path) -> None:
    file = tmp_path / "bomb.pt"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a", b"")
    content = bytearray(file.read_bytes())
    end = content.rfind(b"PK\x05\x06")
    wide = struct.pack("<4sQHHIIQQQQ", b"PK\x06\x06", 44, 45, 45, 0, 0, 10**6, 10**6, 0, 0)
    content[end + 8 : end + 12] = b"\xff\xff\xff\xff"
    file.write_bytes(bytes(content[:end]) + wide + bytes(content[end:]))
    with pytest.raises(CheckpointError, match=str(MAX_ENTRIES)):
        read_official(file)


@pytest.mark.parametrize("make", [lambda x: [x, x], lambda x: {"a": x, "b": x}, lambda x: (x, [x])])
@pytest.mark.parametrize("writer", sorted(WRITERS))
def test_what_holds_itself_many_times_over_is_read_at_once(
    make: Callable[[object], object], writer: str, tmp_path: Path
) -> None:
    laughs: object = [0]
    for _ in range(25):  # 2^25 leaves if every path were walked
        laughs = make(laughs)
    WRITERS[writer]({"notes": laughs, "state_dict": {"w": 1.0} if writer == "plain pickle" else STATE}, tmp_path / "a")
    started = time.process_time()
    with contextlib.suppress(CheckpointError):  # a plain pickle holds no tensors
        read_official(tmp_path / "a")
    assert time.process_time() - started < 5


def test_a_list_that_holds_itself_is_refused(tmp_path: Path) -> None:
    endless: list[object] = []
    endless.append(endless)
    torch.save({"state_dict": STATE, "notes": endless}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="deep"):
        read_official(tmp_path / "a.pt")


def rewritten(path: Path, change: Callable[[str, bytes], bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    """A torch archive written anew by another program."""
    other = path.with_name("other.pt")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(other, "w", compression) as new:
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)))
    return other


def test_compressed_archives_are_refused_before_they_are_unpacked(tmp_path: Path) -> None:
    torch.save({"w": torch.zeros(2**20)}, tmp_path / "model.pt")
    stored = rewritten(tmp_path / "model.pt", lambda name, data: data)
    assert read_official(stored).state["w"].shape == (2**20,)
    for kind in (zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA):
        bomb = rewritten(tmp_path / "model.pt", lambda name, data: data, kind)
        with pytest.raises(CheckpointError, match="is compressed"):
            read_official(bomb)


def test_an_absurd_pickle_is_refused_before_it_is_read(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "model.pt")
    large = rewritten(
        tmp_path / "model.pt", lambda name, data: data + b"\0" * MAX_PICKLE_BYTES if name.endswith(".pkl") else data
    )
    with pytest.raises(CheckpointError, match=rf"data\.pkl has \d+ bytes, more than {MAX_PICKLE_BYTES}"):
        read_official(large)


def test_archives_whose_directory_lies_are_refused(tmp_path: Path) -> None:
    torch.save({"w": torch.zeros(1000)}, tmp_path / "model.pt")
    content = (tmp_path / "model.pt").read_bytes()
    end = content.rfind(b"PK\x05\x06")
    fewer = bytearray(content)
    fewer[end + 8 : end + 12] = struct.pack("<HH", 1, 1)
    (tmp_path / "fewer.pt").write_bytes(fewer)
    with pytest.raises(CheckpointError, match="claims 1 entries and lists"):
        read_official(tmp_path / "fewer.pt")
    doubled = bytearray(content)
    place = content.rfind(b"PK\x01\x02", 0, content.rfind(b"data/0"))
    doubled[place + 20 : place + 28] = struct.pack("<II", 10**6, 10**6)
    (tmp_path / "doubled.pt").write_bytes(doubled)
    with pytest.raises(CheckpointError, match="overlap"):
        read_official(tmp_path / "doubled.pt")


@pytest.mark.parametrize("tensor", [
    torch.ones(1).expand(10**9, 10**3),
    torch.arange(6.0).unfold(0, 3, 1),
    torch.sparse_coo_tensor(torch.tensor([[0]]), torch.ones(1), (10**12,)),
    torch.empty(10**12, device="meta"),
])  # fmt: skip
@pytest.mark.parametrize("writer", ["torch", "torch legacy"])
def test_tensors_larger_than_their_data_are_refused_by_name(tensor: Tensor, writer: str, tmp_path: Path) -> None:
    WRITERS[writer]({"state_dict": {**STATE, "decoder.bomb": tensor}}, tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match=r"decoder\.bomb"):
        read_official(tmp_path / "model.pt")


def test_views_of_shared_data_are_read(tmp_path: Path) -> None:
    whole = torch.arange(12.0).reshape(3, 4)
    state = {
        "whole": whole,
        "turned": whole.t(),
        "row": whole[1],
        "empty": whole[:0],
        "one": torch.ones(1).expand(1, 1),
    }
    torch.save(state, tmp_path / "model.pt")
    read = read_official(tmp_path / "model.pt").state
    assert all(torch.equal(read[key], value) for key, value in state.items())


def test_a_folder_must_hold_one_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="0 checkpoint files"):
        read_official(tmp_path)
    torch.save(STATE, tmp_path / "a.pt")
    torch.save(STATE, tmp_path / "b.pt")
    with pytest.raises(CheckpointError, match=r"a\.pt.*b\.pt"):
        read_official(tmp_path)
    with pytest.raises(CheckpointError, match="does not exist"):
        read_official(tmp_path / "c.pt")


def test_unwrap_says_what_it_found_instead_of_tensors() -> None:
    with pytest.raises(CheckpointError, match="epoch"):
        unwrap({"epoch": 3})
    with pytest.raises(CheckpointError, match="list"):
        unwrap([1])


def test_drop_and_rename() -> None:
    state = {"loss.a": torch.ones(1), "encoder.down.0.w": torch.ones(1), "encoder.up.1.w": torch.ones(1)}
    kept = drop(state, ["loss.*"])
    assert sorted(rename(kept, [(r"^encoder\.", "e."), (r"\.(\d)\.", r".level\1.")])) == [
        "e.down.level0.w",
        "e.up.level1.w",
    ]
    with pytest.raises(CheckpointError, match="another key"):
        rename(kept, [(r"(down|up)\.\d", "x")])
    with pytest.raises(CheckpointError, match=r"encoder\.down"):
        take(kept, "encoder.none")


@pytest.mark.parametrize(
    "names", [("weight_g", "weight_v"), ("parametrizations.weight.original0", "parametrizations.weight.original1")]
)
def test_weight_norm_folds_into_the_weight_that_torch_computes(names: tuple[str, str]) -> None:
    conv = nn.utils.parametrizations.weight_norm(nn.Conv1d(3, 4, 5))
    with torch.no_grad():
        conv.parametrizations.weight.original0.mul_(1.7)
    gain, direction = conv.parametrizations.weight.original0, conv.parametrizations.weight.original1
    folded = fold_weight_norm({f"a.{names[0]}": gain, f"a.{names[1]}": direction, "a.bias": torch.zeros(4)})
    assert sorted(folded) == ["a.bias", "a.weight"]
    length = direction.flatten(1).norm(dim=1)[:, None, None]
    assert torch.allclose(folded["a.weight"], gain * direction / length, atol=1e-6)
    with pytest.raises(CheckpointError, match="belong together"):
        fold_weight_norm({f"a.{names[0]}": gain})


def test_every_torch_load_in_the_tree_reads_weights_only() -> None:
    """No module may reopen the door: torch.load sets weights_only=True, and nothing else unpickles or evaluates."""
    for file in [*ROOT.glob("smalti/**/*.py"), *ROOT.glob("recipes/**/*.py"), *ROOT.glob("benchmarks/**/*.py")]:
        for node in ast.walk(ast.parse(file.read_text())):
            if not isinstance(node, ast.Call):
                continue
            name = ast.unparse(node.func)
            if name == "torch.load":
                flags = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                assert flags.get("weights_only") == "True", f"{file}:{node.lineno}"
            assert name not in {"eval", "exec", "pickle.load", "pickle.loads", "pickle.Unpickler"}, (
                f"{file}:{node.lineno}"
            )
            assert not any(k.arg == "shell" and ast.unparse(k.value) == "True" for k in node.keywords), (
                f"{file}:{node.lineno}"
            )
