"""Binary BPE against Hugging Face's engine, its own smaller members, and damaged files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer as HuggingFace

from smalti.bpe import Training
from smalti.bpe.splitters import EntropyFilter, NullDelimited
from smalti.errors import CheckpointError, ConfigError, InputError
from smalti.systems import load
from smalti.text.binary_bpe import GLYPHS, SPECIALS, BinaryBPE, Whitespaces, is_of_bytes, padding
from smalti.tokens import Tokens


def executable(seed: int, size: int) -> bytes:
    """Bytes that repeat themselves as machine code does: opcodes, zero runs, strings, noise."""
    generator = np.random.default_rng(seed)
    words = [generator.integers(0, 256, generator.integers(1, 8), np.uint8).tobytes() for _ in range(200)]
    words += [bytes(n) for n in (3, 8, 17, 40)] + [b"error: %s\n\0", b"  \t", b"<|end|>", "§é".encode()]
    picked = generator.zipf(1.2, size) % len(words)
    return b"".join(words[index] for index in picked)[:size]


def fitted(**fields: Any) -> BinaryBPE:
    fields.setdefault("training", Training(vocab=900, min_count=2))
    tokenizer = BinaryBPE.Config(**fields).build()
    return tokenizer.fit([executable(seed, 30_000) for seed in range(3)])


TRAINED = fitted()


class TestBytes:
    @given(st.binary(max_size=300))
    @settings(max_examples=200, deadline=None)
    def test_any_bytes_come_back(self, data: bytes) -> None:
        assert TRAINED.data(TRAINED.ids(data)) == data

    @pytest.mark.parametrize(
        "data",
        [b"", b"\0", bytes(range(256)), b"<|end|><|pad|>", bytes(100_000), b"\xff" * 99_999, executable(9, 50_000)],
    )
    def test_awkward_bytes_come_back(self, data: bytes) -> None:
        tokens = TRAINED.encode(data)
        assert TRAINED.decode(tokens) == [data]
        assert not set(tokens.codes.flatten().tolist()) & set(TRAINED.special)

    def test_special_tokens_decode_to_nothing(self) -> None:
        ids = np.array([0, *TRAINED.ids(b"abc"), 1])
        assert TRAINED.data(ids) == b"abc"

    def test_ids_outside_the_vocabulary_are_refused(self) -> None:
        with pytest.raises(InputError, match="id 900 at 1"):
            TRAINED.data(np.array([5, 900]))

    @pytest.mark.parametrize("ids", [np.array([8.0]), np.array([True]), np.array([[8]]), 8])
    def test_ids_that_are_no_integers_are_refused(self, ids: Any) -> None:
        with pytest.raises(InputError, match="ids are integers"):
            TRAINED.data(ids)

    def test_many_ids_are_decoded_in_parts(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("smalti.text.base.AT_ONCE", 7)
        data = executable(5, 3_000)
        assert TRAINED.data(TRAINED.ids(data)) == data


class TestTraining:
    def test_ids_are_laid_out_as_published(self) -> None:
        tokenizer = fitted(specials=("<|file|>",), glyphs=True)
        assert [tokenizer.spellings[i].decode() for i in range(7)] == list(SPECIALS)
        assert [tokenizer.spellings[7 + byte] for byte in range(256)] == [bytes([byte]) for byte in range(256)]
        assert [tokenizer.spellings[263 + i].decode() for i in range(49)] == list(GLYPHS)
        assert tokenizer.spellings[312] == b"<|file|>" and tokenizer.special == (*range(7), 312)
        assert tokenizer.merges.results[0] == 313
        assert tokenizer.vocab == (900,)

    def test_no_token_ends_in_white_space_but_runs_of_it(self) -> None:
        learned = [TRAINED.spellings[token] for token in TRAINED.merges.results]
        assert not any(each[-1:] in b" \t\n\r\v\f" and each.strip(b" \t\n\r\v\f") for each in learned)
        strict = fitted(whitespace=Whitespaces(with_letters=True, leading=False))
        for token in strict.merges.results:
            spelled = strict.spellings[token]
            inside = spelled.strip(b" \t\n\r\v\f")
            assert inside in (b"", spelled)
            assert inside.split() in ([], [inside]) or any(65 <= byte | 32 <= 122 for byte in inside)

    def test_rare_data_is_padded_with_white_space(self) -> None:
        tokenizer = BinaryBPE.Config(training=Training(vocab=280, min_count=2)).build().fit([b"abababab"])
        spelled = [tokenizer.spellings[token] for token in range(263, 280)]
        assert spelled[:2] == [b"ab", b"abab"] and spelled[2:7] == [b"  ", b"\t\t", b"\n\n", b"\r\r", b"   "]
        assert padding([b"  "], 2) == [b"\t\t", b"\n\n"]

    def test_merges_do_not_cross_chunks_or_runs_of_nul(self) -> None:
        tokenizer = BinaryBPE.Config(training=Training(vocab=280), splitter=NullDelimited()).build()
        tokenizer.fit([b"ab\0\0ab\0\0" * 40])
        spelled = [tokenizer.spellings[token] for token in tokenizer.merges.results]
        assert sorted(spelled) == [b"\0\0", b"ab"]
        chunked = BinaryBPE.Config(training=Training(vocab=280), chunk=2).build().fit([b"abcd" * 40])
        assert sorted(chunked.spellings[token] for token in chunked.merges.results) == [b"ab", b"cd"]

    def test_the_entropy_filter_drops_noise_and_zeros(self) -> None:
        noise = np.random.default_rng(0).integers(0, 256, 8192, np.uint8).tobytes()
        config = BinaryBPE.Config(training=Training(vocab=300, min_count=1), entropy=EntropyFilter(), padded=False)
        assert len(config.build().fit([noise, bytes(8192)]).merges) == 0

    def test_memory_changes_no_merge(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("smalti.bpe.trainer.OVERHEAD", 0)
        config = BinaryBPE.Config(training=Training(vocab=900, min_count=2))
        tight = config.build().fit([executable(seed, 30_000) for seed in range(3)], memory=400_000)
        assert np.array_equal(tight.merges.pairs, TRAINED.merges.pairs)

    def test_progress_is_reported(self) -> None:
        seen: list[tuple[int, int]] = []
        BinaryBPE.Config(training=Training(vocab=280), padded=False).build().fit(
            [executable(0, 9_000)], report=lambda done, total: seen.append((done, total))
        )
        assert seen[-1] == (17, 17)

    def test_a_vocabulary_without_room_is_refused(self) -> None:
        with pytest.raises(ConfigError, match="no room"):
            BinaryBPE.Config(training=Training(vocab=260)).build().fit([b"ab"])


class TestFamily:
    def test_smaller_members_are_prefixes(self) -> None:
        small = TRAINED.smaller(500)
        assert small.vocab == (500,)
        assert [small.spellings[i] for i in range(500)] == [TRAINED.spellings[i] for i in range(500)]
        assert np.array_equal(small.merges.pairs, TRAINED.merges.pairs[: len(small.merges)])
        again = BinaryBPE.Config(training=Training(vocab=500, min_count=2)).build()
        again.fit([executable(seed, 30_000) for seed in range(3)])
        data = executable(7, 20_000)
        assert np.array_equal(small.ids(data), again.ids(data))
        assert len(small.ids(data)) > len(TRAINED.ids(data))

    def test_impossible_sizes_are_refused(self) -> None:
        for size in (100, 901):
            with pytest.raises(ConfigError, match=f"not {size}"):
                TRAINED.smaller(size)


class TestFiles:
    @pytest.mark.parametrize("specials", [(), ("«", "»")])
    def test_exports_load_in_tokenizers_and_give_the_same_ids(self, specials: tuple[str, ...]) -> None:
        tokenizer = fitted(specials=specials)
        data = executable(11, 20_000).replace(b"<|end|>", b"<|x|>") + bytes(range(256))
        ids = tokenizer.ids(data).tolist()
        if not specials:
            theirs = HuggingFace.from_str(tokenizer.to_json("latin-1").decode())
            assert theirs.encode(data.decode("latin-1")).ids == ids
        for alphabet in ("gpt2", "latin-1", "escaped-latin-1")[0 if not specials else 2 :]:
            again = BinaryBPE.from_json(tokenizer.to_json(alphabet))  # type: ignore[arg-type]
            assert np.array_equal(again.ids(data), ids)
            assert again.data(again.ids(data)) == data
            assert again.special == tokenizer.special

    def test_special_tokens_that_look_like_bytes_are_refused_in_plain_latin1(self) -> None:
        with pytest.raises(ConfigError, match="same token"):
            fitted(specials=("«",)).to_json("latin-1")

    def test_special_tokens_that_look_like_bytes_are_saved_in_another_alphabet(self, tmp_path: Path) -> None:
        tokenizer = fitted(specials=("«",))
        folder = tokenizer.save(tmp_path / "saved")
        again = BinaryBPE.from_files(folder)
        data = "«quoted»".encode() + "«".encode("latin-1")
        assert np.array_equal(again.ids(data), tokenizer.ids(data)) and again.data(again.ids(data)) == data

    def test_transformers_encodes_utf8(self, tmp_path: Path) -> None:
        from transformers import PreTrainedTokenizerFast

        TRAINED.save(tmp_path / "saved")
        theirs = PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "saved" / "tokenizer.json"))
        text = "error: %s\n §é zwölf"
        assert theirs(text)["input_ids"] == TRAINED.ids(text.encode()).tolist()
        assert theirs.decode(theirs(text)["input_ids"]) == text

    def test_published_layouts_are_read(self) -> None:
        """Bytes first and special tokens last; and special tokens renumbered onto bytes, as in version 0.5.2."""
        data = executable(3, 5_000)
        latin = json.loads(TRAINED.to_json("latin-1"))
        shift = {text: (number - 7) % 900 for text, number in latin["model"]["vocab"].items()}
        for collision in (False, True):
            file = json.loads(json.dumps(latin))
            file["model"]["vocab"] = shift
            for place, added in enumerate(file["added_tokens"]):
                added["id"] = place if collision else shift[added["content"]]
            tokenizer = BinaryBPE.from_json(json.dumps(file).encode())
            assert tokenizer.ids(b"\0")[0] == 0 and tokenizer.special == tuple(range(893, 900))
            assert np.array_equal(tokenizer.ids(data), TRAINED.ids(data) - 7)
            assert tokenizer.data(tokenizer.ids(data)) == data

    def test_files_of_text_are_refused(self) -> None:
        file = json.loads(TRAINED.to_json("gpt2"))
        file["pre_tokenizer"]["use_regex"] = True
        with pytest.raises(CheckpointError, match="tokenizer-json"):
            BinaryBPE.from_json(json.dumps(file).encode())

    def test_only_a_pre_tokenizer_cuts_by_a_pattern(self) -> None:
        """ByteLevel's default is to do so, and a decoder that says so means nothing by it."""
        file = json.loads(TRAINED.to_json("gpt2"))
        data = executable(3, 5_000)
        file["decoder"] = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
        tokenizer = BinaryBPE.from_json(json.dumps(file).encode())
        assert np.array_equal(tokenizer.ids(data), TRAINED.ids(data))
        del file["pre_tokenizer"]["use_regex"]
        with pytest.raises(CheckpointError, match="tokenizer-json"):
            BinaryBPE.from_json(json.dumps(file).encode())

    def test_a_split_is_left_out_and_said(self, caplog: pytest.LogCaptureFixture) -> None:
        file = json.loads(TRAINED.to_json("gpt2"))
        split = {"type": "Split", "pattern": {"Regex": "e"}, "behavior": "Isolated", "invert": False}
        file["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split, file["pre_tokenizer"]]}
        tokenizer = BinaryBPE.from_json(json.dumps(file).encode())
        data = executable(3, 2_000)
        assert np.array_equal(tokenizer.ids(data), TRAINED.ids(data))
        assert "tokenizer-json" in caplog.text

    def test_bytes_keep_their_tokens_where_a_special_token_is_spelled_as_one(self) -> None:
        data = json.loads(TRAINED.to_json("latin-1"))
        token = data["model"]["vocab"]["\xab"]
        data["added_tokens"].append({**data["added_tokens"][0], "id": token, "content": "\xab"})
        loaded = BinaryBPE.from_json(json.dumps(data).encode())
        assert loaded.data(loaded.ids(b"\xab\0q")) == b"\xab\0q"

    def test_a_file_of_bytes_is_known_as_one(self, tmp_path: Path) -> None:
        data = executable(11, 20_000)
        for alphabet in ("latin-1", "gpt2"):
            path = tmp_path / f"{alphabet}.json"
            path.write_bytes(TRAINED.to_json(alphabet))  # type: ignore[arg-type]
            loaded = load(path)
            assert type(loaded).__name__ == ("BinaryBPE" if alphabet == "latin-1" else "JsonTokenizer")
            assert loaded.data(loaded.ids(data)) == data
        assert not is_of_bytes(b"no json")

    def test_a_folder_without_a_file_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match=r"holds no tokenizer\.json"):
            BinaryBPE.from_files(tmp_path)

    def test_changed_tensors_are_refused(self, tmp_path: Path) -> None:
        folder = TRAINED.save(tmp_path / "saved")
        assert BinaryBPE.load(folder).codes_hash == TRAINED.codes_hash
        state = load_file(folder / "model.safetensors")
        state["spellings"][-1] += 1
        save_file(state, folder / "model.safetensors")
        with pytest.raises(CheckpointError, match="is spelled"):
            BinaryBPE.load(folder)

    def test_the_shipped_vocabulary_works(self) -> None:
        shipped = load("binary-bpe")
        data = Path("/proc/self/exe").read_bytes()[:300_000]
        tokens = shipped.encode(data)
        assert isinstance(tokens, Tokens) and shipped.decode(tokens) == [data]
        assert len(data) / tokens.codes.shape[1] > 2
