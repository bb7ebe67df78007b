"""Long inputs in several shards: going on in the middle, files that change, failures, and what readers never see."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from smalti.errors import InputError, StoreError
from smalti.store import TokenStore, verify
from smalti.store.plan import Plans
from smalti.store.shard import file_hash, shard_span
from smalti.text.base import IdArray
from tests.store.texts import check_rows, encode, write_texts
from tests.text.runs import RunEncoder, RunTokenizer

POISON = b"POISON"


@pytest.fixture(scope="module")
def runs() -> RunTokenizer:
    return RunTokenizer.Config().build()


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    return write_texts(tmp_path / "in", {"a.txt": 5_000, "big.txt": 300_000, "long.txt": 100_000, "z.txt": 10})


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Encoders refuse blocks that hold POISON."""
    push = RunEncoder.push

    def picky(self: RunEncoder, data: bytes | memoryview) -> IdArray:
        if POISON in bytes(data):
            raise InputError("there is poison in it")
        return push(self, data)

    monkeypatch.setattr(RunEncoder, "push", picky)


def shards_of(store: Path, name: str) -> list[Path]:
    """The files of the last chain of an input that has pieces."""
    plans = Plans(store)
    chain = [chain for chain in plans.chains() if chain[0].inputs[0].id == name][-1]
    return [path for shard in chain if (path := plans.path(shard)) is not None]


def errors_of(store: Path) -> dict[str, str]:
    return {error["id"]: error["error"] for error in map(json.loads, (store / "errors.jsonl").read_text().splitlines())}


# --- going on --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gone", [[0], [7], [14], [3, 4, 5], [0, 2, 4, 14], list(range(5, 15)), list(range(15))])
def test_any_missing_pieces_are_encoded_again_between_the_others(
    texts: Path, tmp_path: Path, runs: RunTokenizer, gone: list[int]
) -> None:
    store = tmp_path / "store"
    encode(texts, store, runs)
    before = {path.name: file_hash(path) for path in (store / "shards").iterdir()}
    paths = shards_of(store, "big.txt")
    for index in gone:
        paths[index].unlink()
    done = encode(texts, store, runs)
    assert (done.encoded, done.failed) == (1, 0)
    assert verify(store).sound
    check_rows(store, texts, runs)
    assert all(file_hash(store / "shards" / name) == digest for name, digest in before.items())


def test_a_piece_says_where_the_next_goes_on(texts: Path, tmp_path: Path, runs: RunTokenizer) -> None:
    encode(texts, tmp_path / "store", runs)
    data, part = (texts / "big.txt").read_bytes(), 0
    ids = runs.ids(data)
    for path in shards_of(tmp_path / "store", "big.txt"):
        span = shard_span(path)
        assert span is not None and span.first == part
        part = span.next
        assert runs.ids(data[span.byte :])[span.skip :].tolist() == ids[part * 1000 :].tolist()
        assert (span.size, span.mtime_ns) == (len(data), (texts / "big.txt").stat().st_mtime_ns)
    assert part * 1000 >= len(ids)


def test_rows_longer_than_pieces_leave_shards_without_rows(texts: Path, tmp_path: Path, runs: RunTokenizer) -> None:
    """Rows of 100,000 tokens in shards of 20 kB: most shards have no row to hold."""
    encode(texts, tmp_path / "store", runs, recipe={"max_row": 100_000})
    paths = shards_of(tmp_path / "store", "big.txt")
    assert {path.suffix for path in paths} == {".parquet", ".json"}
    assert all(path.read_text() == "[]" for path in paths if path.suffix == ".json")
    check_rows(tmp_path / "store", texts, runs, 100_000)
    assert verify(tmp_path / "store").sound and not errors_of(tmp_path / "store")
    for path in paths[::2]:
        path.unlink()
    encode(texts, tmp_path / "store", runs, recipe={})
    check_rows(tmp_path / "store", texts, runs, 100_000)
    assert verify(tmp_path / "store").sound


def test_a_moved_folder_goes_on(texts: Path, tmp_path: Path, runs: RunTokenizer) -> None:
    encode(texts, tmp_path / "store", runs)
    shards_of(tmp_path / "store", "big.txt")[5].unlink()
    moved = texts.rename(tmp_path / "moved")
    done = encode(moved, tmp_path / "store", runs)
    assert errors_of(tmp_path / "store").keys() == {"big.txt"} and done.failed == 1  # the plan names the old place
    assert encode(moved, tmp_path / "store", runs).failed == 0
    check_rows(tmp_path / "store", moved, runs)


# --- files that change -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", ["shrinks", "grows", "is rewritten", "vanishes"])
def test_a_file_that_changes_between_pieces_has_no_rows_until_it_is_encoded_anew(
    texts: Path, tmp_path: Path, runs: RunTokenizer, change: str
) -> None:
    store, file = tmp_path / "store", texts / "big.txt"
    encode(texts, store, runs)
    paths = shards_of(store, "big.txt")
    for path in paths[6:]:
        path.unlink()
    data = file.read_bytes()
    if change == "vanishes":
        file.unlink()
    else:
        file.write_bytes({"shrinks": data[:250_000], "grows": data + data, "is rewritten": data[::-1]}[change])
        os.utime(file, ns=(1, 1))
    done = encode(texts, store, runs)
    assert (done.failed, done.without_codes) == (1, 1)
    assert errors_of(store).keys() == {"big.txt"}
    assert ("No such file" if change == "vanishes" else "changed") in errors_of(store)["big.txt"]
    assert "big.txt" not in TokenStore(store).ids and not any(path.exists() for path in paths)
    assert verify(store).sound
    if change == "vanishes":
        file.write_bytes(data)
    done = encode(texts, store, runs)
    assert (done.encoded, done.failed, done.without_codes) == (1, 0, 0)
    assert verify(store).sound and not errors_of(store)
    check_rows(store, texts, runs)


@pytest.mark.parametrize("name", ["big.txt", "a.txt"])
def test_a_file_that_changes_while_it_is_read_fails(
    texts: Path, tmp_path: Path, runs: RunTokenizer, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    finish = RunEncoder.finish

    def meddling(self: RunEncoder) -> IdArray:
        with (texts / name).open("ab") as file:
            file.write(b"more")
        return finish(self)

    with monkeypatch.context() as patch:
        patch.setattr(RunEncoder, "finish", meddling)
        done = encode([texts / name], tmp_path / "store", runs)
    assert (done.encoded, done.failed) == (0, 1)
    encode([texts / name], tmp_path / "store", runs)
    assert TokenStore(tmp_path / "store").ids == [name]


# --- failures --------------------------------------------------------------------------------------------------------


def test_a_long_input_that_fails_in_the_middle_has_no_rows(
    texts: Path, tmp_path: Path, runs: RunTokenizer, poisoned: None
) -> None:
    store, file = tmp_path / "store", texts / "big.txt"
    data = bytearray(file.read_bytes())
    data[200_000:200_006] = POISON
    file.write_bytes(data)
    done = encode(texts, store, runs)
    assert done.failed == 1 and errors_of(store) == {"big.txt": "there is poison in it"}
    assert "big.txt" not in TokenStore(store).ids and verify(store).sound
    frame = pq.read_table(list((store / "shards").glob("*.parquet")), columns=["id"])
    assert "big.txt" not in frame.column("id").to_pylist()
    assert encode(texts, store, runs).failed == 1  # tried again in new shards, with the same end
    file.write_bytes(bytes(data).replace(POISON, b"potion"))
    assert encode(texts, store, runs).failed == 0
    check_rows(store, texts, runs)
    assert verify(store).sound and not errors_of(store)


@pytest.mark.parametrize("rows", [1, 5, 10**6])
def test_an_input_that_fails_after_rows_were_written_takes_them_back(
    tmp_path: Path, runs: RunTokenizer, poisoned: None, monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    """Whether its rows are in a row group already, in memory, or both."""
    monkeypatch.setattr("smalti.store.bytefiles.GROUP_ROWS", rows)
    monkeypatch.setattr("smalti.store.rows.BLOCK", 4096)
    monkeypatch.setattr("smalti.store.bytefiles.BLOCK", 4096)
    folder = write_texts(tmp_path / "in", {"a.txt": 9_000, "b.txt": 40_000, "c.txt": 9_000})
    whole = (folder / "b.txt").read_bytes()
    (folder / "b.txt").write_bytes(whole[:30_000] + POISON + whole)
    (folder / "c.txt").write_bytes(POISON)
    done = encode(folder, tmp_path / "store", runs, shard_bytes=None)
    assert (done.encoded, done.failed) == (len(list(folder.iterdir())) - 2, 2)
    for name in ("b.txt", "c.txt"):
        (folder / name).unlink()
    check_rows(tmp_path / "store", folder, runs)
    assert verify(tmp_path / "store").sound
    assert errors_of(tmp_path / "store").keys() == {"b.txt", "c.txt"}


def test_a_shard_of_failures_only_is_no_parquet(tmp_path: Path, runs: RunTokenizer, poisoned: None) -> None:
    (tmp_path / "a.txt").write_bytes(POISON)
    assert encode(tmp_path / "a.txt", tmp_path / "store", runs).failed == 1
    assert [path.name for path in (tmp_path / "store" / "shards").iterdir()] == ["00000.failed.json"]
    assert len(TokenStore(tmp_path / "store")) == 0 and verify(tmp_path / "store").sound


def test_a_kill_while_rows_are_taken_back_is_settled_by_the_next_run(
    texts: Path, tmp_path: Path, runs: RunTokenizer
) -> None:
    store = tmp_path / "store"
    encode(texts, store, runs)
    paths = shards_of(store, "big.txt")
    failure = json.dumps([{"id": "big.txt", "error": "it failed"}])
    paths[2].with_name(paths[2].stem + ".failed.json").write_text(failure)  # beside its Parquet file
    paths[3].unlink()
    paths[3].with_name(paths[3].stem + ".failed.json").write_text(failure)
    done = encode(texts, store, runs)
    assert done.failed == 1 and errors_of(store) == {"big.txt": "it failed"}
    assert verify(store).sound and not any(path.exists() for path in paths)
    assert encode(texts, store, runs).encoded == 1
    check_rows(store, texts, runs)


def test_a_reader_never_sees_half_a_long_input(
    texts: Path, tmp_path: Path, runs: RunTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """store.json is brought up to date after every step of a run that ends early."""
    monkeypatch.setattr("smalti.store.encode.HEADER_EVERY", 0.0)
    monkeypatch.setattr("smalti.store.bytefiles.TICK", 0.001)
    store = tmp_path / "store"

    class EnoughError(Exception):
        pass

    for limit in (50, 150, 250, 350):

        def stop(progress: object, limit: int = limit) -> None:
            if (store / "shards").exists() and len(list((store / "shards").iterdir())) > limit // 20:
                raise EnoughError

        shutil.rmtree(store, ignore_errors=True)
        try:
            encode(texts, store, runs, report=stop, workers=1)
        except EnoughError:
            opened = TokenStore(store)
            assert not verify(store).problems
            for name in opened.ids:
                assert opened[name].codes[0, :, 0].tolist() == runs.ids((texts / name).read_bytes()).tolist()
        encode(texts, store, runs)
        check_rows(store, texts, runs)


# --- damage ----------------------------------------------------------------------------------------------------------


def forge(store: Path, path: Path, table: pa.Table) -> None:
    """Puts another table in a shard's place, with hash and counts that fit: whoever forges does it well."""
    metadata = {key: value for key, value in pq.read_metadata(path).metadata.items() if key != b"ARROW:schema"}
    pq.write_table(table.replace_schema_metadata(metadata), path)
    header = json.loads((store / "store.json").read_text())
    for entry in header["shards"]:
        if entry["file"] == path.name:
            entry.update(rows=table.num_rows, sha256=file_hash(path))
    (store / "store.json").write_text(json.dumps(header))


def test_rows_that_are_missing_doubled_or_out_of_order_are_found(
    texts: Path, tmp_path: Path, runs: RunTokenizer
) -> None:
    encode(texts, tmp_path / "whole", runs)
    name = shards_of(tmp_path / "whole", "big.txt")[3].name
    table = pq.read_table(tmp_path / "whole" / "shards" / name)
    short = table.set_column(2, "codes", pa.array([[1], *table.column("codes").to_pylist()[1:]], pa.list_(pa.uint16())))
    forged = {
        "missing": pa.concat_tables([table[:2], table[3:]]),
        "doubled": pa.concat_tables([table[:2], table[1:]]),
        "swapped": pa.concat_tables([table[:1], table[2:3], table[1:2], table[3:]]),
        "cut": table[:-1],
        "short": short,
    }
    for what, rows in forged.items():
        store = Path(shutil.copytree(tmp_path / "whole", tmp_path / what))
        forge(store, store / "shards" / name, rows)
        assert any("does not follow a full row" in problem for problem in verify(store).problems), what
        if what != "short":
            with pytest.raises(StoreError, match="out of order"):
                _ = TokenStore(store).ids


def test_pieces_in_each_others_place_are_found(texts: Path, tmp_path: Path, runs: RunTokenizer) -> None:
    store = tmp_path / "store"
    encode(texts, store, runs)
    one, other = shards_of(store, "big.txt")[3:5]
    tables = [pq.read_table(path) for path in (one, other)]
    for path, table in zip((other, one), tables, strict=True):
        forge(store, path, table)
    assert len([problem for problem in verify(store).problems if "does not follow" in problem]) >= 2


def test_a_damaged_piece_stops_no_check_of_the_others(texts: Path, tmp_path: Path, runs: RunTokenizer) -> None:
    store = tmp_path / "store"
    encode(texts, store, runs)
    path = shards_of(store, "big.txt")[3]
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert [problem.split(":")[0] for problem in verify(store).problems] == [f"shard {path.name}"]
    with pytest.raises(StoreError, match=path.name):
        TokenStore(store)["big.txt"]


def test_a_plan_that_begins_in_the_middle_of_an_input_is_refused(
    texts: Path, tmp_path: Path, runs: RunTokenizer
) -> None:
    encode(texts, tmp_path / "store", runs)
    plan = tmp_path / "store" / "plan" / "00000.jsonl"
    lines = plan.read_text().splitlines()
    first = next(index for index, line in enumerate(lines) if '"piece": 1,' in line)
    plan.write_text("\n".join([*lines[: first - 1], *lines[first:]]) + "\n")
    with pytest.raises(StoreError, match="continues an input"):
        verify(tmp_path / "store")


def test_a_tokenizer_that_gives_wrong_ids_fails_its_inputs(texts: Path, tmp_path: Path, runs: RunTokenizer) -> None:
    class Beyond(RunTokenizer):
        def __init__(self) -> None:
            super().__init__(runs.config, runs.order)
            self.vocab = (300,)

    done = encode(texts, tmp_path / "store", Beyond())
    assert done.failed > 0
    assert "outside its vocabulary" in next(iter(errors_of(tmp_path / "store").values()))
