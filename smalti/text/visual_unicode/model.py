"""A language model on frozen pictures: an ordinary transformer whose input table is given and never trained.

    [<s>] + ids ──frozen table──► (B,T,n) ──repeated width / n times──► transformer ──► head ──► logits of the next id

The output head is trained and not tied to the table. Rows of length 1 are small numbers (1/32 each at 1024); the norm
before the first block takes care of that.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from smalti.checkpoint import take
from smalti.errors import CheckpointError, ConfigError, InputError
from smalti.folder import fill
from smalti.generate.autoregressive import AutoregressiveTransformer
from smalti.generate.base import Modelled
from smalti.generate.conditions import PrefixConfig, TokenCondition
from smalti.nn.transformer import Rotary, Transformer
from smalti.text.visual_unicode.table import FrozenTable, given_table, unit_rows
from smalti.tokens import StreamSpec, Tokens

START = 57345  # <s>
TABLE = "embedding.weight"
HEAD_DIM = 32  # of all published models whose configuration was seen

TOP = r"^(?:model\.|transformer\.)?"
BLOCK = TOP + r"(?:transformer_)?(?:layers|blocks|h)\.(\d+)\."
ATTENTION, MLP = BLOCK + r"(?:attn|self_attn|attention)\.", BLOCK + r"(?:mlp|ffn|feed_forward)\."
END = r"\.(weight|bias)$"
OWN = r"transformer.blocks.\1."
OFFICIAL = (
    (TOP + r"(?:token_embeddings?|embed_tokens|wte)\.weight$", TABLE),
    (ATTENTION + r"([qkv])_proj" + END, OWN + r"\2.\3"),
    (ATTENTION + r"(?:o_proj|out_proj)" + END, OWN + r"attention.out.\2"),
    (MLP + r"(?:0|fc1|c_fc)" + END, OWN + r"mlp.up.\2"),
    (MLP + r"(?:2|fc2|c_proj)" + END, OWN + r"mlp.down.\2"),
    (BLOCK + r"fc1" + END, OWN + r"mlp.up.\2"),
    (BLOCK + r"fc2" + END, OWN + r"mlp.down.\2"),
    (BLOCK + r"(?:ln_?1|ln_attn|norm_?1|input_layernorm)" + END, OWN + r"norm1.\2"),
    (BLOCK + r"(?:ln_?2|ln_mlp|norm_?2|post_attention_layernorm)" + END, OWN + r"norm2.\2"),
    (TOP + r"(?:ln_f|final_ln|ln|norm|final_layer_?norm|layer_norm)" + END, r"transformer.norm.\1"),
    (r"^lm_head" + END, r"head.\1"),
)
# Tables of rotary positions and causal masks, which some versions of the official code store.
IGNORED = re.compile(r"(?:^|\.)(?:inv_freq|cos_cached|sin_cached|freqs_cis|causal_mask|mask)$")


class VisualLanguageModel(AutoregressiveTransformer):
    """See the module's docstring.

    `VisualUnicode.table` (or any `FrozenTable`) is attached with `use_table`; until then the table is random. While
    `frozen`, it is no parameter: it has no gradient, no optimizer sees it, and with `store_table=False` no checkpoint
    holds it. A model that was loaded from such a checkpoint refuses to run until the same table is attached.
    """

    name: ClassVar[str] = "visual-unicode/lm"

    class Config(AutoregressiveTransformer.Config):
        """See `AutoregressiveTransformer.Config`. Defaults: emergent-semantics-model-1024-float-335m.

        Args:
            table_dim: width of the table, a divisor of the transformer's; its rows are repeated.
            frozen: the table is not trained.
            store_table: whether checkpoints hold a frozen table.
            table_fingerprint: of the table that is attached.
            head_bias: whether the output head has one.
        """

        streams: dict[str, StreamSpec] = Field({"codes": StreamSpec((1024,), (65536,))}, min_length=1, max_length=1)
        condition: PrefixConfig = TokenCondition(start=START)
        transformer: Transformer.Config = Transformer.Config(
            width=1024, layers=16, heads=32, hidden=4096, context=1024, positions=Rotary(pairing="halves")
        )
        table_dim: int = Field(1024, ge=1)
        frozen: bool = True
        store_table: bool = True
        table_fingerprint: str | None = None
        head_bias: bool = False

        @model_validator(mode="after")
        def _check_table(self) -> Self:
            if self.transformer.width % self.table_dim:
                raise ValueError(f"table_dim {self.table_dim} must divide the width {self.transformer.width}")
            if not (self.frozen or self.store_table):
                raise ValueError("a table that is trained must be stored: store_table=True")
            return self

        def build(self) -> VisualLanguageModel:
            return VisualLanguageModel(self)

        @classmethod
        def tiny(cls) -> Self:
            return cls(
                streams={"codes": StreamSpec((6,), (11,))},
                condition=TokenCondition(start=1),
                transformer=Transformer.Config(
                    width=16, layers=2, heads=2, hidden=32, context=6, positions=Rotary(pairing="halves")
                ),
                table_dim=4,
            )

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self._missing = False
        if config.head_bias:
            self.head = nn.Linear(self.head.in_features, self.head.out_features)
            nn.init.normal_(self.head.weight, std=0.02)
            nn.init.zeros_(self.head.bias)
        with torch.no_grad():
            self.embedding.weight.copy_(unit_rows(self.embedding.weight))

    def make_embedding(self, ids: int, width: int) -> nn.Embedding:
        config: VisualLanguageModel.Config = self.config
        return TableEmbedding(ids, width, config.table_dim, frozen=config.frozen, stored=config.store_table)

    def use_table(self, table: FrozenTable) -> None:
        """Attaches the input table.

        Raises:
            ConfigError: if its shape is not (ids, table_dim).
            CheckpointError: if another one was attached before, or when the model was saved.
        """
        weight = self.embedding.weight
        if table.weight.shape != weight.shape:
            raise ConfigError(f"the table is {tuple(table.weight.shape)}, the model needs {tuple(weight.shape)}")
        if self.config.table_fingerprint not in (None, table.fingerprint):
            raise CheckpointError(
                f"the model has the table {self.config.table_fingerprint:.12}, this one is {table.fingerprint:.12}"
            )
        with torch.no_grad():
            weight.copy_(table.weight)
        self.config = self.config.replace(table_fingerprint=table.fingerprint)
        self._missing = False

    def forward(self, tokens: Tokens, **conditions: Any) -> Modelled:
        self._check_table()
        return super().forward(tokens, **conditions)

    def generate(self, batch: int, **arguments: Any) -> Tokens:
        """Draws tokens; see `AutoregressiveTransformer.generate`."""
        self._check_table()
        return super().generate(batch, **arguments)

    def _check_table(self) -> None:
        if self._missing:
            raise InputError("this model was saved without its frozen table: attach it with use_table")

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        model = super().load(folder)
        model._missing = not model.config.store_table
        return model

    @classmethod
    def from_official(cls, config: Mapping[str, Any] | None, state: Mapping[str, Tensor]) -> Self:
        """A published model.

        The official names could not be read, so a table of patterns (`OFFICIAL`) takes all that are likely.

        Args:
            config: the official configuration (`n_head`, `block_size` ...; ours beside: `rope_pairing`, "halves" or
                "neighbours"), or None: 32 dimensions per head and 1024 steps.
            state: official keys -> tensors.

        Raises:
            CheckpointError: if a key is missing, unknown, or of an impossible shape.
        """
        own, names = _own_state(state)
        settings = _read_settings(config or {}, own)
        model = cls(settings)
        table = given_table(own[TABLE])
        if settings.transformer.bias or settings.head_bias:
            # Some maps may have a bias and others none; zero is none.
            missing = {key: value for key, value in model.state_dict().items() if key.endswith(".bias")}
            own = {**{key: torch.zeros_like(value) for key, value in missing.items() if "norm" not in key}, **own}
        fill(model, own, "the published model", names)
        model.use_table(table)
        return model.eval()


class TableEmbedding(nn.Embedding):
    """Rows of a table, repeated to the width of a model.

    Args:
        ids: number of rows.
        width: of what comes out.
        dim: of a row; it divides the width.
        frozen: the table is a buffer instead of a parameter.
        stored: whether a frozen table is part of the state dict.

    Shape:
        ids: (...), int64  ->  (..., width)
    """

    def __init__(self, ids: int, width: int, dim: int, *, frozen: bool, stored: bool) -> None:
        super().__init__(ids, dim)
        self.repeats = width // dim
        if frozen:
            table = self.weight.detach()
            del self.weight
            self.register_buffer("weight", table, persistent=stored)

    def forward(self, ids: Tensor) -> Tensor:
        rows = super().forward(ids)
        return rows.repeat(*[1] * ids.ndim, self.repeats) if self.repeats > 1 else rows


def _own_state(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The state under our names, queries, keys and values as one; and the official name of each.

    Raises:
        CheckpointError: naming every key that no pattern takes, two that mean the same, or maps that lack a part.
    """
    own: dict[str, Tensor] = {}
    names: dict[str, str] = {}
    unknown = []
    for key, value in state.items():
        found = [re.sub(pattern, ours, key) for pattern, ours in OFFICIAL if re.match(pattern, key)]
        if found and found[0] in own:
            raise CheckpointError(f"{names[found[0]]} and {key} of the published model have one place")
        if found:
            own[found[0]], names[found[0]] = value, key
        elif not IGNORED.search(key):
            unknown.append(key)
    if unknown:
        raise CheckpointError(f"{len(unknown)} keys of the published model have no known place: {sorted(unknown)[:20]}")
    for key in [key for key in own if re.fullmatch(r"transformer\.blocks\.\d+\.q\.(weight|bias)", key)]:
        parts = [take(own, key.replace(".q.", f".{part}.")) for part in "qkv"]
        fused = key.replace(".q.", ".attention.qkv.")
        own[fused], names[fused] = torch.cat(parts), names[key]
        for part in "qkv":
            del own[key.replace(".q.", f".{part}.")]
    return own, names


def _read_settings(config: Mapping[str, Any], own: Mapping[str, Tensor]) -> VisualLanguageModel.Config:
    """Our configuration, from the official one and the shapes of the tensors."""
    ids, dim = take(own, TABLE).shape
    qkv = take(own, "transformer.blocks.0.attention.qkv.weight")
    width = qkv.shape[1]
    context = config.get("block_size", 1024)
    try:
        return VisualLanguageModel.Config(
            streams={"codes": StreamSpec((context,), (ids,))},
            condition=TokenCondition(start=min(START, ids - 1)),
            transformer=Transformer.Config(
                width=width,
                layers=1 + max(int(key.split(".")[2]) for key in own if key.startswith("transformer.blocks.")),
                heads=config.get("n_head", max(1, width // HEAD_DIM)),
                hidden=len(take(own, "transformer.blocks.0.mlp.up.weight")),
                context=context,
                bias=any(re.search(r"\.(qkv|out|up|down)\.bias$", key) for key in own),
                positions=Rotary(pairing=config.get("rope_pairing", "halves")),
            ),
            table_dim=dim,
            head_bias="head.bias" in own,
        )
    except ConfigError as error:
        raise CheckpointError(f"the published model has sizes that do not fit together: {error}") from None
