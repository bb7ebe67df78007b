"""The published files of a vocabulary: tokenizer.json, or vocab.json and merges.txt.

What is written loads in `tokenizers` and `transformers`, and gives the same ids there.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from smalti.errors import CheckpointError
from smalti.text.visual_unicode.vocabulary import SPECIALS, UNKNOWN, UnicodeVocabulary

TOKENIZER, VOCAB, MERGES, SETTINGS = "tokenizer.json", "vocab.json", "merges.txt", "tokenizer_config.json"
MODEL_OPTIONS = (
    "continuing_subword_prefix", "end_of_word_suffix", "dropout", "byte_fallback", "fuse_unk", "ignore_merges",
)  # fmt: skip
ADDED_OPTIONS = ("single_word", "lstrip", "rstrip")
NOTHING = (None, {"type": "Sequence", "normalizers": []}, {"type": "Sequence", "pretokenizers": []})


def read_vocabulary(path: str | Path) -> UnicodeVocabulary:
    """A published vocabulary.

    Args:
        path: a tokenizer.json, or a folder with one, or with vocab.json and merges.txt.

    Raises:
        CheckpointError: if there are no such files, they are damaged, or their tokenizer does more than byte pair
            encoding of the whole text (normalizers, pre-tokenizers, bytes in place of characters).
    """
    path = Path(path)
    if path.is_file():
        return vocabulary_of(_read_json(path), str(path))
    if (path / TOKENIZER).is_file():
        return vocabulary_of(_read_json(path / TOKENIZER), str(path / TOKENIZER))
    if (path / VOCAB).is_file() and (path / MERGES).is_file():
        return _of_lists(path)
    raise CheckpointError(f"{path} holds neither {TOKENIZER} nor {VOCAB} and {MERGES}")


def vocabulary_of(content: Mapping[str, Any], source: str) -> UnicodeVocabulary:
    """The vocabulary of a tokenizer.json.

    Args:
        content: of the file.
        source: its name, for messages.

    Raises:
        CheckpointError: see `read_vocabulary`.
    """
    model = content.get("model")
    if not isinstance(model, dict) or model.get("type", "BPE") != "BPE" or not isinstance(model.get("vocab"), dict):
        raise CheckpointError(f"{source} holds no byte pair encoding")
    beyond = [name for name in ("normalizer", "pre_tokenizer") if content.get(name) not in NOTHING]
    beyond += [name for name in MODEL_OPTIONS if model.get(name)]
    added = content.get("added_tokens", [])
    if any(not token.get("special") or any(token.get(name) for name in ADDED_OPTIONS) for token in added):
        beyond.append("added tokens that are not special, or take white space with them")
    if beyond:
        raise CheckpointError(f"{source} is not a vocabulary of whole text: it has {', '.join(beyond)}")
    merges = [rule.split(" ", 1) if isinstance(rule, str) else rule for rule in model.get("merges", [])]
    ids = {**model["vocab"], **{token["content"]: token["id"] for token in added}}
    unknown = model.get("unk_token") or UNKNOWN
    return UnicodeVocabulary.of_merges(ids, merges, [token["content"] for token in added], unknown)


def write_vocabulary(vocabulary: UnicodeVocabulary, *, match_specials: bool = True, bytes_after: bool = False) -> bytes:
    """The content of tokenizer.json.

    Args:
        vocabulary: tokens and rules.
        match_specials: whether special tokens are recognised in text.
        bytes_after: append a token for each byte, which stand for characters that have no token.
    """
    ids = dict(vocabulary.ids)
    if bytes_after:
        ids |= {f"<0x{value:02X}>": len(vocabulary) + value for value in range(256)}
    added = [
        {"id": index, "content": vocabulary.tokens[index], "single_word": False, "lstrip": False, "rstrip": False,
         "normalized": False, "special": True}
        for index in (vocabulary.specials if match_specials else ())
    ]  # fmt: skip
    decoders = [{"type": "ByteFallback"}, {"type": "Fuse"}] if bytes_after else []
    content = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": vocabulary.tokens[vocabulary.unknown],
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": bytes_after,
            "ignore_merges": False,
            "vocab": ids,
            "merges": vocabulary.merges,
        },
    }
    return json.dumps(content, ensure_ascii=False).encode()


def write_settings(vocabulary: UnicodeVocabulary, *, match_specials: bool = True) -> bytes:
    """The content of tokenizer_config.json, by which `transformers` knows the folder."""
    content: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
    }
    if match_specials:
        content["unk_token"] = vocabulary.tokens[vocabulary.unknown]
    return json.dumps(content, indent=2).encode()


def _of_lists(folder: Path) -> UnicodeVocabulary:
    ids = _read_json(folder / VOCAB)
    try:
        lines = (folder / MERGES).read_bytes().decode().split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{folder / MERGES} can't be read: {error}") from None
    merges = [line.split(" ", 1) for line in lines if line and not line.startswith("#version")]
    return UnicodeVocabulary.of_merges(ids, merges, _specials_of_lists(folder, ids))


def _specials_of_lists(folder: Path, ids: Mapping[str, int]) -> Iterable[str]:
    """Special tokens as tokenizer_config.json names them; without it, those of the published layout, if that is it."""
    if (folder / SETTINGS).is_file():
        named = _read_json(folder / SETTINGS).get("added_tokens_decoder", {}).values()
        specials = [token["content"] for token in named if token.get("special")]
        if specials:
            return specials
    if ids.get("<pad>") == SPECIALS.start:
        return [token for token, index in ids.items() if index in SPECIALS]
    return [UNKNOWN]


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} can't be read: {error}") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} must hold an object, it holds a {type(content).__name__}")
    return content
