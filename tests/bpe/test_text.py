"""Text as `tokenizers` encodes it: ids, spans of characters, streams; for every step that the engine does itself."""

from __future__ import annotations

import json
import random
from functools import cache
from typing import Any

import numpy as np
import pytest

from smalti.bpe.pretokenizers import Unsupported
from smalti.bpe.text import TextEngine
from smalti.bpe.tokenizer_json import read

tokenizers = pytest.importorskip("tokenizers")
pre, norm, dec = tokenizers.pre_tokenizers, tokenizers.normalizers, tokenizers.decoders

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
O200K = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
DEEPSEEK = (
    r"\p{N}{1,3}",
    "[一-龥぀-ゟ゠-ヿ]+",
    r"[!-/:-~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
)
CORPUS = [
    "The quick brown fox jumps over the lazy dog. It's they're I'll I'D don't we'VE 'ſ 'K",
    "def f(x):\n    return [t for t in x.split() if t]\r\n\r\n\t\tpass   # 3.14159, 1,000,000 2024-05-01",
    "Straße, café, naïve, Übergröße – 25 % off! ﬁ ½ Å Ǆ ǅ ʰ e\u0301 \u0301\u0301X  \u00a0\u2003 \u3000x",
    "Москва не сразу строилась. 東京は日本の首都です。한국어도 있어요. مرحبا بالعالم हिन्दी में ไทย",
    "aaaa aaaaaaaa aaa aa a ▁▁ ▁x <s>hello</s> <|mid|> 🙂👍🏽👨‍👩‍👧 ١٢٣ Ⅷ\x00\x01\x7f\x85\u200b\ufeff",
    "HTTPServer XMLHttpRequest camelCase snake_case/path/to//file \n \n\n  \n a  \n",
]
POOL = "".join(CORPUS) + "   \n\n''"


def split(pattern: str, behavior: str = "isolated", invert: bool = False) -> Any:
    return pre.Split(tokenizers.Regex(pattern), behavior, invert)


BYTE = pre.ByteLevel(add_prefix_space=False, use_regex=False)
BYTE_LEVEL: dict[str, Any] = {
    "gpt2": pre.ByteLevel(add_prefix_space=False),
    "prefix": pre.ByteLevel(add_prefix_space=True),
    "no regex": BYTE,
    "llama3": pre.Sequence([split(LLAMA3), BYTE]),
    "o200k": pre.Sequence([split(O200K), BYTE]),
    "deepseek": pre.Sequence([*map(split, DEEPSEEK), BYTE]),
    "digits": pre.Sequence([pre.Digits(individual_digits=True), pre.ByteLevel(add_prefix_space=False)]),
    "numbers": pre.Sequence([pre.Digits(individual_digits=False), pre.ByteLevel(add_prefix_space=False)]),
    **{
        f"{behavior} {invert}": pre.Sequence([split(r"\s+|[,.]", behavior, invert), BYTE])
        for behavior in ("isolated", "contiguous", "merged_with_previous", "merged_with_next")
        for invert in (False, True)
    },
    "string": pre.Sequence([pre.Split(" ", "merged_with_next"), BYTE]),
}
JOIN = [dec.Replace("▁", " "), dec.ByteFallback(), dec.Fuse()]
TEXT: dict[str, tuple[Any, Any, Any]] = {
    "metaspace first": (None, pre.Metaspace(prepend_scheme="first"), dec.Sequence([*JOIN, dec.Strip(" ", 1, 0)])),
    "metaspace always": (None, pre.Metaspace(prepend_scheme="always"), dec.Metaspace()),
    "metaspace never": (None, pre.Metaspace(prepend_scheme="never", split=False), dec.Sequence(JOIN)),
    "llama2": (
        norm.Sequence([norm.Prepend("▁"), norm.Replace(" ", "▁")]), None, dec.Sequence([*JOIN, dec.Strip(" ", 1, 0)]),
    ),
    "gemma": (norm.Replace(" ", "▁"), pre.Split(" ", "merged_with_previous"), dec.Sequence(JOIN)),
    "plain": (None, split(r"\s+"), dec.Fuse()),
}  # fmt: skip


@cache
def trained(kind: str, name: str, options: str = "{}") -> Any:
    """A tokenizer of `tokenizers`, trained on the corpus."""
    given = json.loads(options)
    specials = [
        "<unk>",
        "<s>",
        "</s>",
        *([f"<0x{byte:02X}>" for byte in range(256)] if given.get("byte_fallback") else []),
    ]
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token="<unk>" if kind == "text" else None, **given))
    if kind == "bytes":
        tokenizer.pre_tokenizer, tokenizer.decoder = BYTE_LEVEL[name], dec.ByteLevel()
    else:
        normalizer, tokenizer.pre_tokenizer, tokenizer.decoder = TEXT[name]
        if normalizer is not None:
            tokenizer.normalizer = normalizer
    alphabet = pre.ByteLevel.alphabet() if kind == "bytes" else []
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=900, min_frequency=1, special_tokens=specials, initial_alphabet=alphabet, show_progress=False,
        limit_alphabet=60 if kind == "text" else 1000,
    )  # fmt: skip
    tokenizer.train_from_iterator(CORPUS * 2, trainer)
    tokenizer.add_tokens(
        [tokenizers.AddedToken("<|mid|>", normalized=False), tokenizers.AddedToken("lazy dog", normalized=False)]
    )
    return tokenizer


def samples(seed: int, count: int = 60) -> list[str]:
    rng = random.Random(seed)
    made = ["".join(rng.choice(POOL) for _ in range(rng.randrange(60))) for _ in range(count)]
    return ["", " ", "\n", *CORPUS, *made, " ".join(CORPUS), "a" * 300, " " * 300]


def check(tokenizer: Any, special: bool) -> None:
    engine = TextEngine(read(tokenizer.to_str()))
    tokenizer.encode_special_tokens = not special
    for text in samples(1):
        theirs = tokenizer.encode(text, add_special_tokens=False)
        ours = engine.encode(text.encode(), special=special, spans=True)
        assert ours.ids.tolist() == theirs.ids, text
        assert ours.spans.tolist() == [list(span) for span in theirs.offsets], text
        assert engine.encode(text.encode(), special=special).ids.tolist() == theirs.ids


@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize("name", BYTE_LEVEL)
def test_byte_level_ids_and_spans_are_those_of_tokenizers(name: str, special: bool) -> None:
    check(trained("bytes", name), special)


@pytest.mark.parametrize("options", ["{}", '{"byte_fallback": true}', '{"fuse_unk": true}'])
@pytest.mark.parametrize("name", TEXT)
def test_text_ids_and_spans_are_those_of_tokenizers(name: str, options: str) -> None:
    check(trained("text", name, options), True)


def test_a_piece_that_is_a_token_is_taken_whole_where_merges_are_ignored() -> None:
    tokenizer = trained("bytes", "gpt2", '{"ignore_merges": true}')
    data = json.loads(tokenizer.to_str())
    del data["model"]["merges"][5::3]
    made = {token for token in data["model"]["vocab"] if len(token) == 1}
    kept = []
    for left, right in data["model"]["merges"]:
        kept += [[left, right]] if {left, right} <= made else []
        made |= {left + right} if {left, right} <= made else set()
    data["model"]["merges"] = kept
    check(tokenizers.Tokenizer.from_str(json.dumps(data)), True)


@pytest.mark.parametrize("name", BYTE_LEVEL)
def test_open_text_gives_the_ids_of_the_whole(name: str) -> None:
    engine = TextEngine(read(trained("bytes", name).to_str()))
    stream(engine)


@pytest.mark.parametrize("name", TEXT)
def test_open_text_of_characters_gives_the_ids_of_the_whole(name: str) -> None:
    stream(TextEngine(read(trained("text", name, '{"byte_fallback": true}').to_str())))


def stream(engine: TextEngine) -> None:
    rng = random.Random(2)
    for text in samples(3, 20):
        data = (text * 3).encode()
        if rng.random() < 0.5:
            data = bytes(byte if rng.random() < 0.9 else rng.randrange(256) for byte in data)
        ids, waiting, place, opening = [], b"", 0, "sample"
        while place < len(data):
            size = rng.randrange(1, 40)
            waiting, place = waiting + data[place : place + size], place + size
            part = engine.encode_open(waiting, special=True, opening=opening)
            ids.append(part.ids)
            waiting, opening = waiting[part.stop :], part.following
        ids.append(engine.encode(waiting, special=True, opening=opening).ids)
        assert np.concatenate(ids).tolist() == engine.encode(data, special=True).ids.tolist(), data


def test_steps_that_are_not_ours_are_refused_by_name() -> None:
    data = json.loads(trained("bytes", "gpt2").to_str())
    for change, message in (
        ({"normalizer": {"type": "NFC"}}, "NFC"),
        ({"pre_tokenizer": {"type": "Whitespace"}}, "Whitespace"),
        ({"decoder": {"type": "CTC"}}, "CTC"),
    ):
        with pytest.raises(Unsupported, match=message):
            TextEngine(read(json.dumps({**data, **change})))


def test_decoding_gives_every_byte_back_where_nothing_is_said_to_be_lost() -> None:
    rng = random.Random(4)
    for kind, name, options in (("bytes", "llama3", "{}"), ("text", "plain", '{"byte_fallback": true}')):
        data = json.loads(trained(kind, name, options).to_str())
        if kind == "text":
            data["decoder"] = {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]}
        engine = TextEngine(read(json.dumps(data)))
        assert engine.losses() == []
        for text in samples(5):
            sample = bytes(byte if rng.random() < 0.9 else rng.randrange(256) for byte in text.encode())
            assert b"".join(engine.tokens[token] for token in engine.encode(sample).ids) == sample
