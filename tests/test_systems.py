"""The table of systems: complete, honest, and a way to each of them."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from smalti import systems
from smalti.config import Config
from smalti.errors import CheckpointError, ConfigError, InputError, UnavailableError
from smalti.systems import Checkpoint, Record, create, find, list_systems, load
from smalti.systems import hub as systems_hub
from smalti.systems.table import RECORDS

SLUGS = [
    "e-vilm", "vq-vla", "fvq", "speech-text-interleave", "survey", "tokenflow", "wavtokenizer", "wetok", "fqgan",
    "neurorvq", "resgen", "discrete-audio-tokens", "vqtoken", "one-d-piece", "visual-unicode", "lr2vq", "vqrae",
    "mingtok", "tokenbridge", "seitpp", "word-pooled", "vit-vqgan", "binary-bpe", "omnitokenizer", "pvq-llm", "put",
    "dm-codec", "addp", "tokbench", "hitvideo", "vat", "dreamfoley", "simvq", "textok", "zett", "seed", "quantease",
    "vec-tok", "equal-info", "ett", "xy-tokenizer", "token-merging-code", "instella-t2i", "karl", "uniflow", "saq",
    "tokenadapt", "slot-mllm", "tadicodec", "cosyvoice", "crossquant", "svdquant", "edgeqat",
]  # fmt: skip

WORKING = [record for record in RECORDS if record.status == "works"]


# --- what it says ----------------------------------------------------------------------------------------------------


def test_all_53_systems_and_their_bases_are_there() -> None:
    assert len(SLUGS) == 53
    assert {record.system for record in RECORDS} >= {*SLUGS, "vqgan", "llamagen"}


def test_names_are_unique_and_fields_are_legal() -> None:
    names = [record.name for record in RECORDS]
    assert len(set(names)) == len(names)
    for record in RECORDS:
        assert record.kind in systems.KINDS and record.status in systems.STATUSES
        assert record.modality and set(record.modality) <= set(systems.MODALITIES)
        assert 2017 <= record.year <= 2026
        assert record.title and record.paper and record.licence_note
        assert record.summary.endswith(".") and len(record.summary) < 220
        assert (record.entry is None) == (record.status == "planned")


def test_licences_are_stated_or_said_to_be_unknown() -> None:
    for record in RECORDS:
        assert record.code_licence is None or record.code_licence
        for checkpoint in record.weights:
            assert checkpoint.licence
    assert find("wetok").weights[0].licence == systems.UNKNOWN == "unknown: check before use"
    assert find("fqgan").weights[0].licence == "CC-BY-NC-4.0"
    assert find("vat").weights == systems.NONE_PUBLISHED


def test_checkpoints_have_distinct_names_and_a_place() -> None:
    for record in RECORDS:
        names = [checkpoint.name for checkpoint in record.weights]
        assert len(set(names)) == len(names), record.name
        assert all(checkpoint.name and checkpoint.place for checkpoint in record.weights)
    with pytest.raises(ValueError, match="address"):
        Checkpoint(file="weights.pt")


def test_the_table_is_plain_data() -> None:
    for record in RECORDS:
        copy = json.loads(json.dumps(record.to_dict()))
        assert copy["name"] == record.name and copy["system"] == record.system
        assert len(copy["weights"]) == len(record.weights)


def test_neither_the_package_nor_the_table_imports_torch() -> None:
    code = "import sys, smalti, smalti.systems; smalti.systems.list_systems(); print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"


def test_the_public_face_is_complete() -> None:
    smalti = importlib.import_module("smalti")
    for name in smalti.__all__:
        assert getattr(smalti, name) is not None
    assert set(smalti.__all__) <= set(dir(smalti))
    with pytest.raises(AttributeError, match="nonsense"):
        _ = smalti.nonsense


# --- finding ---------------------------------------------------------------------------------------------------------


def test_lists_are_sorted_and_filtered() -> None:
    assert [record.name for record in list_systems()] == sorted(record.name for record in RECORDS)
    assert [record.name for record in list_systems("simvq*")] == ["simvq/audio", "simvq/image"]
    assert [record.name for record in list_systems("vqgan")] == ["vqgan", "vqgan/mingpt"]
    assert {record.name for record in list_systems(kind="index")} == {"saq"}
    assert {record.name for record in list_systems(modality="eeg")} == {"neurorvq"}
    assert all(record.status == "works" for record in list_systems(status="works"))
    assert list_systems("no such*") == []
    for option in ("kind", "modality", "status"):
        with pytest.raises(ConfigError, match=f"{option} must be one of"):
            list_systems(**{option: "other"})


def test_a_wrong_name_is_answered_with_the_right_ones() -> None:
    with pytest.raises(InputError, match="wavtokenizer"):
        find("wavtokeniser")
    with pytest.raises(InputError, match="vq-vla"):
        find("VQ_VLA")
    with pytest.raises(InputError, match="choose simvq/audio or simvq/image"):
        find("simvq")
    with pytest.raises(InputError, match="smalti list"):
        find("#?!")


# --- what works ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("record", WORKING, ids=lambda record: record.name)
def test_every_working_entry_is_a_class_that_knows_its_record(record: Record) -> None:
    entry = systems.entry_class(record)
    assert entry.name == (record.saved_as or record.name)
    assert {checkpoint.preset for checkpoint in record.weights} - {None} <= set(entry.presets)
    if record.kind == "tokenizer":
        assert entry.modality in record.modality


@pytest.mark.parametrize("record", WORKING, ids=lambda record: record.name)
def test_a_saved_folder_is_loaded_by_its_record(record: Record, tmp_path: Path) -> None:
    original = systems.entry_class(record).Config.tiny().build()
    loaded = load(original.save(tmp_path / "folder"))
    assert type(loaded) is type(original)
    state, again = (x.state_dict() if isinstance(x, torch.nn.Module) else x.tensors() for x in (original, loaded))
    assert all(torch.equal(tensor, state[key]) for key, tensor in again.items())


class FakeTokenizer:
    """An entry that records how it was made."""

    class Config(Config):
        size: int = 3

        def build(self) -> FakeTokenizer:
            return FakeTokenizer(self.size)

    presets = {"large": Config(size=9)}  # noqa: RUF012

    def __init__(self, made_of: Any) -> None:
        self.made_of = made_of

    @classmethod
    def load(cls, folder: Path) -> FakeTokenizer:
        return cls(folder)

    @classmethod
    def from_official(cls, config: Any, state: Any) -> FakeTokenizer:
        return cls((config, sorted(state)))


def record(**changes: Any) -> Record:
    fields: dict[str, Any] = {
        "name": "fake",
        "title": "Fake",
        "year": 2026,
        "paper": "none",
        "kind": "tokenizer",
        "modality": ("image",),
        "repository": None,
        "code_licence": None,
        "weights": (Checkpoint(hub="someone/fake", file="a.pt"), Checkpoint(address="a university's page", name="b")),
        "licence_note": "none",
        "status": "works",
        "entry": f"{__name__}:FakeTokenizer",
        "summary": "A fake.",
    }
    return Record(**{**fields, **changes})


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A table of one working system, weights that ship in a temporary folder, and no network."""
    records = (record(), record(name="shipped", ships=True, weights=()), record(name="bare", weights=()))
    monkeypatch.setattr(systems, "RECORDS", records)
    monkeypatch.setattr(systems, "WEIGHTS", tmp_path / "weights")
    monkeypatch.setattr(systems_hub, "_can_reach", lambda endpoint: False)
    monkeypatch.setattr(systems_hub, "try_to_load_from_cache", lambda repository, file: None)
    return tmp_path


def test_records_of_one_class_have_a_preset_of_their_name_each() -> None:
    assert create("smalti-photo-f8").factor == 8
    assert create("smalti-photo-f16").factor == 16


def test_create_builds_defaults_presets_and_overrides(fake: Path) -> None:
    assert create("fake").made_of == 3
    assert create("fake", "large").made_of == 9
    assert create("fake", size=5).made_of == 5
    with pytest.raises(ConfigError, match="large"):
        create("fake", "small")
    with pytest.raises(ConfigError, match="colour"):
        create("fake", colour="red")


def test_load_reads_a_local_official_file_and_the_configuration_beside_it(fake: Path) -> None:
    save_file({"weight": torch.zeros(2)}, fake / "official.safetensors")
    assert load("fake", checkpoint=fake / "official.safetensors").made_of == (None, ["weight"])
    (fake / "config.json").write_text('{"hidden": 2}')
    assert load("fake", checkpoint=str(fake / "official.safetensors")).made_of == ({"hidden": 2}, ["weight"])
    given = systems.load_official("fake", fake / "official.safetensors", {"hidden": 7})
    assert given.made_of == ({"hidden": 7}, ["weight"])


def test_load_without_a_network_says_how_to_do_it_by_hand(fake: Path) -> None:
    with pytest.raises(UnavailableError, match=r"no network.*someone/fake : a\.pt by hand.*checkpoint=FILE"):
        load("fake")
    with pytest.raises(UnavailableError, match="not on the hub: download a university's page"):
        load("fake", checkpoint="b")
    with pytest.raises(InputError, match="published are a, b"):
        load("fake", checkpoint="c")
    with pytest.raises(UnavailableError, match="no checkpoints of bare were published"):
        load("bare")


def test_load_takes_what_the_hub_gives(fake: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({"model": {"weight": torch.zeros(2)}}, fake / "a.pt")
    monkeypatch.setattr(systems_hub, "try_to_load_from_cache", lambda repository, file: str(fake / file))
    assert load("fake").made_of == (None, ["weight"])
    monkeypatch.setattr(systems_hub, "try_to_load_from_cache", lambda repository, file: None)
    monkeypatch.setattr(systems_hub, "_can_reach", lambda endpoint: True)
    monkeypatch.setattr(systems_hub, "hf_hub_download", lambda repository, file: str(fake / file))
    assert load("fake").made_of == (None, ["weight"])

    def refuse(repository: str, file: str) -> str:
        raise OSError("403 gated\nmore lines")

    monkeypatch.setattr(systems_hub, "hf_hub_download", refuse)
    with pytest.raises(UnavailableError, match=r"could not be fetched \(403 gated\): download"):
        load("fake")


def test_load_finds_the_weights_that_ship(fake: Path) -> None:
    with pytest.raises(UnavailableError, match="missing in this installation"):
        load("shipped")
    (fake / "weights" / "shipped").mkdir(parents=True)
    assert load("shipped").made_of == fake / "weights" / "shipped"


def test_load_dispatches_a_folder_by_its_header(fake: Path) -> None:
    folder = fake / "saved"
    folder.mkdir()
    header = {"format": 1, "kind": "tokenizer", "name": "fake", "config": {}}
    (folder / "config.json").write_text(json.dumps(header))
    assert load(folder).made_of == folder
    assert load(str(folder)).made_of == folder
    (folder / "config.json").write_text(json.dumps({**header, "name": "of another project"}))
    with pytest.raises(CheckpointError, match="of another project"):
        load(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(CheckpointError):
        load(folder)


def test_what_is_neither_a_name_nor_a_folder_is_refused(fake: Path) -> None:
    with pytest.raises(InputError, match=r"no system is called 'nothing here'.*nor is there such a folder"):
        load("nothing here")
    with pytest.raises(InputError, match="no system"):
        load("n" * 5000)
    save_file({"weight": torch.zeros(2)}, fake / "official.safetensors")
    with pytest.raises(InputError, match="needs its system's name"):
        load(fake / "official.safetensors")


@pytest.mark.parametrize("name", ["wetok", "cosyvoice"])
def test_planned_systems_say_so(name: str) -> None:
    for function in (load, create):
        with pytest.raises(UnavailableError, match=f"{name} is planned and does not work yet"):
            function(name)
