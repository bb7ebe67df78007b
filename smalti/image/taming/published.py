"""How VQGANs are published: the configurations and key names of taming-transformers, latent diffusion and diffusers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from smalti.checkpoint import drop, prefer_averaged, rename, take
from smalti.errors import CheckpointError, ConfigError
from smalti.image.taming.codebook import EMACodebook, GradientCodebook, GumbelCodebook, Remap
from smalti.image.vqgan import Decoder, Encoder, read_decoder, read_encoder

# Losses (perceptual networks, discriminators), and the random projection that shows segmentation maps in colour.
IGNORED = ("loss.*", "colorize")

NETWORK_SETTINGS = {
    "ch", "ch_mult", "num_res_blocks", "attn_resolutions", "in_channels", "out_ch", "resolution", "z_channels",
}  # fmt: skip

# What else the official networks read, with the value that every published VQGAN has: another gives other networks.
FIXED_SETTINGS: Mapping[str, Any] = {
    "double_z": False,
    "resamp_with_conv": True,
    "attn_type": "vanilla",
    "use_linear_attn": False,
    "give_pre_end": False,
    "tanh_out": False,
}

HARMLESS_SETTINGS = {"dropout", "use_checkpoint"}  # used in training only

DIFFUSERS_KEYS = (
    (r"^(encoder|decoder)\.mid_block\.resnets\.0\.", r"\1.mid.block_1."),
    (r"^(encoder|decoder)\.mid_block\.resnets\.1\.", r"\1.mid.block_2."),
    (r"^(encoder|decoder)\.mid_block\.attentions\.0\.", r"\1.mid.attn_1."),
    (r"^encoder\.down_blocks\.", "encoder.down."),
    (r"^decoder\.up_blocks\.", "decoder.up."),
    (r"\.resnets\.", ".block."),
    (r"\.attentions\.", ".attn."),
    (r"\.conv_shortcut\.", ".nin_shortcut."),
    (r"\.downsamplers\.0\.", ".downsample."),
    (r"\.upsamplers\.0\.", ".upsample."),
    (r"\.conv_norm_out\.", ".norm_out."),
    (r"\.group_norm\.", ".norm."),
    (r"\.(to_q|query)\.", ".q."),
    (r"\.(to_k|key)\.", ".k."),
    (r"\.(to_v|value)\.", ".v."),
    (r"\.(to_out\.0|proj_attn)\.", ".proj_out."),
)

CODEBOOK_KEYS: Mapping[str, Mapping[str, str]] = {
    "gradient": {"quantize.embedding.weight": "alphabet.vectors.weight"},
    "ema": {
        "quantize.embedding.weight": "alphabet.vectors.weight",
        "quantize.embedding.cluster_size": "alphabet.ema_count",
        "quantize.embedding.embed_avg": "alphabet.ema_sum",
        "quantize.started": "alphabet.started",
    },
    "gumbel": {
        "quantize.embed.weight": "alphabet.vectors.weight",
        "quantize.proj.weight": "assign.logits.weight",
        "quantize.proj.bias": "assign.logits.bias",
    },
}


def parameters(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The constructor's arguments inside a yaml (`model.params`), or the mapping itself."""
    model = config["model"] if isinstance(config.get("model"), Mapping) else config
    return model.get("params", model)


def taming_keys(params: Mapping[str, Any], state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state under taming's names, whichever project wrote it, without what is not part of the tokenizer.

    Raises:
        CheckpointError: if diffusers' layout is not complete enough to be renamed.
    """
    state = drop(prefer_averaged(state), IGNORED)
    if any(key.startswith("encoder.down_blocks.") for key in state):
        state = _from_diffusers(state)
    if params.get("remap") is not None and "quantize.used" not in state:
        state["quantize.used"] = torch.from_numpy(np.load(params["remap"], allow_pickle=False)).long()
    if "quantize.embedding.embed_avg" in state:
        state["quantize.started"] = torch.tensor(True)  # its codebook needs no k-means start
    return state


def read_networks(params: Mapping[str, Any], state: Mapping[str, Tensor]) -> tuple[Encoder.Config, Decoder.Config]:
    """The networks that a `ddconfig` describes; without one, sizes are read off the tensors."""
    if "ddconfig" not in params:
        return read_encoder(state), read_decoder(state)
    settings = params["ddconfig"]
    missing = sorted(NETWORK_SETTINGS - settings.keys())
    if missing:
        raise ConfigError(f"ddconfig lacks {missing}")
    unknown = sorted(settings.keys() - NETWORK_SETTINGS - FIXED_SETTINGS.keys() - HARMLESS_SETTINGS)
    if unknown:
        raise ConfigError(f"ddconfig has {unknown}, which may change the networks; remove what is known not to")
    for name, published in FIXED_SETTINGS.items():
        if settings.get(name, published) != published:
            raise ConfigError(f"ddconfig.{name} is {settings[name]!r}; every published VQGAN has {published!r}")
    last = len(settings["ch_mult"]) - 1
    # Attention goes by the resolution in training, as each network rounds it: the encoder while it halves, the decoder
    # while it doubles what is left. Images of another size have it at the same levels.
    halved = [settings["resolution"] // 2**level for level in range(last + 1)]
    doubled = [halved[last] * 2 ** (last - level) for level in range(last + 1)]
    common: dict[str, Any] = {
        "widths": tuple(settings["ch"] * multiplier for multiplier in settings["ch_mult"]),
        "latent_channels": settings["z_channels"],
        "dropout": settings.get("dropout", 0.0),
    }
    encoder = Encoder.Config(
        image_channels=settings["in_channels"],
        stem=settings["ch"],
        blocks=settings["num_res_blocks"],
        attention_levels=_levels_of(halved, settings["attn_resolutions"]),
        **common,
    )
    decoder = Decoder.Config(
        image_channels=settings["out_ch"],
        blocks=settings["num_res_blocks"] + 1,
        attention_levels=_levels_of(doubled, settings["attn_resolutions"]),
        **common,
    )
    return encoder, decoder


def read_codebook(
    params: Mapping[str, Any], state: Mapping[str, Tensor], legacy_training: bool
) -> GradientCodebook | EMACodebook | GumbelCodebook:
    """The codebook: its kind by its keys, its size by the configuration or its tensors."""
    gumbel = any(key.startswith("quantize.proj.") for key in state)
    rows = take(state, "quantize.embed.weight" if gumbel else "quantize.embedding.weight")
    codes, dim = params.get("n_embed", rows.shape[0]), params.get("embed_dim", rows.shape[-1])
    if gumbel:
        return GumbelCodebook(codes=codes, dim=dim, kl_weight=params.get("kl_weight", 1e-8))
    if "quantize.started" in state:
        return EMACodebook(codes=codes, dim=dim)
    legacy = legacy_training and params.get("legacy", True)
    return GradientCodebook(codes=codes, dim=dim, legacy_training=legacy)


def read_remap(params: Mapping[str, Any], state: Mapping[str, Tensor]) -> Remap | None:
    """The renumbering, where the state holds the codes in use."""
    if "quantize.used" not in state:
        return None
    unknown = params.get("unknown_index", "random")
    # A random one, as published by default, would give a sample other codes every time.
    return Remap(used=len(state["quantize.used"]), unknown="nearest" if unknown == "random" else unknown)


def own_names(codebook: GradientCodebook | EMACodebook | GumbelCodebook, remap: Remap | None) -> dict[str, str]:
    """Our names of the tensors that are called otherwise under taming's names."""
    inner = "quantizer" if remap is None else "quantizer.inner"
    names = {key: f"{inner}.{own}" for key, own in CODEBOOK_KEYS[codebook.type].items()}
    return names if remap is None else names | {"quantize.used": "quantizer.used"}


def as_linear(key: str, tensor: Tensor) -> Tensor:
    """Gumbel logits are published as a 1x1 convolution; here they are a linear map over rows."""
    return tensor.flatten(1) if key == "quantize.proj.weight" else tensor


def _levels_of(resolutions: list[int], chosen: list[int]) -> tuple[int, ...]:
    return tuple(level for level, resolution in enumerate(resolutions) if resolution in chosen)


def _from_diffusers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    renamed = rename(state, DIFFUSERS_KEYS)
    levels = [int(match[1]) for key in renamed if (match := re.match(r"decoder\.up\.(\d+)\.", key))]
    if not levels:
        raise CheckpointError("the checkpoint has no decoder.up_blocks.*: not a diffusers VQModel")
    # diffusers counts the decoder's levels from the deepest, and writes attention as linear maps.
    return {
        re.sub(r"^decoder\.up\.(\d+)", lambda match: f"decoder.up.{max(levels) - int(match[1])}", key): (
            tensor[..., None, None] if ".attn" in key and tensor.ndim == 2 else tensor
        )
        for key, tensor in renamed.items()
    }
