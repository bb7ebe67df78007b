"""Visual Unicode: characters as ids, frequent n-grams in the gaps, and embeddings that are frozen pictures of tokens.

Source: "Emergent Semantics Beyond Token Embeddings: Transformer LMs with Frozen Visual Unicode Representations" (2025),
AVBochkov/Embeddings, vocabularies bvv241.

    bytes ──special tokens, UTF-8──► characters ──rules, best first──► ids          decoding joins the tokens' strings
    ids ──table──► vectors (B,T,dim):  token ──draw──► bits ──principal components──► row of length 1, never trained
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from pydantic import Field
from torch import Tensor

from smalti.checkpoint import read_official
from smalti.errors import CheckpointError, ConfigError, InputError
from smalti.folder import read_folder, write_folder
from smalti.text.base import Sample, StreamDecoder, StreamEncoder, TextTokenizer, as_bytes, several
from smalti.text.visual_unicode.encoder import OnUnknown, Rules, Texts, UnicodeDecoder, UnicodeEncoder
from smalti.text.visual_unicode.files import (
    SETTINGS,
    TOKENIZER,
    VOCAB,
    read_vocabulary,
    vocabulary_of,
    write_settings,
    write_vocabulary,
)
from smalti.text.visual_unicode.glyphs import Disturbance, Drawing, GlyphPainter
from smalti.text.visual_unicode.table import FrozenTable, given_table, visual_table
from smalti.text.visual_unicode.vocabulary import BASIC, UnicodeVocabulary, room, top_ngrams, united
from smalti.tokenizer import Tokenizer
from smalti.tokens import Tokens

TABLE_FILE = "normalized_embeddings_weights.pt"
TABLE = "table"  # of a saved folder's tensors
TABLE_NUMBERS = "table_numbers"  # of config.json: the fingerprint of its numbers


class VisualUnicode(TextTokenizer):
    """See the module's docstring.

    Without n-grams it is a tokenizer of characters: `Config().build()` has none, because the published lists are no
    part of Smalti. `fit` takes them from a corpus, `from_ngrams` from lists, `from_files` from the published files.

    Lossless where `on_unk` is "surrogate-escape" or "byte" (and special tokens are kept): then every byte of any input
    comes back. With "unk", as published, two things are lost: characters without a token (all beyond U+FFFF, private
    use and U+FFFF itself) become `<unk>`, and bytes that are no UTF-8 become U+FFFD.

    Args:
        config: options.
        vocabulary: tokens and rules; without it, that of characters.
        table: vectors of all ids; without it they are drawn when they are first asked for.

    Raises:
        ConfigError: if vocabulary or table are not of the configuration's size.
    """

    name: ClassVar[str] = "visual-unicode"
    codeless_fields: ClassVar[tuple[str, ...]] = (
        "keep_specials", "ngram_lengths", "ngram_top", "drawing.*", "components",
    )  # fmt: skip

    class Config(Tokenizer.Config):
        """Defaults: bvv241-2-3.

        Args:
            size: number of ids of the vocabulary; 65536 or more.
            ngram_lengths: of the n-grams that `fit` takes.
            ngram_top: how many it takes of each length from each language, at most; None for as many as fit.
            on_unk: what becomes of characters that have no token; see `Rules`. "byte" adds 256 ids.
            match_specials: whether names of special tokens in text ("<s>") become these tokens, as published. Turn it
                off for text of strangers.
            keep_specials: whether decoding writes the names of special tokens.
            drawing: how tokens are drawn for the table.
            components: dim of the table.
        """

        size: int = Field(BASIC, ge=1, le=1 << 24)
        ngram_lengths: tuple[int, ...] = (2, 3)
        ngram_top: int | None = Field(338, ge=1)
        on_unk: OnUnknown = "unk"
        match_specials: bool = True
        keep_specials: bool = True
        drawing: Drawing = Drawing(disturbance=Disturbance(rotation=4, shift=2, noise=0.01))
        components: int = Field(1024, ge=1)

        def build(self) -> VisualUnicode:
            return VisualUnicode(self)

        @classmethod
        def tiny(cls) -> Self:
            return cls(drawing=Drawing(size=4), components=8)

    config: Config

    def __init__(
        self, config: Config, vocabulary: UnicodeVocabulary | None = None, table: FrozenTable | None = None
    ) -> None:
        if vocabulary is None:
            vocabulary = UnicodeVocabulary.of_ngrams([], config.size)
        if len(vocabulary) != config.size:
            raise ConfigError(f"the vocabulary has {len(vocabulary)} ids, size is {config.size}")
        self.config = config
        self._take(vocabulary)
        self._table: FrozenTable | None = None
        self._expected: str | None = None  # fingerprint that a table which is drawn again must have
        if table is not None:
            self.use_table(table)

    def _take(self, vocabulary: UnicodeVocabulary) -> None:
        self.vocabulary = vocabulary
        lost = {
            "characters without a token": self.config.on_unk == "unk",
            "special tokens": not self.config.keep_specials,
        }
        self.losses = [loss for loss, present in lost.items() if present]
        self.rules = Rules(vocabulary, self.config.on_unk, self.config.match_specials)
        self.vocab = (self.rules.size,)
        self.__dict__.pop("_texts", None)

    @property
    def lossless(self) -> bool:
        return not self.losses

    @property
    def unknown(self) -> int | None:
        return self.vocabulary.unknown if self.config.on_unk == "unk" else None

    # --- where vocabularies come from --------------------------------------------------------------------------------

    @classmethod
    def from_ngrams(cls, ngrams: Iterable[str], config: Config | None = None) -> Self:
        """A tokenizer of given n-grams (the union of several lists, in any order)."""
        config = config or cls.Config()
        return cls(config, UnicodeVocabulary.of_ngrams(ngrams, config.size))

    def fit(self, samples: Iterable[Sample] | Mapping[str, Iterable[Sample]], *, common: Iterable[str] = ()) -> Self:
        """Replaces the n-grams by the most frequent ones of a corpus.

        Args:
            samples: texts; or texts by language, each of which gives its own n-grams, as the published lists were made
                from 32 languages. Every language gives equally many of each length: `ngram_top`, or as many as fit.
            common: further strings, such as tokens that other vocabularies share (`common_strings`); they come first
                where there is not room for all.

        Returns:
            this tokenizer. Its table, if it had one, is gone.
        """
        corpora = samples.values() if isinstance(samples, Mapping) else [samples]
        shared, lists = set(common), list[list[str]]()
        places = max(0, room(self.config.size) - len(shared))
        for corpus in corpora:
            texts = (bytes(as_bytes(sample)).decode("utf-8", "replace") for sample in several(corpus))
            lists += top_ngrams(texts, self.config.ngram_lengths, self.config.ngram_top or places)
        self._take(UnicodeVocabulary.of_ngrams(shared | united(lists, places), self.config.size))
        self._table = self._expected = None
        return self

    @classmethod
    def from_files(cls, path: str | Path, config: Config | None = None) -> Self:
        """A published vocabulary, and its table if that lies beside it.

        Args:
            path: a folder (tokenizer.json, or vocab.json and merges.txt; normalized_embeddings_weights.pt), or one of
                these files.
            config: options, by default those of the preset of that size; size, and components if there is a table, are
                replaced by what the files have.

        Raises:
            CheckpointError: if the files are missing, damaged, or do not fit together.
        """
        path = Path(path)
        folder = path if path.is_dir() else path.parent
        vocabulary = read_vocabulary(path if path.suffix == ".json" and path.name != VOCAB else folder)
        weights = folder / TABLE_FILE
        return cls._published(vocabulary, read_official(weights).state if weights.is_file() else {}, config)

    @classmethod
    def from_official(cls, config: Mapping[str, Any] | None, state: Mapping[str, Tensor]) -> Self:
        """A published tokenizer.

        Args:
            config: the content of its tokenizer.json.
            state: its table (tokens, dim) under any name, or nothing.

        Raises:
            CheckpointError: if they are damaged, or do not fit together.
        """
        if config is None or "model" not in config:
            raise CheckpointError(f"{cls.name} needs {TOKENIZER} beside its table: give the folder that holds both")
        return cls._published(vocabulary_of(config, TOKENIZER), state)

    @classmethod
    def _published(
        cls, vocabulary: UnicodeVocabulary, state: Mapping[str, Tensor], config: Config | None = None
    ) -> Self:
        if len(state) > 1:
            raise CheckpointError(f"a table is one tensor, these are {sorted(state)}")
        dims = [weight.shape[-1] for weight in state.values()]
        config = config or _preset_of(len(vocabulary), *dims)
        try:
            tables = [given_table(weight) for weight in state.values()]
            fields = {"components": tables[0].dim} if tables else {}
            return cls(config.replace(size=len(vocabulary), **fields), vocabulary, *tables)
        except (ConfigError, InputError) as error:
            raise CheckpointError(f"the published files do not fit together: {error}") from None

    # --- tokens ------------------------------------------------------------------------------------------------------

    def stream_encoder(self) -> StreamEncoder:
        return UnicodeEncoder(self.rules)

    def stream_decoder(self) -> StreamDecoder:
        return UnicodeDecoder(self._texts)

    @cached_property
    def _texts(self) -> Texts:
        return Texts.of(self.rules, self.config.keep_specials)

    @property
    def tokens(self) -> list[str]:
        """The string of every id, as it is drawn: bytes by their names ("<0xF0>")."""
        return [*self.vocabulary.tokens, *(f"<0x{value:02X}>" for value in range(self.vocab[0] - len(self.vocabulary)))]

    # --- embeddings --------------------------------------------------------------------------------------------------

    @property
    def table(self) -> FrozenTable:
        """Vectors of all ids; drawn when it is first asked for (65536 tokens take seconds, 4096 pixels minutes).

        Raises:
            UnavailableError: if no font is found.
            CheckpointError: if this tokenizer was saved without its table, and another one comes out here.
        """
        if self._table is None:
            self.use_table(visual_table(self.tokens, GlyphPainter(self.config.drawing), self.config.components))
        assert self._table is not None
        return self._table

    def use_table(self, table: FrozenTable) -> None:
        """Gives the tokenizer its table.

        Raises:
            ConfigError: if it has not one row per id.
            CheckpointError: if this tokenizer was saved with another one.
        """
        if len(table) != self.vocab[0]:
            raise ConfigError(f"the table has {len(table)} rows for {self.vocab[0]} ids")
        if self._expected not in (None, table.fingerprint):
            raise CheckpointError(
                f"this tokenizer was saved with the table {self._expected:.12}, this one is {table.fingerprint:.12}: "
                "the font, Pillow or the drawing differ"
            )
        self._table = table

    def embed(self, tokens: Tokens) -> Tensor:
        """Frozen vectors for a language model's input: (batch, T, dim), float32."""
        self._rows(tokens)
        return self.table.weight[tokens.only.codes[..., 0]]

    # --- files -------------------------------------------------------------------------------------------------------

    def tensors(self) -> dict[str, Tensor]:
        return self.vocabulary.tensors()

    @classmethod
    def from_tensors(cls, config: Config, tensors: Mapping[str, Tensor]) -> Self:
        try:
            return cls(config, UnicodeVocabulary.from_tensors(tensors))
        except ConfigError as error:
            raise CheckpointError(f"the saved vocabulary does not fit its config: {error}") from None

    def assets(self) -> dict[str, bytes]:
        """tokenizer.json and its settings for `transformers`, unless ids would differ there.

        They would with "surrogate-escape", and with "byte" where a token is spelled like a byte ("<0x41>").
        """
        if self.config.on_unk == "surrogate-escape" or len(set(self.tokens)) < self.vocab[0]:
            return {}
        specials = self.config.match_specials
        files = write_vocabulary(self.vocabulary, match_specials=specials, bytes_after=self.config.on_unk == "byte")
        return {TOKENIZER: files, SETTINGS: write_settings(self.vocabulary, match_specials=specials)}

    def save(self, folder: str | Path, *, licence: str | None = None, table: bool = True) -> Path:
        """Writes config.json, model.safetensors and, where ids are the same there, tokenizer.json.

        Args:
            folder: where; an earlier saved folder at that path is replaced.
            licence: kept in config.json.
            table: store the table too, if there is one yet. Left out, it is drawn again when it is needed, and refused
                if it does not come out the same.
        """
        state = self.tensors()
        if table and self._table is not None:
            state[TABLE] = self._table.weight
        fingerprint = self._expected if self._table is None else self._table.fingerprint
        facts: dict[str, Any] = {"codes_hash": self.codes_hash, "licence": licence, "table_fingerprint": fingerprint}
        if TABLE in state:  # a drawn table's fingerprint is over its bits, which say nothing of these numbers
            facts[TABLE_NUMBERS] = given_table(state[TABLE]).fingerprint
        config = self.config.model_dump(mode="json")
        return write_folder(
            folder, kind="tokenizer", name=self.name, config=config, state=state, facts=facts, assets=self.assets()
        )

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        saved = read_folder(folder, "tokenizer", cls.name)
        tensors = dict(saved.state)
        weight = tensors.pop(TABLE, None)
        tokenizer = cls.from_tensors(cls.Config(**saved.header["config"]), tensors)
        if saved.header.get("codes_hash") not in (None, tokenizer.codes_hash):
            raise CheckpointError(f"{folder}: the tensors or the config were changed after it was saved (codes hash)")
        tokenizer._expected = saved.header.get("table_fingerprint")
        if weight is not None:
            if saved.header.get(TABLE_NUMBERS) not in (None, given_table(weight).fingerprint):
                raise CheckpointError(f"{folder}: the table was changed after it was saved")
            tokenizer.use_table(FrozenTable(weight, tokenizer._expected or given_table(weight).fingerprint))
        return tokenizer

    @classmethod
    def example(cls, batch: int = 2, seed: int = 0) -> dict[str, Any]:
        draw = torch.Generator().manual_seed(seed)
        letters = "abc αβγ абв 漢字 한국 \n<s>"
        picks = torch.randint(len(letters), (batch, 24), generator=draw).tolist()
        return {"x": ["".join(letters[place] for place in row).encode() for row in picks]}


MAX = VisualUnicode.Config(size=2 * BASIC, ngram_lengths=(2, 3, 4, 5), ngram_top=906, drawing=Drawing())
VisualUnicode.presets = {
    "bvv241-2-3": VisualUnicode.Config(),
    "bvv241-max": MAX,
    "bvv241-abs": MAX.replace(drawing=Drawing(size=64), components=4096),
}


def _preset_of(size: int, dim: int | None = None) -> VisualUnicode.Config:
    """The published configuration of a vocabulary, and of a table if there is one."""
    for config in VisualUnicode.presets.values():
        assert isinstance(config, VisualUnicode.Config)
        if config.size == size and dim in (None, config.components):
            return config
    return VisualUnicode.Config()
