"""VisualUnicode as a tokenizer: presets, fitting, what is lossless, its table, folders and published files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import smalti
from smalti.errors import CheckpointError, ConfigError, InputError
from smalti.text.visual_unicode import (
    Drawing,
    UnicodeVocabulary,
    VisualUnicode,
    given_table,
    random_table,
    top_ngrams,
)
from smalti.text.visual_unicode.files import write_vocabulary
from tests.text.visual_unicode.material import BEYOND, DATA, FONT, NGRAMS, SCRIPTS, small_vocabulary, tatoeba

QUICK = Drawing(font=FONT, size=4)  # 16 pixels


@pytest.fixture(scope="module")
def tokenizer() -> VisualUnicode:
    return VisualUnicode.from_ngrams(NGRAMS)


@pytest.fixture(scope="module")
def small() -> VisualUnicode:
    """With a table that is quick to draw."""
    vocabulary = small_vocabulary()
    return VisualUnicode(VisualUnicode.Config(size=len(vocabulary), drawing=QUICK, components=8), vocabulary)


def test_presets_are_the_published_vocabularies() -> None:
    presets: Any = VisualUnicode.presets
    assert {name: (config.size, config.drawing.size, config.components) for name, config in presets.items()} == {
        "bvv241-2-3": (65536, 32, 1024),
        "bvv241-max": (131072, 32, 1024),
        "bvv241-abs": (131072, 64, 4096),
    }
    assert presets["bvv241-2-3"].drawing.disturbance.rotation == 4
    assert presets["bvv241-max"].drawing.disturbance.rotation == 7


def test_without_ngrams_every_character_is_a_token() -> None:
    tokenizer = smalti.create("visual-unicode")
    assert tokenizer.vocab == (65536,) and tokenizer.vocabulary.merges == []
    tokens = tokenizer.encode("Straße 日本")
    assert tokens.only.codes[0, :, 0].tolist() == [ord(char) for char in "Straße 日本"]


def test_fitting_takes_the_ngrams_of_every_language(tokenizer: VisualUnicode) -> None:
    config = VisualUnicode.Config(ngram_lengths=(2, 3), ngram_top=4)
    english, russian = ["the other anthem", b"then they gathered"], ["все вместе", "вместе все"]
    fitted = config.build().fit({"en": english, "ru": russian})
    lists = [*top_ngrams(["the other anthem then they gathered"], (2, 3), 4), *top_ngrams(russian, (2, 3), 4)]
    expected = {ngram for each in lists for ngram in each}
    assert set(fitted.vocabulary.ngrams) == expected
    assert set(config.build().fit({"ru": russian}, common=["tion", "ing"]).vocabulary.ngrams) > {"tion", "ing"}
    mixed = config.build().fit([*english, *russian])
    assert len(mixed.vocabulary.ngrams) < len(expected)
    assert fitted.count(b"the other anthem") < len("the other anthem")


def test_fitting_takes_as_many_ngrams_as_there_is_room_for(caplog: pytest.LogCaptureFixture) -> None:
    languages = {
        str(start): [" ".join(chr(start + i) + chr(start + j) for i in range(60) for j in range(60))]
        for start in (0x4E00, 0x5E00, 0x6E00)
    }
    tokenizer = VisualUnicode.Config(ngram_top=None, ngram_lengths=(2,)).build().fit(languages)
    assert len(tokenizer.vocabulary.ngrams) == 8190 == 3 * 2730
    assert not caplog.records


def test_lossless_is_said_where_it_holds() -> None:
    data = BEYOND.encode() + b"\xff\x00<s>"
    for on_unk in ("unk", "surrogate-escape", "byte"):
        for keep_specials in (True, False):
            config = VisualUnicode.Config(on_unk=on_unk, keep_specials=keep_specials)
            tokenizer = VisualUnicode.from_ngrams(NGRAMS, config)
            (back,) = tokenizer.decode(tokenizer.encode(data))
            assert tokenizer.lossless == (back == data)
            assert (tokenizer.unknown is None) == (on_unk != "unk")


def test_special_tokens_may_be_left_out_of_text() -> None:
    tokenizer = VisualUnicode.from_ngrams(NGRAMS, VisualUnicode.Config(keep_specials=False))
    assert tokenizer.decode(tokenizer.encode("<s>the end</s>"), output="text") == ["the end"]


@pytest.mark.parametrize("text", [*SCRIPTS.values(), ""])
def test_text_of_the_basic_plane_comes_back(tokenizer: VisualUnicode, text: str) -> None:
    tokens = tokenizer.encode(text)
    assert tokens.only.vocab == (65536,)
    assert tokenizer.decode(tokens, output="text") == [text]


def test_ids_are_of_the_smallest_type(tokenizer: VisualUnicode) -> None:
    assert tokenizer.ids(b"the").dtype == np.uint16
    assert VisualUnicode.Config(on_unk="byte").build().ids(b"the").dtype == np.uint32


def test_the_table_is_drawn_once_and_embeds_tokens(small: VisualUnicode) -> None:
    table = small.table
    assert table.weight.shape == (len(small.tokens), 8) and small.table is table
    assert torch.allclose(table.weight.norm(dim=1), torch.ones(len(small.tokens)), atol=1e-4)
    assert not table.weight.requires_grad
    vectors = small.embed(small.encode("the end"))
    assert torch.equal(vectors[0], table.weight[small.ids(b"the end").astype(np.int64)])


def test_a_table_that_does_not_fit_is_refused(small: VisualUnicode) -> None:
    with pytest.raises(ConfigError, match="1097 ids"):
        small.use_table(random_table(100, 8))
    with pytest.raises(ConfigError, match="131072 ids, size is 1097"):
        VisualUnicode(small.config, UnicodeVocabulary.of_ngrams([], 131072))


def test_a_folder_keeps_codes_and_table(small: VisualUnicode, tmp_path: Path) -> None:
    text = "the anthem <s>"
    table = small.table
    again = smalti.load(small.save(tmp_path / "saved"))
    assert again.codes_hash == small.codes_hash and again.config == small.config
    assert torch.equal(again.encode(text).only.codes, small.encode(text).only.codes)
    assert torch.equal(again.table.weight, table.weight) and again.table.fingerprint == table.fingerprint


def test_a_table_that_was_changed_is_refused(small: VisualUnicode, tmp_path: Path) -> None:
    assert len(small.table) == small.vocab[0]
    folder = small.save(tmp_path / "saved")
    state = load_file(folder / "model.safetensors")
    state["table"][3, 0] += 0.5
    save_file(state, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="table was changed"):
        VisualUnicode.load(folder)


def test_a_table_that_was_left_out_is_drawn_again_or_refused(small: VisualUnicode, tmp_path: Path) -> None:
    table = small.table
    folder = small.save(tmp_path / "saved", table=False)
    assert "table" not in load_file(folder / "model.safetensors")
    again = VisualUnicode.load(folder)
    assert torch.allclose(again.table.weight, table.weight, atol=1e-5)
    other = VisualUnicode.load(folder)
    other.config = other.config.replace(drawing=Drawing(font=FONT, size=5))
    with pytest.raises(CheckpointError, match="differ"):
        _ = other.table
    with pytest.raises(CheckpointError, match="differ"):
        VisualUnicode.load(folder).use_table(given_table(table.weight))


def test_how_tokens_are_drawn_changes_no_code(tokenizer: VisualUnicode) -> None:
    other = VisualUnicode.from_ngrams(NGRAMS, VisualUnicode.Config(keep_specials=False))
    assert other.codes_hash == tokenizer.codes_hash
    for config in (VisualUnicode.Config(on_unk="byte"), VisualUnicode.Config(match_specials=False)):
        assert VisualUnicode.from_ngrams(NGRAMS, config).codes_hash != tokenizer.codes_hash
    assert VisualUnicode.from_ngrams(NGRAMS[1:]).codes_hash != tokenizer.codes_hash


def test_a_damaged_folder_is_refused(tokenizer: VisualUnicode, tmp_path: Path) -> None:
    folder = tokenizer.save(tmp_path / "saved", table=False)
    header = (folder / "config.json").read_text()
    (folder / "config.json").write_text(header.replace('"size": 65536', '"size": 131072'))
    with pytest.raises(CheckpointError):
        VisualUnicode.load(folder)
    (folder / "config.json").write_text(header.replace('"match_specials": true', '"match_specials": false'))
    with pytest.raises(CheckpointError, match="codes hash"):
        VisualUnicode.load(folder)


def published(folder: Path, table: torch.Tensor) -> None:
    (folder / "tokenizer.json").write_bytes(write_vocabulary(UnicodeVocabulary.of_ngrams(NGRAMS)))
    torch.save(table, folder / "normalized_embeddings_weights.pt")


def test_published_files_give_vocabulary_and_table(tokenizer: VisualUnicode, tmp_path: Path) -> None:
    weight = random_table(65536, 12).weight
    published(tmp_path, weight)
    for path in (tmp_path, tmp_path / "normalized_embeddings_weights.pt", tmp_path / "tokenizer.json"):
        loaded = VisualUnicode.from_files(path)
        assert loaded.codes_hash == tokenizer.codes_hash
        assert torch.equal(loaded.table.weight, weight) and loaded.config.components == 12
    assert torch.equal(smalti.load("visual-unicode", checkpoint=tmp_path).table.weight, weight)


def test_published_files_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    published(tmp_path, random_table(100, 12).weight)
    with pytest.raises(CheckpointError, match="100 rows"):
        VisualUnicode.from_files(tmp_path)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        VisualUnicode.from_official(None, {"weight": torch.zeros(65536, 4)})
    with pytest.raises(CheckpointError, match="one tensor"):
        VisualUnicode.from_official(
            {"model": {"type": "BPE", "vocab": {"<unk>": 0}}}, {"a": torch.zeros(1, 4), "b": torch.zeros(1, 4)}
        )


def test_text_that_is_none_is_refused(tokenizer: VisualUnicode) -> None:
    with pytest.raises(InputError, match="UTF-8"):
        tokenizer.encode("a\ud800")


@pytest.mark.skipif(not DATA.exists(), reason=f"no data at {DATA}")
def test_ngrams_make_real_text_shorter() -> None:
    corpora = tatoeba(("deu", "rus", "ara", "cmn"))
    train = {language: texts[::2] for language, texts in corpora.items()}
    heldout = {language: "\n".join(texts[1::2]) for language, texts in corpora.items()}
    fitted = VisualUnicode.Config().build().fit(train)
    ratios = {language: len(text) / fitted.count(text.encode()) for language, text in heldout.items()}
    assert ratios["deu"] > 1.6 and ratios["rus"] > 1.6 and ratios["ara"] > 1.4 and ratios["cmn"] > 1.1
