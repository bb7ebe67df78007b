"""LlamaGen: VQGAN with a codebook of unit vectors in few dimensions, and a Llama over its tokens.

Source: "Autoregressive Model Beats Diffusion: Llama for Scalable Image Generation" (2024), FoundationVision/LlamaGen.

    image ──► encoder ──► quant_conv ──► z (B,H/f,W/f,8) ──► z/|z| ──► nearest e/|e| ──► codes (B,H/f,W/f,1)
    image ◄── decoder ◄── post_quant_conv ◄── e/|e| ◄──────────────── gather rows

    [class | text features] + codes in raster order ──► Llama with 2-D rotary positions ──► logits of the next code
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import isqrt
from typing import Any, ClassVar, Self

from pydantic import Field
from torch import Tensor

from smalti.checkpoint import KeyTable, drop, take
from smalti.config import Training
from smalti.errors import CheckpointError, ConfigError
from smalti.folder import fill
from smalti.generate.autoregressive import AutoregressiveTransformer
from smalti.generate.conditions import ClassCondition, FeatureCondition, PrefixConfig
from smalti.image.vqgan import Decoder, Encoder, QuantizedAutoencoder, read_decoder, read_encoder
from smalti.nn.transformer import GridRotary, Transformer
from smalti.quantize import Codebook, Commitment, Quantize, SoftEntropy, Table, Trained
from smalti.tokens import StreamSpec

# The ring buffer of the last 65536 codes, from which the official code prints how much of the codebook is used.
IGNORED = ("quantize.codebook_used",)


class LlamaGen(QuantizedAutoencoder):
    """LlamaGen's tokenizer; see the module's docstring."""

    name: ClassVar[str] = "llamagen"

    class Config(QuantizedAutoencoder.Config):
        """The networks, the codebook and its losses. Defaults: VQ-16, 16x16 positions for 256x256 pixels.

        Args:
            encoder, decoder: the networks; published ones have attention at the last level only.
            codes, dim: size of the codebook.
            unit: compare and decode vectors at length 1.
            commitment_weight: of the loss that draws latents to their codes; the other direction has weight 1.
            entropy_weight: of the term that wants certain and evenly used codes.
        """

        codes: int = Field(16384, ge=1)
        dim: int = Field(8, ge=1)
        unit: bool = True
        commitment_weight: Training[float] = Field(0.25, ge=0)
        entropy_weight: Training[float] = Field(0.0, ge=0)

        def build(self) -> LlamaGen:
            return LlamaGen(self)

        @classmethod
        def tiny(cls) -> Self:
            sizes: dict[str, Any] = {"widths": (32, 32), "attention_levels": (1,), "latent_channels": 8}
            return cls(
                encoder=Encoder.Config(stem=32, blocks=1, **sizes),
                decoder=Decoder.Config(blocks=2, **sizes),
                codes=32,
                dim=4,
                entropy_weight=0.1,
            )

    def __init__(self, config: Config) -> None:
        quantizer = Quantize(
            Table(Trained(config.codes, config.dim), space="unit" if config.unit else "euclidean"),
            terms=[Codebook(), Commitment(config.commitment_weight), SoftEntropy(config.entropy_weight)],
        )
        super().__init__(config, quantizer)

    @classmethod
    def from_official(cls, config: Mapping[str, Any] | None, state: Mapping[str, Tensor]) -> Self:
        """A published tokenizer.

        Args:
            config: the official arguments (`codebook_l2_norm`, `entropy_loss_ratio` ...), or None.
            state: official keys -> tensors.

        Raises:
            CheckpointError: if a key is missing, unknown, or of an impossible shape.
        """
        settings, state = config or {}, drop(state, IGNORED)
        levels = [_count(state, rf"{half}\.conv_blocks\.(\d+)\.") for half in ("encoder", "decoder")]
        keys = tokenizer_keys(*levels)
        own = keys.own_state(state)
        codes, dim = take(state, "quantize.embedding.weight").shape
        by_settings = "encoder_ch_mult" in settings
        encoder, decoder = _read_networks(settings) if by_settings else (read_encoder(own), read_decoder(own))
        tokenizer = cls(
            cls.Config(
                encoder=encoder,
                decoder=decoder,
                codes=settings.get("codebook_size", codes),
                dim=settings.get("codebook_embed_dim", dim),
                unit=settings.get("codebook_l2_norm", True),
                commitment_weight=settings.get("commit_loss_beta", 0.25),
                entropy_weight=settings.get("entropy_loss_ratio", 0.0),
            )
        )
        fill(tokenizer, own, "the LlamaGen checkpoint", keys.official_names(tokenizer.state_dict()))
        return tokenizer.eval()


LlamaGen.presets = {
    "vq_ds16": LlamaGen.Config(),
    "vq_ds8": LlamaGen.Config(
        encoder=Encoder.Config(widths=(128, 256, 256, 512), attention_levels=(3,)),
        decoder=Decoder.Config(widths=(128, 256, 256, 512), attention_levels=(3,)),
    ),
}


class LlamaGenAR(AutoregressiveTransformer):
    """LlamaGen's transformer; see the module's docstring.

    Keywords: `label` (batch,) for models of classes; `features` (batch, length, dim) and `features_mask` for models of
    text, both padded on the left as the published text encoder's are.
    """

    name: ClassVar[str] = "llamagen/ar"

    class Config(AutoregressiveTransformer.Config):
        """See `AutoregressiveTransformer.Config`. Defaults: GPT-B for ImageNet's classes at 256x256 pixels."""

        condition: PrefixConfig = ClassCondition()
        transformer: Transformer.Config = Field(default_factory=lambda: _llama(12, 12, 768))
        zero_head: bool = True

        def build(self) -> LlamaGenAR:
            return LlamaGenAR(self)

        @classmethod
        def tiny(cls) -> Self:
            return cls(
                streams={"codes": StreamSpec((3, 4), (16,))},
                condition=ClassCondition(classes=3),
                transformer=_llama(2, 2, 16, grid=(3, 4)),
                zero_head=False,
            )

    @classmethod
    def from_official(cls, config: Mapping[str, Any] | None, state: Mapping[str, Tensor]) -> Self:
        """A published transformer, of classes or of text.

        Args:
            config: the official arguments (`n_head`, `block_size` ...), or None; 16x16 positions are then assumed,
                unless the file is one of the old ones that hold their position table.
            state: official keys -> tensors.

        Raises:
            CheckpointError: if a key is missing, unknown, or of an impossible shape.
        """
        settings, state = config or {}, drop(state, AR_IGNORED)
        ids = settings.get("vocab_size", take(state, "tok_embeddings.weight").shape[0])
        condition = _read_condition(settings, state)
        grid = _read_grid(settings, state, condition.length)
        generator = cls(
            cls.Config(
                streams={"codes": StreamSpec(grid, (ids,))},
                condition=condition,
                transformer=_read_llama(settings, state, condition.length, grid),
            )
        )
        own = AR_KEYS.own_state(drop(state, (POSITION_TABLE,)))
        if "prefix.empty" in own:
            own["prefix.empty"] = own["prefix.empty"][: condition.length]
        fill(generator, own, "the LlamaGen checkpoint", AR_KEYS.official_names(generator.state_dict()))
        return generator.eval()


def _llama(
    layers: int, heads: int, width: int, *, condition: int = 1, grid: tuple[int, int] = (16, 16), **changes: Any
) -> Transformer.Config:
    """LlamaGen's choices around the sizes of one of its models."""
    choices: dict[str, Any] = {
        "hidden": -(-int(8 * width / 3) // 256) * 256,
        "context": condition + grid[0] * grid[1],
        "norm": "rms",
        "mlp": "swiglu",
        "bias": False,
        "positions": GridRotary(grid=grid, zero_prefix=True),
        "embedding_dropout": 0.1,
        "residual_dropout": 0.1,
    }
    return Transformer.Config(layers=layers, heads=heads, width=width, **(choices | changes))


SIZES = {
    "B": (12, 12, 768),
    "L": (24, 16, 1024),
    "XL": (36, 20, 1280),
    "XXL": (48, 24, 1536),
    "XXXL": (48, 40, 2560),
    "1B": (22, 32, 2048),
    "3B": (24, 32, 3200),
    "7B": (32, 32, 4096),
}


def _of_classes(size: str, grid: int) -> LlamaGenAR.Config:
    extents = (grid, grid)
    return LlamaGenAR.Config(
        streams={"codes": StreamSpec(extents, (16384,))}, transformer=_llama(*SIZES[size], grid=extents)
    )


def _of_text(grid: int) -> LlamaGenAR.Config:
    extents, condition = (grid, grid), FeatureCondition()
    return LlamaGenAR.Config(
        streams={"codes": StreamSpec(extents, (16384,))},
        condition=condition,
        transformer=_llama(*SIZES["XL"], condition=condition.length, grid=extents),
    )


LlamaGenAR.presets = {
    **{f"c2i_{size}_256": _of_classes(size, 16) for size in SIZES},
    **{f"c2i_{size}_384": _of_classes(size, 24) for size in SIZES},
    "t2i_XL_256": _of_text(16),
    "t2i_XL_512": _of_text(32),
}


# --- published keys and configurations -------------------------------------------------------------------------------


def tokenizer_keys(encoder_levels: int, decoder_levels: int) -> KeyTable:
    """LlamaGen's names of the network; its decoder counts levels from the deepest, taming's from the finest.

    Args:
        encoder_levels, decoder_levels: number of levels of each half.
    """
    templates = {"quantize.embedding.": "quantizer.alphabet.vectors."}
    for half in ("encoder", "decoder"):
        for index, name in enumerate(("block_1", "attn_1", "block_2")):
            templates[f"{half}.mid.{index}."] = f"{half}.mid.{name}."
    levels = [(f"encoder.conv_blocks.{level}", f"encoder.down.{level}") for level in range(encoder_levels)]
    levels += [
        (f"decoder.conv_blocks.{decoder_levels - 1 - level}", f"decoder.up.{level}") for level in range(decoder_levels)
    ]
    for official, own in levels:
        templates[f"{official}.res.{{}}."] = f"{own}.block.{{}}."
        templates[f"{official}.attn.{{}}."] = f"{own}.attn.{{}}."
        templates[f"{official}.downsample."] = f"{own}.downsample."
        templates[f"{official}.upsample."] = f"{own}.upsample."
    return KeyTable(templates)


def _count(state: Mapping[str, Tensor], pattern: str) -> int:
    """One more than the largest number that a pattern finds in the keys.

    Raises:
        CheckpointError: if it finds none.
    """
    numbers = [int(match[1]) for key in state if (match := re.match(pattern, key))]
    if not numbers:
        raise CheckpointError(f"the checkpoint has no keys that begin with {pattern}; it has {sorted(state)[:4]}")
    return 1 + max(numbers)


def _read_networks(settings: Mapping[str, Any]) -> tuple[Encoder.Config, Decoder.Config]:
    """The networks of official arguments; `ch` and `num_res_blocks` are fixed in the official code."""
    ch, blocks = settings.get("ch", 128), settings.get("num_res_blocks", 2)
    common = {"latent_channels": settings.get("z_channels", 256), "dropout": settings.get("dropout_p", 0.0)}
    encoder = [ch * multiplier for multiplier in settings["encoder_ch_mult"]]
    decoder = [ch * multiplier for multiplier in settings.get("decoder_ch_mult", settings["encoder_ch_mult"])]
    return (
        Encoder.Config(stem=ch, widths=tuple(encoder), blocks=blocks, attention_levels=(len(encoder) - 1,), **common),
        Decoder.Config(widths=tuple(decoder), blocks=blocks + 1, attention_levels=(len(decoder) - 1,), **common),
    )


AR_IGNORED = ("layers.*.attention.kv_cache.*", "causal_mask")
POSITION_TABLE = "freqs_cis"  # in old files only

AR_KEYS = KeyTable(
    {
        "cls_embedding.embedding_table.": "prefix.embedding.",
        "cls_embedding.cap_proj.fc1.": "prefix.up.",
        "cls_embedding.cap_proj.fc2.": "prefix.down.",
        "cls_embedding.uncond_embedding": "prefix.empty",
        "tok_embeddings.": "embedding.",
        "layers.{}.attention.wqkv.": "transformer.blocks.{}.attention.qkv.",
        "layers.{}.attention.wo.": "transformer.blocks.{}.attention.out.",
        "layers.{}.feed_forward.w1.": "transformer.blocks.{}.mlp.gate.",
        "layers.{}.feed_forward.w2.": "transformer.blocks.{}.mlp.down.",
        "layers.{}.feed_forward.w3.": "transformer.blocks.{}.mlp.up.",
        "layers.{}.attention_norm.": "transformer.blocks.{}.norm1.",
        "layers.{}.ffn_norm.": "transformer.blocks.{}.norm2.",
        "norm.": "transformer.norm.",
        "output.": "head.",
    }
)


def _read_condition(settings: Mapping[str, Any], state: Mapping[str, Tensor]) -> ClassCondition | FeatureCondition:
    dropout = settings.get("class_dropout_prob", 0.1)
    if "cls_embedding.embedding_table.weight" in state:
        rows = state["cls_embedding.embedding_table.weight"].shape[0]
        return ClassCondition(classes=settings.get("num_classes", rows - 1), dropout=dropout)
    features = take(state, "cls_embedding.uncond_embedding")
    length = settings.get("cls_token_num", features.shape[0])
    return FeatureCondition(length=length, dim=settings.get("caption_dim", features.shape[1]), dropout=dropout)


def _read_grid(settings: Mapping[str, Any], state: Mapping[str, Tensor], condition: int) -> tuple[int, int]:
    size = settings.get("block_size")
    if size is None:
        size = len(state[POSITION_TABLE]) - condition if POSITION_TABLE in state else 256
    side = isqrt(size)
    if side * side != size:
        raise ConfigError(f"block_size {size} is no square, which its position table needs")
    return side, side


def _read_llama(
    settings: Mapping[str, Any], state: Mapping[str, Tensor], condition: int, grid: tuple[int, int]
) -> Transformer.Config:
    width = settings.get("dim", take(state, "tok_embeddings.weight").shape[1])
    layers = settings.get("n_layer", _count(state, r"layers\.(\d+)\."))
    published = {(depth, size): number for depth, number, size in SIZES.values()}
    heads = settings.get("n_head", published.get((layers, width)))
    if heads is None:
        raise ConfigError(f"no published model has {layers} layers of width {width}: its n_head has to be given")
    fused = take(state, "layers.0.attention.wqkv.weight").shape[0]
    kv_heads = settings.get("n_kv_head") or (fused * heads // width - heads) // 2
    return _llama(
        layers,
        heads,
        width,
        condition=condition,
        grid=grid,
        kv_heads=None if kv_heads == heads else kv_heads,
        hidden=take(state, "layers.0.feed_forward.w1.weight").shape[0],
        positions=GridRotary(grid=grid, base=settings.get("rope_base", 10000), zero_prefix=True),
        norm_eps=settings.get("norm_eps", 1e-5),
        embedding_dropout=settings.get("token_dropout_p", 0.1),
        residual_dropout=settings.get("resid_dropout_p", 0.1),
        attention_dropout=settings.get("attn_dropout_p", 0.0),
    )
