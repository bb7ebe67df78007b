"""The tokenizer: exact on any bytes, whatever its bits and model, and the same after it was saved."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import recipes.equal_info
import smalti
from benchmarks.equal_info import Source, best, python_source
from smalti.errors import CheckpointError, ConfigError, InputError
from smalti.text.equal_info.counts import CountModel
from smalti.text.equal_info.table import Table
from smalti.text.equal_info.tokenizer import Counts, EqualInfoTokenizer, Fixed, Neural, Training
from tests.text.equal_info.texts import AWKWARD, noise, prose

Config = EqualInfoTokenizer.Config
TRAINING = [prose(20000, seed=1), "naïve text, with é and 漢字. " * 50]
TINY_NETWORK = Neural(layers=1, width=16, heads=2, longest=6, training=Training(steps=10, batch=8))
CONFIGS = {
    "tiny": Config.tiny(),
    "b16": Config(),
    "b16-v8": Config(token_bits=8),
    "b16-v2": Config(token_bits=2),
    "b15-v5": Config(bits=15, token_bits=5),
    "b18": Config(bits=18, token_bits=18),
    "network's table": Config(bits=13, token_bits=13, model=Fixed(source=TINY_NETWORK)),
    "b24-v12": Config(bits=24, token_bits=12, model=Counts()),
    "b48-v16": Config(bits=48, model=Counts(order=6, least=1)),
    "b62": Config(bits=62, token_bits=62, model=Counts()),
    "b64-v8": Config(bits=64, token_bits=8, model=Counts()),
    "b128-v16": Config(bits=128, model=Counts()),
}
FITTED: dict[str, EqualInfoTokenizer] = {}


def fitted(name: str) -> EqualInfoTokenizer:
    if name not in FITTED:
        FITTED[name] = CONFIGS[name].build().fit(TRAINING)
    return FITTED[name]


@pytest.mark.parametrize("name", CONFIGS)
@given(data=st.binary(max_size=200))
@settings(max_examples=15, deadline=None)
def test_any_bytes_come_back(name: str, data: bytes) -> None:
    tokenizer = fitted(name)
    tokens = tokenizer.encode(data)
    assert tokens.vocab == (2**tokenizer.config.token_bits,)
    tokens.check()
    assert tokenizer.decode(tokens) == [data]


@pytest.mark.parametrize("name", CONFIGS)
def test_awkward_bytes_come_back_before_and_after_fitting(name: str) -> None:
    for tokenizer in (fitted(name), CONFIGS[name].build()):
        for data in AWKWARD:
            assert tokenizer.data(tokenizer.ids(data)) == data
            assert tokenizer.count(data) == len(tokenizer.ids(data))
        assert len(tokenizer.ids(b"")) == 0


@pytest.mark.parametrize("name", CONFIGS)
def test_any_ids_are_text(name: str) -> None:
    tokenizer = fitted(name)
    per_window = tokenizer.config.bits // tokenizer.config.token_bits
    ids = np.random.default_rng(0).integers(tokenizer.vocab[0], size=60 * per_window)
    text = tokenizer.data(ids)
    assert text == b"".join(tokenizer.data(row) for row in ids.reshape(60, per_window))
    if per_window > 1:
        with pytest.raises(InputError, match="inside a window"):
            tokenizer.data(ids[:-1])
    for wrong in (-1, tokenizer.vocab[0]):
        with pytest.raises(InputError, match="ids must be in"):
            tokenizer.data(np.full(per_window, wrong))


@pytest.mark.parametrize("size", [1, 10, 333])
@pytest.mark.parametrize("name", ["tiny", "b16-v8", "b48-v16", "b128-v16"])
def test_blocks_give_the_ids_of_the_whole_and_any_position_is_a_restart(name: str, size: int) -> None:
    tokenizer, data = fitted(name), prose(900) + noise(200) + b"\0" * 700
    whole, encoder, ids = tokenizer.ids(data), tokenizer.stream_encoder(), [np.zeros(0, np.uint16)]
    for start in range(0, len(data), size):
        ids.append(encoder.push(data[start : start + size]))
        if start // size % 50 == 0:
            given_so_far = np.concatenate(ids)
            assert tokenizer.data(given_so_far) == data[: encoder.position]
            rest = tokenizer.ids(data[encoder.position :])
            assert np.array_equal(np.concatenate([given_so_far, rest]), whole)
    assert np.array_equal(np.concatenate([*ids, encoder.finish()]), whole)
    decoder = tokenizer.stream_decoder()
    back = [decoder.push(whole[start : start + size]) for start in range(0, len(whole), size)]
    assert b"".join(back) + decoder.finish() == data


def test_tokens_are_the_bits_of_words_first_bits_first() -> None:
    whole, halves = fitted("b16"), fitted("b16-v8")
    words = whole.ids(prose(500))
    assert halves.ids(prose(500)).tolist() == [half for word in words.tolist() for half in (word >> 8, word & 255)]


def test_fitting_makes_text_shorter_and_takes_note_of_the_samples() -> None:
    text = prose(5000, seed=9)
    for name in ("tiny", "b16", "b48-v16"):
        untrained = CONFIGS[name].build()
        assert fitted(name).count(text) < 0.7 * untrained.count(text)
        assert untrained.config.corpus == "" and len(fitted(name).config.corpus) == 64
    one = CONFIGS["tiny"].build().fit([b"ab", b"c"])
    other = CONFIGS["tiny"].build().fit(each for each in ("a", "bc"))
    assert one.config.corpus != other.config.corpus


def test_what_does_not_decide_codes_does_not_enter_their_hash() -> None:
    tokenizer = fitted("b16")
    same = EqualInfoTokenizer(tokenizer.config.replace(corpus="", model=Fixed(source=Counts(order=1))), tokenizer.model)
    assert same.codes_hash == tokenizer.codes_hash != CONFIGS["b16"].build().codes_hash
    assert EqualInfoTokenizer(CONFIGS["b16-v8"], tokenizer.model).codes_hash != tokenizer.codes_hash
    counts = fitted("b48-v16")
    assert isinstance(counts.model, CountModel)
    shorter = EqualInfoTokenizer(counts.config.replace(model=Counts(longest=20)), replace(counts.model, longest=20))
    assert shorter.codes_hash != counts.codes_hash


def test_a_model_that_a_saved_folder_would_not_give_back_is_refused() -> None:
    table, counts = fitted("b16").model, fitted("b48-v16").model
    assert isinstance(counts, CountModel)
    as_they_are = CountModel.of_counts(np.ones((256, 256), np.int64), longest=192)
    for name, model, message in (
        ("b15-v5", table, "16 bits, the config 15"),
        ("b16", counts, "a CountModel"),
        ("b48-v16", table, "a Table"),
        ("b48-v16", replace(counts, longest=20), "longest is 20"),
        ("b48-v16", as_they_are, "as they are"),
    ):
        with pytest.raises(ConfigError, match=message):
            EqualInfoTokenizer(CONFIGS[name], model)


# --- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["tiny", "b16", "b48-v16"])
def test_a_saved_folder_gives_the_same_ids(name: str, tmp_path: Path) -> None:
    tokenizer, data = fitted(name), prose(3000) + noise(100)
    again = EqualInfoTokenizer.load(tokenizer.save(tmp_path / "saved"))
    assert again.codes_hash == tokenizer.codes_hash and again.config == tokenizer.config
    assert np.array_equal(again.ids(data), tokenizer.ids(data)) and again.data(tokenizer.ids(data)) == data


def test_tampered_folders_are_refused(tmp_path: Path) -> None:
    folder = fitted("b16").save(tmp_path / "saved")
    model, config = folder / "model.safetensors", folder / "config.json"
    tensors, header = load_file(model), json.loads(config.read_text())
    other = CONFIGS["b16"].build().fit([prose(9000, seed=7)])
    save_file(other.tensors(), model)
    with pytest.raises(CheckpointError, match="codes hash"):
        EqualInfoTokenizer.load(folder)
    save_file({**tensors, "bytes": tensors["bytes"].flip(0)}, model)
    with pytest.raises(CheckpointError, match="table"):
        EqualInfoTokenizer.load(folder)
    save_file({"lengths": tensors["lengths"]}, model)
    with pytest.raises(CheckpointError, match="lengths and bytes"):
        EqualInfoTokenizer.load(folder)
    save_file(tensors, model)
    header["config"]["bits"] = 15
    header["config"]["token_bits"] = 15
    config.write_text(json.dumps(header))
    with pytest.raises(CheckpointError, match="16 bits, the config 15"):
        EqualInfoTokenizer.load(folder)


def test_a_table_file_is_enough_for_a_tokenizer(tmp_path: Path) -> None:
    tokenizer, data = fitted("b16"), prose(800)
    file = tokenizer.save_table(tmp_path / "table.safetensors")
    _, metadata = Table.load(file)
    assert metadata.keys() == {"bits", "recipe", "model", "corpus", "sha256"}
    again = EqualInfoTokenizer.of_table(file)
    assert np.array_equal(again.ids(data), tokenizer.ids(data))
    assert again.config == tokenizer.config and again.codes_hash == tokenizer.codes_hash
    assert np.array_equal(EqualInfoTokenizer.of_table(file, 8).ids(data), fitted("b16-v8").ids(data))
    with pytest.raises(ConfigError, match="counts"):
        fitted("b48-v16").save_table(file)


def test_ids_do_not_depend_on_the_batch() -> None:
    samples = [prose(300, seed=seed) for seed in range(8)]
    for name in ("b16", "b48-v16"):
        alone = [fitted(name).encode(sample) for sample in samples]
        assert all(one.equal(other) for one, other in zip(fitted(name).encode(samples), alone, strict=True))


# --- configurations --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "names"),
    [
        ({"bits": 8}, "bits"),
        ({"token_bits": 5}, "multiple"),
        ({"bits": 24, "token_bits": 24}, "at most 20"),
        ({"bits": 126, "token_bits": 63, "model": {"type": "counts"}}, "token_bits"),
        ({"model": {"type": "counts", "order": 7}}, "order"),
        ({"model": {"type": "table", "source": {"type": "counts", "longest": 253}}}, "longest"),
        ({"model": {"type": "other"}}, "model"),
        ({"no_such_field": 1}, "no_such_field"),
    ],
)
def test_wrong_configurations_are_named(fields: dict[str, object], names: str) -> None:
    with pytest.raises(ConfigError, match=names):
        Config(**fields)


def test_the_defaults_are_the_papers_and_presets_the_others_of_it() -> None:
    assert (Config().bits, Config().token_bits) == (16, 16)
    for name, config in EqualInfoTokenizer.presets.items():
        assert isinstance(config, Config)
        assert name == f"b{config.bits}-v{config.token_bits}"


# --- the sheet's acceptance checks at their full size ----------------------------------------------------------------


def megabyte(kind: str) -> bytes:
    if kind == "random":
        return noise(10**6)
    return prose(10**6) if kind == "text" else b"\0" * 10**6


@pytest.mark.parametrize("bits", [16, 24, 32, 48])
@pytest.mark.parametrize("kind", ["random", "text", "zeros"])
def test_a_megabyte_comes_back(kind: str, bits: int) -> None:
    name = {16: "b16", 24: "b24-v12", 48: "b48-v16"}.get(bits, "b32")
    CONFIGS.setdefault("b32", Config(bits=32, model=Counts()))
    data = megabyte(kind)
    assert fitted(name).data(fitted(name).ids(data)) == data


@pytest.mark.slow
@pytest.mark.parametrize("name", ["b16", "b16-v8", "b48-v16"])
def test_a_hundred_megabytes_of_one_letter_take_linear_time(name: str) -> None:
    seconds = []
    for size in (10**7, 10**8):
        data = b"a" * size
        before = time.process_time()
        ids = fitted(name).ids(data)
        assert fitted(name).data(ids) == data
        seconds.append(time.process_time() - before)
    assert seconds[1] < 20 * seconds[0] + 1


@pytest.fixture(scope="module")
def source() -> Source:
    return python_source()


@pytest.mark.slow
def test_code_packs_into_words_as_the_sheet_asks(source: Source) -> None:
    assert sum(map(len, source.training)) >= 6_000_000 and len(source.heldout) > 1_000_000
    text = source.heldout[:2_000_000]
    packed = []
    for bits in (14, 16, 18, 20, 24, 32, 48):
        model = Fixed() if bits <= 20 else Counts()
        tokenizer = Config(bits=bits, token_bits=bits, model=model).build().fit(source.training)
        packed.append(16 / bits * len(text) / tokenizer.count(text))
    assert packed[1] >= 3.9
    assert packed == sorted(packed)


@pytest.mark.slow
def test_a_table_is_as_quick_as_the_sheet_asks(source: Source) -> None:
    tokenizer, data = smalti.load("equal-info"), source.heldout
    ids = tokenizer.ids(data)
    assert tokenizer.data(ids) == data
    encode, decode = best(lambda: tokenizer.ids(data), lambda: tokenizer.data(ids))
    assert len(data) / encode >= 2e6 and len(data) / decode >= 50e6


# --- the table that ships --------------------------------------------------------------------------------------------


def test_the_shipped_table_knows_prose_and_code() -> None:
    tokenizer = smalti.load("equal-info")
    assert isinstance(tokenizer, EqualInfoTokenizer) and tokenizer.vocab == (65536,)
    text = (Path(smalti.__file__).parent / "folder.py").read_bytes()
    assert len(text) / tokenizer.count(text) > 3.5
    for data in AWKWARD:
        assert tokenizer.decode(tokenizer.encode(data)) == [data]


@pytest.mark.slow
def test_the_shipped_table_is_what_its_recipe_makes() -> None:
    texts = Path(__file__).resolve().parents[4] / "shared" / "data" / "text"
    if not texts.is_dir():
        pytest.skip(f"no data sets at {texts}")
    shipped = smalti.load("equal-info")
    made = EqualInfoTokenizer.Config(model=Fixed(source=recipes.equal_info.SOURCE)).build()
    assert made.fit(recipes.equal_info.samples(texts)).codes_hash == shipped.codes_hash
    heldout = (texts / recipes.equal_info.HELD_OUT).read_bytes()
    assert f"{len(heldout) / shipped.count(heldout):.2f} on WikiText-2" in recipes.equal_info.card(shipped, texts)
