"""The static table: every window once, in order, and nothing but them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from smalti.errors import CheckpointError, ConfigError, InputError
from smalti.text.equal_info.counts import CountModel
from smalti.text.equal_info.neural import ByteTransformer, NeuralModel
from smalti.text.equal_info.table import Table, TableEncoder
from smalti.text.equal_info.windows import encode_windows
from tests.text.equal_info import reference
from tests.text.equal_info.texts import AWKWARD, noise, prose

TRAINING = [prose(20000, seed=1)]
MODEL = CountModel.fit(TRAINING, 4)


@pytest.fixture(scope="module")
def table() -> Table:
    return Table.build(MODEL, 16)


def test_there_are_as_many_strings_as_words_all_different_and_in_order(table: Table) -> None:
    strings = [table.string(word) for word in range(2**16)]
    assert len(set(strings)) == 2**16 and strings == sorted(strings) and strings[0] == b""
    assert {string for string in strings if len(string) == 1} == {bytes([byte]) for byte in range(256)}
    assert {string[:-1] for string in strings if string} <= set(strings)


def test_strings_are_those_that_the_sheet_decodes(table: Table) -> None:
    weights = reference.witten_bell(TRAINING, 4, 192)
    for word in np.random.default_rng(0).integers(2**16, size=150).tolist():
        assert table.string(word) == reference.text_of(word, weights, 16)


@pytest.mark.parametrize("bits", [9, 12, 16, 18])
def test_longest_match_is_what_the_model_codes_online(bits: int) -> None:
    table = Table.build(MODEL, bits)
    for data in (*AWKWARD, prose(10**6 if bits == 16 else 60000, seed=2) + noise(20000)):
        words = table.encode(data)
        assert np.array_equal(words, encode_windows(data, MODEL, bits).words)
        assert table.decode(words) == data


def test_longest_match_is_a_search_in_the_list_of_strings(table: Table) -> None:
    words = {table.string(word): word for word in range(2**16)}
    data, expected, start = prose(3000) + noise(500), list[int](), 0
    while start < len(data):
        length = max(n for n in range(1, 60) if data[start : start + n] in words)
        expected.append(words[data[start : start + length]])
        start += length
    assert table.encode(data).tolist() == expected


def test_any_words_decode_and_a_window_alone_encodes_to_its_word(table: Table) -> None:
    words = np.random.default_rng(3).integers(2**16, size=2000).astype(np.uint16)
    assert table.decode(words) == b"".join(table.string(word) for word in words.tolist())
    for word in words.tolist():
        assert table.encode(table.string(word)).tolist() == ([word] if word else [])
    for wrong in ([2**16], [-1]):
        with pytest.raises(InputError, match=r"0\.\.65535"):
            table.decode(np.array(wrong))


@pytest.mark.parametrize("size", [1, 5, 999])
def test_blocks_give_the_words_of_the_whole(table: Table, size: int) -> None:
    data = prose(3000) + noise(300)
    encoder, words, taken = TableEncoder(table), list[int](), 0
    for start in range(0, len(data), size):
        words += encoder.push(data[start : start + size]).words.tolist()
        taken += len(data[start : start + size])
        assert table.decode(np.array(words, np.uint16)) == data[: taken - encoder.open]
    assert [*words, *encoder.finish().words.tolist()] == table.encode(data).tolist()


def test_a_table_does_not_depend_on_how_many_windows_are_asked_for_at_once(
    table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("smalti.text.equal_info.table.ROWS", 13)
    assert Table.build(MODEL, 16).sha256 == table.sha256


def test_a_table_of_a_network_is_built_depth_by_depth() -> None:
    torch.manual_seed(0)
    network = ByteTransformer(layers=1, width=16, heads=2, longest=6)
    torch.nn.init.normal_(network.head.weight, std=2.0)  # uneven, so that windows differ in length
    table = Table.build(NeuralModel(network), 14)
    assert len(table.lengths) == 2**14 and table.lengths.max() > 3
    for data in AWKWARD:
        assert table.decode(table.encode(data)) == data


def test_text_that_never_changes_has_windows_that_end() -> None:
    table = Table.build(CountModel.fit([b"\0" * 10**6], 3), 16)
    assert 192 <= table.lengths.max() <= 196
    zeros = b"\0" * 10**6
    assert table.decode(table.encode(zeros)) == zeros
    with pytest.raises(ConfigError, match="longest"):
        Table.build(CountModel.fit([b"\0" * 10**6], 3, longest=None), 16)


@pytest.mark.parametrize("bits", [8, 21])
def test_sizes_that_no_table_has_are_refused(bits: int) -> None:
    with pytest.raises(ConfigError, match="bits"):
        Table.build(MODEL, bits)


# --- files -----------------------------------------------------------------------------------------------------------


def test_a_table_file_says_what_it_is(tmp_path: Path, table: Table) -> None:
    file = table.save(tmp_path / "table.safetensors", {"corpus": "abc", "recipe": {"order": 4}})
    assert {name: array.dtype for name, array in load_file(file).items()} == {"lengths": np.uint8, "bytes": np.uint8}
    again, metadata = Table.load(file)
    assert again.sha256 == table.sha256 == metadata["sha256"]
    assert (metadata["bits"], metadata["corpus"], metadata["recipe"]) == ("16", "abc", '{"order": 4}')


def test_tampered_table_files_are_refused(tmp_path: Path, table: Table) -> None:
    file = tmp_path / "table.safetensors"
    table.save(file)
    other = Table.build(CountModel.fit([prose(20000, seed=5)], 4), 16)
    metadata = {"bits": "16", "sha256": table.sha256}
    save_file(other.tensors(), file, metadata=metadata)
    with pytest.raises(CheckpointError, match="SHA-256"):
        Table.load(file)
    save_file(table.tensors(), file, metadata={**metadata, "bits": "15"})
    with pytest.raises(CheckpointError, match="SHA-256"):
        Table.load(file)
    save_file(table.tensors(), file)
    with pytest.raises(CheckpointError, match="SHA-256"):
        Table.load(file)
    save_file({"lengths": table.lengths}, file, metadata=metadata)
    with pytest.raises(CheckpointError, match="lengths and bytes"):
        Table.load(file)
    file.write_bytes(b"nonsense")
    with pytest.raises(CheckpointError, match="can't be read"):
        Table.load(file)
    with pytest.raises(CheckpointError, match="can't be read"):
        Table.load(tmp_path / "missing")


def test_every_damage_to_the_strings_is_found() -> None:
    table = Table.build(MODEL, 9)
    for place in range(0, len(table.strings), 7):
        strings = table.strings.copy()
        strings[place] ^= 0x55
        strings_are_sorted = _legal(table.lengths, strings)
        if strings_are_sorted:
            Table(table.lengths, strings)  # another table, which the SHA-256 tells apart
        else:
            with pytest.raises(CheckpointError):
                Table(table.lengths, strings)
    for lengths in (table.lengths[:-1], table.lengths[::-1].copy(), table.lengths.astype(np.int64)):
        with pytest.raises(CheckpointError):
            Table(lengths, table.strings)
    with pytest.raises(CheckpointError):
        Table(table.lengths, table.strings[:-1])


def _legal(lengths: np.ndarray, strings: np.ndarray) -> bool:
    """Whether strings are different, sorted, with all prefixes and all single bytes, from Python's own bytes."""
    ends = np.cumsum(lengths.astype(int))
    each = [strings[end - length : end].tobytes() for end, length in zip(ends, lengths.astype(int), strict=True)]
    return (
        sorted(set(each)) == each
        and {string[:-1] for string in each if string} <= set(each)
        and sum(len(string) == 1 for string in each) == 256
    )


def test_another_process_and_other_threads_make_the_same_table(table: Table) -> None:
    code = (
        "import torch; torch.set_num_threads({threads})\n"
        "from tests.text.equal_info.test_table import MODEL, Table, prose\n"
        "table = Table.build(MODEL, 16)\n"
        "import hashlib; print(table.sha256, hashlib.sha256(table.encode(prose(9000)).tobytes()).hexdigest())"
    )
    runs = {
        subprocess.run(
            [sys.executable, "-c", code.format(threads=threads)], capture_output=True, text=True, check=True
        ).stdout
        for threads in (1, 2)
    }
    assert len(runs) == 1 and runs.pop().split()[0] == table.sha256
