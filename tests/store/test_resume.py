"""What later runs over a store do: other files under one id, failures, moved folders, finished shards that vanish."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from smalti.audio.speech import SpeechCodec
from smalti.errors import InputError, MissingDependencyError, StoreError
from smalti.image.photo import PhotoTokenizer
from smalti.store import Progress, TokenStore, decode_store, encode_paths, verify
from smalti.store.encode import writing
from smalti.store.places import output_names


def encode(folder: Path, store: Path, tokenizer: PhotoTokenizer, **options: object) -> Progress:
    return encode_paths([folder], store, tokenizer, reference="tiny", shard_size=8, **options)  # type: ignore[arg-type]


def test_another_file_under_a_known_id_is_refused(photos: Path, tmp_path: Path, tokenizer: PhotoTokenizer) -> None:
    encode(photos, tmp_path / "store", tokenizer)
    other = Path(shutil.copytree(photos, tmp_path / "other"))
    with pytest.raises(InputError, match=r"00\.png"):
        encode(other, tmp_path / "store", tokenizer)


def test_a_moved_folder_keeps_its_ids(photos: Path, tmp_path: Path, tokenizer: PhotoTokenizer) -> None:
    encode(photos, tmp_path / "store", tokenizer)
    moved = photos.rename(tmp_path / "moved")
    assert encode(moved, tmp_path / "store", tokenizer).already == 20


def test_shards_without_samples_do_not_disturb_readers(photos: Path, tmp_path: Path, tokenizer: PhotoTokenizer) -> None:
    (photos / "!bad.png").write_bytes(b"no picture")
    for _ in range(3):
        done = encode(photos, tmp_path / "store", tokenizer)
    assert (done.encoded, done.failed, done.without_codes, done.already) == (0, 1, 1, 20)
    shards = tmp_path / "store" / "shards"
    assert len(list(shards.glob("*.failed.json"))) == 2
    assert verify(tmp_path / "store").sound
    assert len(pd.read_parquet(sorted(shards.glob("*.parquet")))) == 20
    import datasets

    loaded = datasets.load_dataset("parquet", data_files=str(shards / "*.parquet"), cache_dir=str(tmp_path / "cache"))
    assert len(loaded["train"]) == 20
    errors = [json.loads(line) for line in (tmp_path / "store" / "errors.jsonl").read_text().splitlines()]
    assert [error["id"] for error in errors] == ["!bad.png"]


def test_a_header_that_is_behind_its_shards_is_called_unfinished(
    photos: Path, tmp_path: Path, tokenizer: PhotoTokenizer
) -> None:
    encode(photos, tmp_path / "store", tokenizer)
    path = tmp_path / "store" / "store.json"
    header = json.loads(path.read_text())
    path.write_text(json.dumps({**header, "complete": False, "samples": 16, "shards": header["shards"][:-1]}))
    report = verify(tmp_path / "store")
    assert report.unfinished == 1 and not report.problems and not report.sound
    assert encode(photos, tmp_path / "store", tokenizer).already == 20
    assert verify(tmp_path / "store").sound and len(TokenStore(tmp_path / "store")) == 20


def test_a_shard_that_was_deleted_is_encoded_again(photos: Path, tmp_path: Path, tokenizer: PhotoTokenizer) -> None:
    encode(photos, tmp_path / "store", tokenizer)
    (tmp_path / "store" / "shards" / "00000.parquet").unlink()
    (photos / "00.png").write_bytes(b"gone bad")
    done = encode(photos, tmp_path / "store", tokenizer)
    assert (done.encoded, done.failed) == (7, 1)
    assert verify(tmp_path / "store").sound


@pytest.mark.parametrize(
    ("field", "value"),
    [("failed", 77), ("codes_hash", "0" * 64), ("columns", None), ("recipe", None), ("errors", None)],
)
def test_a_changed_meaning_is_found(
    photos: Path, tmp_path: Path, tokenizer: PhotoTokenizer, field: str, value: object
) -> None:
    encode(photos, tmp_path / "store", tokenizer)
    path = tmp_path / "store" / "store.json"
    header = json.loads(path.read_text())
    if field == "columns":
        header["columns"][0]["vocab"] = [126]
    elif field == "recipe":
        header["recipe"]["size"] = 64
    elif field == "errors":
        (tmp_path / "store" / "errors.jsonl").write_text('{"id": "x", "error": "y", "shard": "z"}\n')
    else:
        header[field] = value
    path.write_text(json.dumps(header))
    assert verify(tmp_path / "store").problems


def test_folders_of_others_are_left_alone(photos: Path, tmp_path: Path, tokenizer: PhotoTokenizer) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / ".notes.tmp").write_text("precious")
    with pytest.raises(StoreError, match="no token store"):
        encode(photos, home, tokenizer)
    assert [path.name for path in home.iterdir()] == [".notes.tmp"]
    assert encode(photos, tmp_path / "none", tokenizer, glob="*.xyz").planned == 0
    assert not (tmp_path / "none").exists()


def test_a_second_writer_of_this_process_is_refused(tmp_path: Path) -> None:
    with writing(tmp_path / "store"):
        with pytest.raises(StoreError, match="this process"), writing(tmp_path / "store"):
            pass
        child = os.fork()
        if child == 0:
            try:
                with writing(tmp_path / "store"):
                    os._exit(1)
            except StoreError:
                os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
    with writing(tmp_path / "store"):
        pass


def test_a_named_pipe_is_refused_instead_of_waited_for(tmp_path: Path, tokenizer: PhotoTokenizer) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(InputError, match="regular"):
        encode_paths([tmp_path / "pipe.png"], tmp_path / "store", tokenizer, reference="tiny")


def test_every_sample_decodes_to_a_file_of_its_own(tmp_path: Path, tokenizer: PhotoTokenizer) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("x.png", "x.jpg", "x.png.jpg", "y.png", "z.webp"):
        Image.new("RGB", (8, 8)).save(folder / name)
    encode(folder, tmp_path / "store", tokenizer)
    result = decode_store(tmp_path / "store", tmp_path / "out", tokenizer)
    assert len(set(result.written)) == 5 and all(path.exists() for path in result.written)
    assert (tmp_path / "out" / "y.png").exists()


def test_names_that_escaping_made_too_long_are_shortened() -> None:
    ids = ["deep/" + "%FF" * 100 + f"{i}.png" for i in range(2)]
    names = output_names(ids, ".png")
    assert len(set(names.values())) == 2
    assert all(len(name.rsplit("/", 1)[1].encode()) <= 255 and name.startswith("deep/") for name in names.values())


def test_a_model_out_of_memory_is_an_error_of_that_input(
    photos: Path, tmp_path: Path, tokenizer: PhotoTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = PhotoTokenizer.analysis

    def hungry(self: PhotoTokenizer, inputs: object, options: object) -> object:
        if inputs.shape[-2:] == (28, 20):  # type: ignore[attr-defined]
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4096 bytes.")
        return whole(self, inputs, options)  # type: ignore[arg-type]

    monkeypatch.setattr(PhotoTokenizer, "analysis", hungry)
    done = encode(photos, tmp_path / "store", tokenizer)
    assert done.failed > 0 and done.encoded == 20 - done.failed


def test_a_missing_decoder_stops_the_run_before_it_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.wav").write_bytes(b"RIFF")
    monkeypatch.setitem(sys.modules, "soundfile", None)
    codec = SpeechCodec(SpeechCodec.Config.tiny())
    with pytest.raises(MissingDependencyError, match="audio"):
        encode_paths([tmp_path], tmp_path / "store", codec, reference="tiny")
    assert not (tmp_path / "store").exists()
