"""The contract of tokenizers of bytes: any bytes come in, in any blocks, and what is promised comes back."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from smalti.errors import CheckpointError, ConfigError, SmaltiError
from smalti.testing.expect import UNKNOWN_FIELD, expect, expect_error, switched
from smalti.text.base import IdArray, TextTokenizer
from smalti.tokens import Tokens, code_dtype

BLOCKS = (1, 2, 3, 7, 64, 1009, 65536)  # bytes at once, and ids at once
FEW = 400  # blocks that one sample is cut into at most
RESTARTS = 4  # per sample
RUN = 2**15  # of one byte; eight times as many must not take much more than eight times as long
SLACK = 1.0  # seconds


def check_text_tokenizer(tokenizer: TextTokenizer, *, seed: int = 0) -> None:
    """Runs the contract of `smalti.text.base.TextTokenizer` on one tokenizer.

    Args:
        tokenizer: any; it must not change.
        seed: of the random bytes.

    Raises:
        AssertionError: with what was expected and what came.
    """
    expect(tokenizer.modality in ("text", "executable"), f"modality is {tokenizer.modality!r}")
    expect(len(tokenizer.vocab) == 1, f"tokens have one slot, vocab is {tokenizer.vocab}")
    before = tokenizer.codes_hash
    samples = {**adversarial(seed), **{f"example {i}": x for i, x in enumerate(tokenizer.example(2, seed)["x"])}}
    data = {name: x.encode() if isinstance(x, str) else bytes(x) for name, x in samples.items()}
    ids = {name: _check_ids(tokenizer, name, x) for name, x in data.items()}
    _check_lossless(tokenizer, data, ids)
    for name, x in data.items():
        _check_encoder(tokenizer, name, x, ids[name])
        _check_decoder(tokenizer, name, ids[name])
    _check_side_by_side(tokenizer, data, ids)
    _check_forms(tokenizer, data, ids)
    _check_refusals(tokenizer)
    _check_time(tokenizer)
    _check_saved(tokenizer, data, ids)
    expect(tokenizer.codes_hash == before, "encoding or decoding changes the codes hash")


def check_text(system: type[TextTokenizer], *, seed: int = 0) -> None:
    """Runs the contract on the tokenizer of a class's tiny configuration."""
    tokenizer = system.Config.tiny().build()
    expect(isinstance(tokenizer, system), f"Config.tiny().build() gives a {type(tokenizer).__name__}")
    assert isinstance(tokenizer, system)
    check_text_tokenizer(tokenizer, seed=seed)
    expect_error(lambda: system.Config(**UNKNOWN_FIELD), "an unknown field of Config", ConfigError)


def adversarial(seed: int = 0) -> dict[str, bytes]:
    """Bytes that tokenizers get wrong, by what they are."""
    rng = np.random.default_rng(seed)
    every = bytes(range(256))
    prose = "Grüße, 世界! Ελληνικά, русский, עברית, हिन्दी … naïve 👩\u200d👧 e\u0301 \u00a0 \ufeff \ufffd \U0010ffff\n"
    specials = "<|endoftext|><|start|><|end|><pad><s></s><unk><mask>[CLS][SEP][MASK]<think></think>\u2581\u0120"
    return {
        "no bytes": b"",
        "one NUL": b"\0",
        "NULs": b"\0" * 3000,
        "every byte": every,
        "every byte backwards": every[::-1],
        "every byte doubled": bytes(value for value in every for _ in range(2)),
        "bytes that are no UTF-8": b"\xff\xfe\xc3(\xc0\x80\xed\xa0\x80\xf4\x90\x80\x80\xf8\x88\x80\x80\x80",
        "a cut-off character": "€".encode()[:2],
        "a cut-off emoji": b"ok " + "👍".encode()[:3],
        "a late continuation": b"abc\x80\x80 def\xbf",
        "many scripts": prose.encode() * 3,
        "many scripts in UTF-16": prose.encode("utf-16-le"),
        "text of special tokens": specials.encode(),
        "half a special token": specials.encode()[:9],
        "blanks": b" " * 500 + b"\t\t\r\n\n\r" + b"  x  y\n\n\n",
        "one letter": b"a" * 5000,
        "two letters": b"ab" * 2500 + b"a",
        "one character": "é".encode() * 1500,
        "a long word": bytes(rng.integers(97, 123, 3000, np.uint8)),
        "an executable's head": b"\x7fELF\x02\x01\x01" + b"\0" * 9 + rng.bytes(64) + b"\0" * 900,
        "random bytes": rng.bytes(6000),
        "random letters": bytes(rng.integers(97, 100, 4000, np.uint8)),
    }


# --- ids and bytes ---------------------------------------------------------------------------------------------------


def _check_ids(tokenizer: TextTokenizer, name: str, data: bytes) -> IdArray:
    ids = tokenizer.ids(data)
    expect(isinstance(ids, np.ndarray) and ids.ndim == 1, f"{name}: ids must be an array of one axis")
    expect(np.issubdtype(ids.dtype, np.integer), f"{name}: ids are {ids.dtype}")
    in_range = not len(ids) or 0 <= int(ids.min()) <= int(ids.max()) < tokenizer.vocab[0]
    expect(in_range, f"{name}: ids reach beyond the vocabulary of {tokenizer.vocab[0]}")
    expect(len(ids) > 0 or not data, f"{name}: {len(data)} bytes became no ids")
    expect(np.array_equal(tokenizer.ids(data), ids), f"{name}: encoding twice gives other ids")
    expect(tokenizer.count(data) == len(ids), f"{name}: count says {tokenizer.count(data)}, there are {len(ids)} ids")
    return ids


def _check_lossless(tokenizer: TextTokenizer, data: Mapping[str, bytes], ids: Mapping[str, IdArray]) -> None:
    came = {name: tokenizer.data(ids[name]) for name in data}
    lost = [name for name in data if came[name] != data[name]]
    for name in lost:
        expect(not tokenizer.lossless, f"{name}: {data[name][:40]!r} came back as {came[name][:40]!r}: not lossless")
    expect(tokenizer.lossless or bool(lost), "it says that it is not lossless, but every sample came back")


def _check_encoder(tokenizer: TextTokenizer, name: str, data: bytes, ids: IdArray) -> None:
    for size in BLOCKS:
        if len(data) > FEW * size:
            continue
        encoder = tokenizer.stream_encoder()
        expect(encoder.position == 0, f"{name}: a new encoder is at {encoder.position}")
        parts: list[IdArray] = []
        marks, given = [(0, 0)], 0  # (byte, ids before it)
        for start in range(0, len(data), size):
            parts.append(encoder.push(memoryview(data)[start : start + size]))
            given += len(parts[-1])
            low, high = marks[-1][0], min(start + size, len(data))
            expect(low <= encoder.position <= high, f"{name}: position {encoder.position} is outside {low}..{high}")
            if encoder.position > low:
                marks.append((encoder.position, given))
        parts.append(encoder.finish())
        whole = np.concatenate(parts)
        expect(np.array_equal(whole, ids), f"{name}: blocks of {size} bytes give other ids than the whole")
        _check_restarts(tokenizer, name, data, ids, marks)


def _check_restarts(
    tokenizer: TextTokenizer, name: str, data: bytes, ids: IdArray, marks: list[tuple[int, int]]
) -> None:
    """An encoder that starts where another stands gives what is left."""
    inner = [mark for mark in marks if 0 < mark[0] < len(data)]
    for byte, given in inner[:: max(1, len(inner) // RESTARTS)]:
        rest = tokenizer.ids(data[byte:])
        expect(
            np.array_equal(rest, ids[given:]),
            f"{name}: an encoder that starts at its position {byte} does not give the ids after the {given} before it",
        )


def _check_decoder(tokenizer: TextTokenizer, name: str, ids: IdArray) -> None:
    whole = tokenizer.data(ids)
    for size in BLOCKS:
        if len(ids) > FEW * size:
            continue
        decoder = tokenizer.stream_decoder()
        parts = [decoder.push(ids[start : start + size]) for start in range(0, len(ids), size)]
        expect(
            b"".join([*parts, decoder.finish()]) == whole,
            f"{name}: blocks of {size} ids give other bytes than the whole",
        )


def _check_side_by_side(tokenizer: TextTokenizer, data: Mapping[str, bytes], ids: Mapping[str, IdArray]) -> None:
    """Encoders of different samples do not disturb one another, neither in turns nor in threads."""
    name, other = "many scripts", "random bytes"
    one, two = tokenizer.stream_encoder(), tokenizer.stream_encoder()
    mixed: list[IdArray] = []
    for start in range(0, len(data[other]), 50):
        mixed.append(one.push(data[name][start : start + 50]))
        two.push(data[other][start : start + 50])
    expect(np.array_equal(np.concatenate([*mixed, one.finish()]), ids[name]), "two encoders disturb one another")
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(tokenizer.ids, data.values()))
    expect(
        all(np.array_equal(result, ids[name]) for name, result in zip(data, results, strict=True)),
        "encoding in several threads gives other ids",
    )


# --- Tokens ----------------------------------------------------------------------------------------------------------


def _check_forms(tokenizer: TextTokenizer, data: Mapping[str, bytes], ids: Mapping[str, IdArray]) -> None:
    names = list(data)
    listed = tokenizer.encode([data[name] for name in names])
    expect(
        isinstance(listed, list) and len(listed) == len(names), "a list of samples must give a list of as many Tokens"
    )
    for name, tokens in zip(names, listed, strict=True):
        expect(tokens.codes.shape == (1, len(ids[name]), 1), f"{name}: codes have shape {tuple(tokens.codes.shape)}")
        expect(tokens.only.vocab == tokenizer.vocab, f"{name}: Tokens have vocabulary {tokens.only.vocab}")
        expect(np.array_equal(tokens.codes[0, :, 0].numpy(), ids[name]), f"{name}: encode gives other ids than ids")
        expect(tokens.equal(Tokens.unpack(tokens.pack())), f"{name}: pack and unpack do not return the tokens")
        values, _ = tokens.ragged()
        expect(values.dtype == code_dtype(tokenizer.vocab), f"{name}: ragged codes are {values.dtype}")
        expect(np.array_equal(values, ids[name]), f"{name}: ragged codes are others")
    text = "naïve – 世界"
    single = tokenizer.encode(text)
    for form in (text.encode(), bytearray(text.encode()), memoryview(text.encode())):
        expect(single.equal(tokenizer.encode(form)), f"a {type(form).__name__} gets other codes than its str")
    batch = Tokens.cat(listed)
    whole = [tokenizer.data(ids[name]) for name in names]
    expect(tokenizer.decode(batch) == whole, "decoding a padded batch differs from decoding each sample")
    expect(tokenizer.decode(listed) == whole, "decoding a list differs from decoding each sample")
    texts = tokenizer.decode(batch, output="text")
    expect(texts == [x.decode("utf-8", "replace") for x in whole], 'output="text" is not the bytes as UTF-8')


def _check_refusals(tokenizer: TextTokenizer) -> None:
    untyped: Any = tokenizer  # for what a type checker would refuse
    for wrong in (3, None, 2.5, [3], [b"ok", None], {"x": b""}):
        expect_error(lambda: untyped.encode(wrong), f"{wrong!r} as samples")  # noqa: B023  (called at once)
    expect_error(lambda: tokenizer.encode("\ud800"), "a str without a UTF-8 form")
    expect_error(lambda: tokenizer.encode(b"x", no_such_condition=1), "an unknown condition")
    expect_error(lambda: untyped.encode(b"x", object()), "options of another system", ConfigError)
    expect_error(lambda: untyped.decode("tokens"), "a str instead of tokens")
    tokens = tokenizer.encode(b"some text")
    expect_error(lambda: tokenizer.decode(tokens, output="no such output"), "an unknown output", ConfigError)
    (size,) = tokenizer.vocab
    for beyond in (size, size + 1000, -1):
        expect_error(lambda: tokenizer.data(np.array([beyond])), f"the id {beyond} of {size}")  # noqa: B023
        wrong_codes = torch.full((1, 3, 1), beyond)
        expect_error(lambda: tokenizer.decode(Tokens.of(wrong_codes, (size,))), f"the code {beyond} of {size}")  # noqa: B023
    other = Tokens.of(tokens.codes, (size + 1,))
    expect_error(lambda: tokenizer.decode(other), "tokens of another vocabulary")
    grid = Tokens.of(torch.zeros(1, 2, 2, 1, dtype=torch.int64), (size,))
    expect_error(lambda: tokenizer.decode(grid), "tokens on a grid")


def _check_time(tokenizer: TextTokenizer) -> None:
    """Eight times the bytes take about eight times as long, in one run of a letter or of a pattern."""
    for pattern in (b"a", b"ab", b"\0"):
        times = []
        for size in (RUN, 8 * RUN):
            data = pattern * (size // len(pattern))
            began = time.perf_counter()
            tokenizer.ids(data)
            times.append(time.perf_counter() - began)
        expect(times[1] <= 24 * times[0] + SLACK, f"a long run of {pattern!r} takes more than linear time: {times} s")


# --- folders ---------------------------------------------------------------------------------------------------------


def _check_saved(tokenizer: TextTokenizer, data: Mapping[str, bytes], ids: Mapping[str, IdArray]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = tokenizer.save(Path(folder) / "saved")
        again = type(tokenizer).load(path)
        expect(again.save(path) == path, "a saved folder can't be replaced")
    expect(again.codes_hash == tokenizer.codes_hash, "the codes hash changes when saved and loaded")
    expect(again.vocab == tokenizer.vocab, "the vocabulary changes when saved and loaded")
    for name, x in data.items():
        expect(np.array_equal(again.ids(x), ids[name]), f"{name}: ids change when saved and loaded")
        same = again.data(ids[name]) == tokenizer.data(ids[name])
        expect(same, f"{name}: decoding changes when saved and loaded")
    for what, other in _variants(tokenizer):
        same = all(np.array_equal(_ids_of(other, x), ids[name]) for name, x in data.items())
        expect(same or other.codes_hash != tokenizer.codes_hash, f"another {what} gives other ids under the same hash")
    _check_tensors(tokenizer)


def _check_tensors(tokenizer: TextTokenizer) -> None:
    """Tensors that were changed are refused, or are another tokenizer's; missing ones are refused."""
    tensors = tokenizer.tensors()
    build = type(tokenizer).from_tensors
    for key, tensor in tensors.items():
        rest = {name: value for name, value in tensors.items() if name != key}
        expect_error(lambda: build(tokenizer.config, rest), f"tensors without {key}", CheckpointError)  # noqa: B023
        if not tensor.numel():
            continue
        try:
            other = build(tokenizer.config, {**rest, key: _nudged(tensor)})
        except CheckpointError:
            continue
        expect(other.codes_hash != tokenizer.codes_hash, f"the codes hash does not see a changed {key}")


def _variants(tokenizer: TextTokenizer) -> Iterator[tuple[str, TextTokenizer]]:
    """The same tensors under a Config with one switch turned, where they still fit."""
    for path, config in switched(tokenizer.config):
        try:
            yield path, type(tokenizer).from_tensors(config, tokenizer.tensors())
        except (SmaltiError, ValueError, KeyError, RuntimeError):
            continue


def _ids_of(tokenizer: TextTokenizer, data: bytes) -> IdArray:
    try:
        return tokenizer.ids(data)
    except SmaltiError:
        return np.zeros(0, np.int64)


def _nudged(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor with its first number changed."""
    changed = tensor.clone()
    first = changed.view(-1)[:1]
    first.copy_(~first if tensor.dtype == torch.bool else first + 1)
    return changed
