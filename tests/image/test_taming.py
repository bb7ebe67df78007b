"""VQGAN: its codebooks, published layouts and rules."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from smalti.checkpoint import unwrap
from smalti.errors import CheckpointError, ConfigError
from smalti.image.taming import VQGAN, published
from smalti.image.taming.codebook import EMACodebook, GradientCodebook, GumbelCodebook, Remap
from smalti.image.vqgan import Decoder, Encoder
from smalti.testing import check_quantizer
from tests.image import taming_reference as reference

DDCONFIG = {
    "double_z": False,
    "z_channels": 8,
    "resolution": 16,
    "in_channels": 3,
    "out_ch": 3,
    "ch": 32,
    "ch_mult": [1, 2],
    "num_res_blocks": 1,
    "attn_resolutions": [8],
    "dropout": 0.0,
}
CONFIG = {"ddconfig": DDCONFIG, "n_embed": 24, "embed_dim": 4}


def random_vqgan(**changes: Any) -> VQGAN:
    torch.manual_seed(0)
    return VQGAN.Config.tiny().replace(**changes).build().eval()


def official(model: VQGAN) -> dict[str, Tensor]:
    """The state under taming's names, written out here once more."""
    state = {}
    for key, tensor in model.state_dict().items():
        name = key.replace("quantizer.inner.", "quantizer.").replace("quantizer.used", "quantize.used")
        embedding = "embed" if model.config.codebook.type == "gumbel" else "embedding"
        name = name.replace("quantizer.alphabet.vectors.weight", f"quantize.{embedding}.weight")
        name = name.replace("quantizer.alphabet.ema_count", "quantize.embedding.cluster_size")
        name = name.replace("quantizer.alphabet.ema_sum", "quantize.embedding.embed_avg")
        if name.startswith("quantizer.assign.logits."):
            name = name.replace("quantizer.assign.logits.", "quantize.proj.")
            tensor = tensor[..., None, None] if tensor.ndim == 2 else tensor
        if not name.startswith("quantizer."):
            state[name] = tensor.contiguous().clone()
    return state


def images(batch: int = 2, height: int = 16, width: int = 16) -> Tensor:
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(1))


def test_codes_are_the_nearest_rows_of_the_plain_network() -> None:
    model = random_vqgan(codebook=GradientCodebook(codes=50, dim=4))
    state, x = official(model), images(height=12, width=20)
    z = reference.conv(state, "quant_conv", reference.encode(state, x * 2 - 1)).permute(0, 2, 3, 1).double()
    table = state["quantize.embedding.weight"].double()
    expected = (z[..., None, :] - table).square().sum(-1).argmin(-1)
    tokens = model.encode(x)
    assert torch.equal(tokens.codes[..., 0], expected)
    rows = table[expected].permute(0, 3, 1, 2).float()
    pixels = reference.decode(state, reference.conv(state, "post_quant_conv", rows))
    torch.testing.assert_close(model.decode(tokens), ((pixels + 1) / 2).clamp(0, 1), atol=2e-5, rtol=0)


def test_attention_stays_at_its_level_for_other_sizes() -> None:
    ddconfig = {**DDCONFIG, "resolution": 256, "ch_mult": [1, 1, 1, 1, 1], "attn_resolutions": [16]}
    encoder, decoder = published.read_networks({"ddconfig": ddconfig}, {})
    assert encoder.attention_levels == decoder.attention_levels == (4,)
    model = VQGAN.Config(encoder=encoder, decoder=decoder, codebook=GradientCodebook(codes=8, dim=4)).build()
    assert model.encode(torch.rand(1, 3, 512, 512)).codes.shape == (1, 32, 32, 1)


@pytest.mark.parametrize("resolution", [32, 36, 50])
@pytest.mark.parametrize("chosen", [[8], [9, 4], [12], [25], [36, 32, 24]])
def test_attention_levels_are_those_of_the_official_loops(resolution: int, chosen: list[int]) -> None:
    ddconfig = {**DDCONFIG, "resolution": resolution, "ch_mult": [1, 1, 1, 1], "attn_resolutions": chosen}
    encoder, decoder = published.read_networks({"ddconfig": ddconfig}, {})
    current, expected = resolution, []
    for level in range(4):
        if current in chosen:
            expected.append(level)
        current //= 2
    assert encoder.attention_levels == tuple(expected)
    current, expected = resolution // 2**3, []
    for level in reversed(range(4)):
        if current in chosen:
            expected.insert(0, level)
        current *= 2
    assert decoder.attention_levels == tuple(expected)


@pytest.mark.parametrize("legacy", [False, True])
def test_legacy_training_swaps_the_two_weights(legacy: bool) -> None:
    model = random_vqgan(codebook=GradientCodebook(codes=32, dim=4, commitment_weight=0.3, legacy_training=legacy))
    out = model(images())
    z = model.latents(images())
    q = model.quantizer.decode(out.quantized.codes)
    distance = (z - q).square().mean()
    assert out.terms["commitment"].item() == pytest.approx((1.0 if legacy else 0.3) * distance.item(), rel=1e-5)
    assert out.terms["codebook"].item() == pytest.approx((0.3 if legacy else 1.0) * distance.item(), rel=1e-5)


@pytest.mark.parametrize(("legacy_training", "config", "swapped"), [
    (False, CONFIG, False),
    (True, CONFIG, True),
    (True, {**CONFIG, "legacy": False}, False),
])  # fmt: skip
def test_published_weights_are_swapped_only_when_asked_for(
    legacy_training: bool, config: dict[str, Any], swapped: bool
) -> None:
    state = official(VQGAN.from_official(CONFIG, official(configured())))
    model = VQGAN.from_official(config, state, legacy_training=legacy_training)
    assert model.config.codebook.legacy_training is swapped


def configured() -> VQGAN:
    encoder, decoder = published.read_networks({"ddconfig": DDCONFIG}, {})
    return random_vqgan(encoder=encoder, decoder=decoder, codebook=GradientCodebook(codes=24, dim=4))


# --- loading ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("codebook", [
    GradientCodebook(codes=32, dim=4),
    EMACodebook(codes=32, dim=4),
    GumbelCodebook(codes=32, dim=4),
])  # fmt: skip
def test_every_codebook_loads_and_gives_the_same_codes(codebook: Any) -> None:
    model = random_vqgan(codebook=codebook)
    state = official(model) | {"loss.discriminator.main.0.weight": torch.ones(1), "colorize": torch.ones(3)}
    loaded = VQGAN.from_official(None, state)
    assert loaded.config == model.config
    assert not loaded.training
    assert torch.equal(loaded.encode(images()).codes, model.encode(images()).codes)


def test_a_yaml_gives_the_same_model_as_the_tensors_alone() -> None:
    state = official(configured())
    by_yaml = VQGAN.from_official({"model": {"target": "taming.models.vqgan.VQModel", "params": CONFIG}}, state)
    assert by_yaml.config == VQGAN.from_official(None, state).config


def test_lightning_files_and_moving_averages_are_read() -> None:
    live, averaged = official(configured()), official(configured())
    averaged = {key: tensor + 0.01 for key, tensor in averaged.items() if key != "quantize.embedding.weight"}
    ema = {f"model_ema.{key.replace('.', '')}": tensor for key, tensor in averaged.items()}
    counters = {"model_ema.decay": torch.tensor(0.9), "model_ema.num_updates": torch.tensor(1)}
    state, _ = unwrap({"state_dict": live | ema | counters, "epoch": 3})
    model = VQGAN.from_official(CONFIG, state)
    own = model.state_dict()
    assert torch.equal(own["encoder.conv_in.weight"], averaged["encoder.conv_in.weight"])
    assert torch.equal(own["quantizer.alphabet.vectors.weight"], live["quantize.embedding.weight"])
    with pytest.raises(CheckpointError, match="encoderghostweight"):
        VQGAN.from_official(CONFIG, state | {"model_ema.encoderghostweight": torch.ones(1)})


@pytest.mark.parametrize("config", [None, CONFIG])
@pytest.mark.parametrize("key", [
    "encoder.down.0.block.0.conv1.weight", "decoder.up.1.block.1.conv2.bias", "quant_conv.weight",
    "quantize.embedding.weight", "encoder.mid.attn_1.q.weight", "decoder.conv_out.weight",
])  # fmt: skip
def test_a_missing_key_is_named(config: dict[str, Any] | None, key: str) -> None:
    state = official(configured())
    del state[key]
    with pytest.raises(CheckpointError, match=key.replace(".", r"\.")):
        VQGAN.from_official(config, state)


@pytest.mark.parametrize("config", [None, CONFIG])
def test_an_unknown_key_and_a_wrong_shape_are_named(config: dict[str, Any] | None) -> None:
    state = official(configured())
    with pytest.raises(CheckpointError, match=r"unknown: encoder\.extra\.weight"):
        VQGAN.from_official(config, state | {"encoder.extra.weight": torch.ones(1)})
    with pytest.raises(CheckpointError, match=r"encoder\.down\.1\.block\.0\.conv2\.weight"):
        VQGAN.from_official(config, state | {"encoder.down.1.block.0.conv2.weight": torch.ones(3, 64, 3, 3)})


def test_what_no_published_model_has_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"lacks .*'ch'"):
        VQGAN.from_official({"ddconfig": {"ch_mult": [1, 2]}}, official(configured()))
    with pytest.raises(ConfigError, match="double_z"):
        VQGAN.from_official({**CONFIG, "ddconfig": {**DDCONFIG, "double_z": True}}, official(configured()))


@pytest.mark.parametrize(("name", "value"), [
    ("tanh_out", True),
    ("give_pre_end", True),
    ("use_linear_attn", True),
    ("attn_type", "linear"),
    ("resamp_with_conv", False),
    ("norm_type", "batch"),
])  # fmt: skip
def test_settings_that_change_the_networks_are_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=name):
        published.read_networks({"ddconfig": {**DDCONFIG, name: value}}, {})


def test_settings_that_say_what_every_published_network_has_are_accepted() -> None:
    # taming-transformers' and latent-diffusion's constructors have these defaults.
    defaults = {
        "tanh_out": False,
        "give_pre_end": False,
        "use_linear_attn": False,
        "attn_type": "vanilla",
        "resamp_with_conv": True,
    }
    spelled_out = published.read_networks({"ddconfig": {**DDCONFIG, **defaults}}, {})
    assert spelled_out == published.read_networks({"ddconfig": DDCONFIG}, {})


def test_diffusers_layout() -> None:
    sizes: dict[str, Any] = {"widths": (32, 64), "attention_levels": (1,), "latent_channels": 8}
    encoder, decoder = Encoder.Config(stem=32, blocks=1, **sizes), Decoder.Config(blocks=2, **sizes)
    model = random_vqgan(encoder=encoder, decoder=decoder)
    names = {
        "mid.block_1": "mid_block.resnets.0", "mid.block_2": "mid_block.resnets.1",
        "mid.attn_1": "mid_block.attentions.0", "norm_out": "conv_norm_out", "nin_shortcut": "conv_shortcut",
        "down.0.block": "down_blocks.0.resnets", "down.1.block": "down_blocks.1.resnets",
        "down.1.attn": "down_blocks.1.attentions", "down.0.downsample.conv": "down_blocks.0.downsamplers.0.conv",
        "up.1.block": "up_blocks.0.resnets", "up.0.block": "up_blocks.1.resnets",
        "up.1.attn": "up_blocks.0.attentions", "up.1.upsample.conv": "up_blocks.0.upsamplers.0.conv",
    }  # fmt: skip
    state = {}
    for key, tensor in official(model).items():
        attention = ".attn" in key
        for ours, theirs in names.items():
            key = key.replace(ours, theirs)
        if attention:
            for ours, theirs in {".norm.": ".group_norm.", ".q.": ".to_q.", ".k.": ".to_k.", ".v.": ".to_v.",
                                 ".proj_out.": ".to_out.0."}.items():  # fmt: skip
                key = key.replace(ours, theirs)
            tensor = tensor.flatten(1) if tensor.ndim == 4 else tensor
        state[key] = tensor
    loaded = VQGAN.from_official({"_class_name": "VQModel", "num_vq_embeddings": 32}, state)
    assert loaded.config == model.config
    assert torch.equal(loaded.encode(images()).codes, model.encode(images()).codes)


def test_saved_and_loaded_gives_the_same_codes(tmp_path: Path) -> None:
    model = random_vqgan(remap=Remap(used=7))
    model.quantizer.used.copy_(torch.tensor([3, 5, 8, 13, 21, 30, 31]))
    tokens = model.encode(images())
    loaded = VQGAN.load(model.save(tmp_path / "model"))
    assert loaded.encode(images()).equal(tokens)


# --- codebooks -------------------------------------------------------------------------------------------------------


def test_gumbel_takes_the_most_likely_code_and_weighs_the_divergence() -> None:
    model = random_vqgan(codebook=GumbelCodebook(codes=32, dim=4, kl_weight=0.5))
    state, z = official(model), model.latents(images()).permute(0, 3, 1, 2)
    logits = F.conv2d(z, state["quantize.proj.weight"], state["quantize.proj.bias"])
    out = model(images())
    assert torch.equal(out.quantized.codes[..., 0], logits.argmax(1))
    q = torch.softmax(logits, dim=1)
    kl = 0.5 * (q * torch.log(q * 32 + 1e-10)).sum(1).mean()
    torch.testing.assert_close(out.loss, kl)


def test_gumbel_draws_in_training_and_its_gradient_reaches_the_logits() -> None:
    model = random_vqgan(codebook=GumbelCodebook(codes=32, dim=4)).train()
    out = model(images())
    out.x.square().mean().backward()
    assert model.quantizer.assign.logits.weight.grad.abs().sum() > 0
    assert model.quantizer.alphabet.vectors.weight.grad.abs().sum() > 0


def test_ema_moves_rows_and_nothing_else_does() -> None:
    model = random_vqgan(codebook=EMACodebook(codes=32, dim=4)).train()
    before = model.quantizer.codebooks()[0].clone()
    out = model(images())
    (out.loss + out.x.abs().mean()).backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    assert torch.equal(model.quantizer.codebooks()[0], before)
    model.quantizer.update()
    assert not torch.equal(model.quantizer.codebooks()[0], before)


def test_remap_and_back_gives_the_same_images(tmp_path: Path) -> None:
    model = configured()
    codes = model.encode(images()).codes
    used = codes.unique()
    np.save(tmp_path / "used.npy", used.numpy())
    remapped = VQGAN.from_official({**CONFIG, "remap": str(tmp_path / "used.npy")}, official(model))
    tokens = remapped.encode(images())
    assert tokens.vocab == (len(used),)
    assert torch.equal(used[tokens.codes], codes)
    assert torch.equal(remapped.decode(tokens), model.decode(model.encode(images())))
    again = VQGAN.from_official(None, official(remapped))
    assert torch.equal(again.encode(images()).codes, tokens.codes)


@pytest.mark.parametrize(("unknown", "vocab"), [("nearest", 3), ("extra", 4), (2, 3)])
def test_codes_that_are_not_in_use(unknown: Any, vocab: int) -> None:
    model = random_vqgan(remap=Remap(used=3, unknown=unknown))
    used = torch.tensor([4, 9, 17])
    model.quantizer.used.copy_(used)
    assert model.quantizer.vocab == (vocab,)
    table = model.quantizer.inner.codebooks()[0]
    codes = model.quantizer.encode(table[None])[0, :, 0]
    for index, code in enumerate(codes.tolist()):
        if index in used:
            assert used[code] == index
        elif unknown == "nearest":
            assert code == (table[index].double() - table[used].double()).square().sum(1).argmin()
        else:
            assert code == (3 if unknown == "extra" else 2)
    vectors = model.quantizer.decode(torch.arange(vocab)[None, :, None])[0]
    assert torch.equal(vectors[:3], table[used])
    if unknown == "extra":
        assert torch.equal(vectors[3], table[used[0]])
    check_quantizer(model.quantizer)


def test_presets_have_the_published_sizes() -> None:
    sizes = {
        "imagenet_f16_16384": (16384, 256, 16), "imagenet_f16_1024": (1024, 256, 16),
        "openimages_f8_16384": (16384, 4, 8), "openimages_f8_256": (256, 4, 8), "gumbel_f8": (8192, 256, 8),
    }  # fmt: skip
    assert VQGAN.presets.keys() == sizes.keys()
    for name, (codes, dim, factor) in sizes.items():
        with torch.device("meta"):
            model = VQGAN.presets[name].build()
        assert (model.quantizer.vocab, model.quantizer.dim, model.factor) == ((codes,), dim, factor)
