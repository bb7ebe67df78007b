"""tokenizer.json: the file that Hugging Face's `tokenizers` and `transformers` keep a tokenizer in.

    file ──read──► model (vocab, merges), added tokens, and the steps around them as plain data
    Merges ──byte_file──► file                  Merges ◄──byte_merges── model and its byte alphabet

Ids come from the file, never from a layout: published files begin with special tokens, end with them, leave holes, or
number their added tokens otherwise than their vocabulary (in which case the vocabulary counts, as in `tokenizers`).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from smalti.bpe.alphabets import Alphabet
from smalti.bpe.vocabulary import Merges
from smalti.errors import CheckpointError, ConfigError

Pair = tuple[str, str]
HOLES, FEW = 16, 2**20  # ids that a vocabulary may have for each of its tokens, and in any case


@dataclass(frozen=True)
class Added:
    """A token that is found in the text before anything else is done with it.

    Args:
        id: its id.
        content: its text.
        single_word: only where no letter, digit or underscore stands beside it.
        lstrip, rstrip: whether it takes the white space on that side with it.
        normalized: whether it is searched in the normalized text.
        special: whether it is no text, but a sign such as the end of a document.
    """

    id: int
    content: str
    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool = False
    special: bool = True


@dataclass(frozen=True)
class Model:
    """The model of a file, if it is byte pair encoding.

    Args:
        vocab: token -> id.
        merges: pairs of tokens in the order of their ranks, each once.
        unk_token: what a character without a token becomes; None: it is dropped.
        fuse_unk: whether several of them in a row become one.
        byte_fallback: whether characters without a token become the tokens <0x00> to <0xFF> of their bytes.
        ignore_merges: whether a piece that is a token is taken whole, whatever its merges say.
        dropout, continuing_subword_prefix, end_of_word_suffix: as in the file.
    """

    vocab: Mapping[str, int]
    merges: Sequence[Pair]
    unk_token: str | None = None
    fuse_unk: bool = False
    byte_fallback: bool = False
    ignore_merges: bool = False
    dropout: float | None = None
    continuing_subword_prefix: str | None = None
    end_of_word_suffix: str | None = None

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> Model:
        """Reads the `model` of a file; merges may be pairs or strings.

        Raises:
            CheckpointError: if it is no byte pair encoding, or is damaged.
        """
        if data.get("type", "BPE") != "BPE" or "merges" not in data:
            raise CheckpointError(f"the model is {data.get('type')!r}, not BPE")
        vocab: Mapping[str, int] = data["vocab"]
        written = data["merges"]
        if not isinstance(vocab, Mapping) or not isinstance(written, list):
            raise CheckpointError("the model's vocab must be an object, and its merges a list")
        names = {"unk_token", "fuse_unk", "byte_fallback", "ignore_merges", "dropout", "continuing_subword_prefix"}
        options = {name: data[name] for name in (*names, "end_of_word_suffix") if data.get(name) is not None}
        return cls(vocab, _pairs(written, vocab, options.get("continuing_subword_prefix", "")), **options)

    def data(self) -> dict[str, Any]:
        """As it stands in a file."""
        fields = {name: value for name, value in self.__dict__.items() if name not in ("vocab", "merges")}
        return {"type": "BPE", **fields, "vocab": dict(self.vocab), "merges": [list(pair) for pair in self.merges]}

    def result(self, pair: Pair) -> str:
        """The token that a pair becomes."""
        return pair[0] + pair[1].removeprefix(self.continuing_subword_prefix or "")


@dataclass(frozen=True)
class File:
    """A whole file.

    Args:
        model: as plain data, of any kind.
        added: with the ids that they really have.
        normalizer, pre_tokenizer, post_processor, decoder, truncation, padding: as in the file.
    """

    model: Mapping[str, Any]
    added: Sequence[Added] = ()
    normalizer: Mapping[str, Any] | None = None
    pre_tokenizer: Mapping[str, Any] | None = None
    post_processor: Mapping[str, Any] | None = None
    decoder: Mapping[str, Any] | None = None
    truncation: Mapping[str, Any] | None = None
    padding: Mapping[str, Any] | None = None
    version: str = field(default="1.0")

    def dump(self) -> bytes:
        """The file's content."""
        data = {
            "version": self.version, "truncation": self.truncation, "padding": self.padding,
            "added_tokens": [asdict(each) for each in self.added], "normalizer": self.normalizer,
            "pre_tokenizer": self.pre_tokenizer, "post_processor": self.post_processor, "decoder": self.decoder,
            "model": self.model,
        }  # fmt: skip
        return json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode()


def read(content: bytes | str) -> File:
    """Reads a file.

    Raises:
        CheckpointError: if it is no tokenizer.json.
    """
    try:
        data = json.loads(content)
    except ValueError as error:
        raise CheckpointError(f"this is no tokenizer.json: {error}") from None
    if not isinstance(data, dict) or not isinstance(data.get("model"), dict) or "vocab" not in data["model"]:
        raise CheckpointError("this is no tokenizer.json: it has no model with a vocab")
    names = ("normalizer", "pre_tokenizer", "post_processor", "decoder", "truncation", "padding")
    for name in names:
        if not isinstance(data.get(name), (dict, type(None))):
            raise CheckpointError(f"this is no tokenizer.json: its {name} is {data[name]!r}")
    _check_ids(data["model"]["vocab"])
    try:
        added = _added(data.get("added_tokens") or [], data["model"]["vocab"])
    except (TypeError, KeyError) as error:
        raise CheckpointError(f"this is no tokenizer.json: its added tokens are damaged ({error})") from None
    return File(data["model"], added, **{name: data.get(name) for name in names}, version=data.get("version", "1.0"))


def _check_ids(vocab: Any) -> None:
    """Raises CheckpointError unless ids are integers that leave no vast holes, which tables would have to fill."""
    if not isinstance(vocab, Mapping):
        return  # a list of (token, score): places are ids
    room = HOLES * len(vocab) + FEW
    for token, number in vocab.items():
        if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number < room:
            raise CheckpointError(f"the token {token!r} has the id {number!r}; ids are integers in 0..{room - 1} here")


def byte_merges(model: Model, alphabet: Alphabet, *, size: int = -1) -> Merges:
    """The rules of a model over bytes.

    Args:
        model: of a file.
        alphabet: in which its tokens are written.
        size: number of ids, if that is more than the largest.

    Raises:
        CheckpointError: if a byte has no token.
    """
    missing = [character for character in alphabet.characters if character not in model.vocab]
    if missing:
        raise CheckpointError(f"{len(missing)} bytes have no token, {missing[0]!r} among them")
    return rules(model, {character: byte for byte, character in enumerate(alphabet.characters)}, size=size)


def rules(model: Model, symbols: Mapping[str, int], *, size: int = -1) -> Merges:
    """The rules of a model over any symbols.

    Args:
        model: of a file.
        symbols: the tokens that are symbols, and the number of each, from 0 on.
        size: number of ids, if that is more than the largest.

    Raises:
        CheckpointError: if a merge uses or makes a token that is not in the vocabulary.
    """
    base = np.full(max(symbols.values(), default=-1) + 1, -1, np.int32)
    for token, symbol in symbols.items():
        base[symbol] = model.vocab[token]
    made = set(symbols)
    waiting = [(rank, pair, model.result(pair)) for rank, pair in enumerate(model.merges)]
    usable: list[tuple[int, Pair, str]] = []
    while True:  # rules of tokens that nothing makes never apply
        found = [each for each in waiting if each[1][0] in made and each[1][1] in made]
        if not found:
            break
        waiting = [each for each in waiting if not (each[1][0] in made and each[1][1] in made)]
        usable += found
        made |= {result for _, _, result in found}
    usable.sort()
    try:
        ids = [(model.vocab[left], model.vocab[right], model.vocab[result]) for _, (left, right), result in usable]
    except KeyError as error:
        raise CheckpointError(f"a merge makes {error.args[0]!r}, which is not in the vocabulary") from None
    table = np.array(ids, np.int32).reshape(-1, 3)
    top = max(model.vocab.values(), default=-1) + 1
    try:
        return Merges(base, table[:, :2], table[:, 2], size=max(size, top))
    except ConfigError as error:
        raise CheckpointError(f"the merges do not fit together: {error}") from None


def byte_file(
    merges: Merges,
    alphabet: Alphabet,
    *,
    added: Iterable[Added] = (),
    texts: Mapping[str, int] | None = None,
    pre_tokenizer: Mapping[str, Any] | None = None,
    decoder: Mapping[str, Any] | None = None,
    **options: Any,
) -> File:
    """A file of rules over bytes.

    Args:
        merges: the rules.
        alphabet: in which tokens are written.
        added: added tokens.
        texts: further tokens that no rule makes, as they are written.
        pre_tokenizer, decoder: as in the file.
        **options: of the model.

    Raises:
        ConfigError: if two ids have the same token; files can't hold that.
    """
    strings = merges.strings
    made = {
        token: alphabet.text(bytes(strings[token].tolist())) for token in range(len(strings)) if len(strings[token])
    }
    entries = [*((text, token) for token, text in made.items()), *(texts or {}).items()]
    added = list(added)
    entries += [(each.content, each.id) for each in added]
    vocab = dict(sorted(entries, key=lambda entry: entry[1]))
    if len(vocab) != len(set(entries)):
        raise ConfigError("two ids have the same token")
    pairs = [(made[left], made[right]) for left, right in merges.pairs.tolist()]
    return File(Model(vocab, pairs, **options).data(), added, pre_tokenizer=pre_tokenizer, decoder=decoder)


def token_bytes(file: File, alphabet: Alphabet | None, made: Container[int]) -> dict[int, bytes]:
    """The bytes that each id stands for: of tokens by the alphabet, of added tokens and of what is no byte as UTF-8.

    Ids that merges make, and those of bytes, are `made`: they keep their bytes, even where an added token is spelled as
    they are and so has one of them.
    """
    out = {}
    for token, number in file.model["vocab"].items():
        out[number] = alphabet.data(token) if alphabet is not None and alphabet.holds(token) else _utf8(token)
    out.update({each.id: _utf8(each.content) for each in file.added if each.id not in made})
    return out


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _added(data: Iterable[Mapping[str, Any]], vocab: Any) -> list[Added]:
    """Added tokens with the ids that `tokenizers` gives them: the vocabulary's, else the next free ones."""
    ids = vocab if isinstance(vocab, Mapping) else {entry[0]: place for place, entry in enumerate(vocab)}
    given: dict[str, int] = {}
    added: dict[str, Added] = {}
    size = len(ids)
    fields = ("single_word", "lstrip", "rstrip", "normalized", "special")
    for each in data:
        content = each["content"]
        number = ids.get(content, given.get(content))
        if number is None:
            top = max(given.values(), default=-1)
            number = top + 1 if top >= size else size
        given[content] = number
        added[content] = Added(number, content, *(bool(each.get(name, False)) for name in fields))
        if number != each.get("id", number):
            logging.getLogger("smalti").warning(
                "the added token %r is written with id %s, but has %s in the vocabulary", content, each["id"], number
            )
    return list(added.values())


def _pairs(written: list[Any], vocab: Mapping[str, int], prefix: str) -> list[Pair]:
    """Merges as pairs, whichever way they are written.

    Raises:
        CheckpointError: if one is no pair, or uses tokens that are not in the vocabulary.
    """
    pairs: dict[Pair, None] = {}
    made: set[str] = set()
    for merge in written:
        if isinstance(merge, str):
            merge = _split(merge, vocab, prefix, made, pairs)
        if not isinstance(merge, (list, tuple)) or len(merge) != 2 or not all(isinstance(each, str) for each in merge):
            raise CheckpointError(f"{merge!r} is no merge of two tokens")
        left, right = merge
        result = left + right.removeprefix(prefix)
        for token in (left, right, result):
            if token not in vocab:
                raise CheckpointError(f"the merge of {left!r} and {right!r} needs {token!r}, which has no id")
        pairs.pop((left, right), None)  # of a pair that is written twice the last counts
        pairs[left, right] = None
        made.add(result)
    return list(pairs)


def _split(merge: str, vocab: Mapping[str, int], prefix: str, made: Container[str], before: Container[Pair]) -> Pair:
    """The two tokens of a merge that is written as "left right", where tokens may have spaces, too."""
    places = [place for place, character in enumerate(merge) if character == " "]
    choices = [(merge[:place], merge[place + 1 :]) for place in places]
    if len(choices) == 1:
        return choices[0]
    known = [pair for pair in choices if {*pair, pair[0] + pair[1].removeprefix(prefix)} <= vocab.keys()]
    ready = [pair for pair in known if all(len(each) == 1 or each in made for each in pair)]
    fresh = [pair for pair in ready if pair not in before]
    best = fresh or ready or known
    if not best:
        raise CheckpointError(f"{merge!r} is no merge of two tokens of the vocabulary")
    if len(best) > 1:
        logging.getLogger("smalti").warning("the merge %r can be read in several ways; taken: %r", merge, best[0])
    return best[0]
