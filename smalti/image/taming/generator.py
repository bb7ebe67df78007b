"""MinGPT: the transformer over VQGAN's tokens in raster order, after a condition of tokens.

Source: "Taming Transformers for High-Resolution Image Synthesis" (2020), CompVis/taming-transformers.

    condition (class id, coarse map, or a start token) ──┐
    codes of the image, in raster order ─────────────────┴──► GPT-2's transformer ──► logits of the next code

Condition and image share one table of ids, as published.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isqrt, prod
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from smalti.checkpoint import KeyTable, drop, take
from smalti.folder import fill
from smalti.generate.autoregressive import AutoregressiveTransformer
from smalti.generate.conditions import PrefixConfig, TokenCondition
from smalti.image.taming import published
from smalti.nn.transformer import Transformer
from smalti.tokens import StreamSpec

PREFIX = "transformer."  # in files that hold the first stage and the condition's stage too
IGNORED = ("first_stage_model.*", "cond_stage_model.*", "loss.*", "*.attn.mask", "mask")
HEAD_DIM = 64  # of every published model

KEYS = KeyTable(
    {
        "tok_emb.": "embedding.",
        "pos_emb": "transformer.positions",
        "blocks.{}.ln1.": "transformer.blocks.{}.norm1.",
        "blocks.{}.ln2.": "transformer.blocks.{}.norm2.",
        "blocks.{}.attn.{key,query,value}.": "transformer.blocks.{}.attention.qkv.",
        "blocks.{}.attn.proj.": "transformer.blocks.{}.attention.out.",
        "blocks.{}.mlp.0.": "transformer.blocks.{}.mlp.up.",
        "blocks.{}.mlp.2.": "transformer.blocks.{}.mlp.down.",
        "ln_f.": "transformer.norm.",
    }
)


class MinGPT(AutoregressiveTransformer):
    """The second stage of VQGAN; see the module's docstring.

    The keyword `condition` takes ids (batch, condition length): a class id, the codes of a segmentation or depth map,
    or a smaller part of the image. Without it the start token stands there, as in unconditional models.
    """

    name: ClassVar[str] = "vqgan/mingpt"

    class Config(AutoregressiveTransformer.Config):
        """See `AutoregressiveTransformer.Config`. Defaults: a class before 16x16 codes of 16384."""

        condition: PrefixConfig = TokenCondition()

        def build(self) -> MinGPT:
            return MinGPT(self)

        @classmethod
        def tiny(cls) -> Self:
            return cls(
                streams={"codes": StreamSpec((3, 4), (16,))},
                transformer=Transformer.Config(width=16, layers=2, heads=2, hidden=64, context=12),
            )

    @classmethod
    def from_official(
        cls,
        config: Mapping[str, Any] | None,
        state: Mapping[str, Tensor],
        *,
        positions: Sequence[int] | None = None,
        condition_length: int | None = None,
    ) -> Self:
        """A published transformer, alone or in the file of a Net2NetTransformer.

        Args:
            config: the yaml beside the checkpoint, its `model.params`, the transformer's own arguments, or None.
            state: official keys -> tensors.
            positions: extents of the tokens; by default those that the configuration's first stage gives, else as many
                as the context holds after one condition token.
            condition_length: number of condition tokens; by default what the tokens leave of the context, or one.

        Raises:
            CheckpointError: if a key is missing, unknown, or of an impossible shape.
        """
        params = published.parameters(config or {})
        settings = published.parameters(params.get("transformer_config", params))
        state = drop(state, IGNORED)
        if all(key.startswith(PREFIX) for key in state):
            state = {key.removeprefix(PREFIX): tensor for key, tensor in state.items()}
        ids, width = take(state, "tok_emb.weight").shape
        context = take(state, "pos_emb").shape[-2]
        extents = tuple(positions or _extents(params) or _fill_context(context))
        first_stage = published.parameters(params.get("first_stage_config", {}))
        built = cls.Config(
            streams={"codes": StreamSpec(extents, (first_stage.get("n_embed", ids),))},
            ids=ids,
            condition=TokenCondition(length=condition_length or max(1, context - prod(extents))),
            transformer=Transformer.Config(
                width=width,
                layers=settings.get("n_layer", _layers(state)),
                heads=settings.get("n_head", width // HEAD_DIM),
                hidden=take(state, "blocks.0.mlp.0.weight").shape[0],
                context=settings.get("block_size", context),
                bidirectional_prefix=settings.get("n_unmasked", 0),
                embedding_dropout=settings.get("embd_pdrop", 0.0),
                residual_dropout=settings.get("resid_pdrop", 0.0),
                attention_dropout=settings.get("attn_pdrop", 0.0),
            ),
            keep=params.get("pkeep", 1.0),
        )
        generator = cls(built)
        own = KEYS.own_state(_fuse(state, built.transformer.layers))
        fill(generator, own, "the minGPT checkpoint", KEYS.official_names(generator.state_dict()))
        return generator.eval()


def _layers(state: Mapping[str, Tensor]) -> int:
    return 1 + max((int(key.split(".")[1]) for key in state if key.startswith("blocks.")), default=-1)


def _fuse(state: Mapping[str, Tensor], layers: int) -> dict[str, Tensor]:
    """The state with a learned position per row, and one tensor where the file has queries, keys and values apart."""
    fused = {**state, "pos_emb": take(state, "pos_emb").flatten(0, -2)}
    for layer in range(layers):
        for kind in ("weight", "bias"):
            names = [f"blocks.{layer}.attn.{part}.{kind}" for part in ("query", "key", "value")]
            fused[f"blocks.{layer}.attn.{{key,query,value}}.{kind}"] = torch.cat([take(state, name) for name in names])
            for name in names:
                del fused[name]
    return fused


def _extents(params: Mapping[str, Any]) -> tuple[int, int] | None:
    """Rows and columns of the first stage's codes, where its configuration is given."""
    first_stage = published.parameters(params.get("first_stage_config", {}))
    if "ddconfig" not in first_stage:
        return None
    side = first_stage["ddconfig"]["resolution"] // 2 ** (len(first_stage["ddconfig"]["ch_mult"]) - 1)
    return side, side


def _fill_context(context: int) -> tuple[int, ...]:
    """All steps that the context holds after one condition token: a square of them, if they make one."""
    side = isqrt(context)
    return (side, side) if side * side == context else (context,)
