"""SimVQ for images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from smalti.checkpoint import unwrap
from smalti.errors import CheckpointError, ConfigError
from smalti.image.open_magvit2 import Decoder, Encoder, depth_to_space
from smalti.image.simvq import SimVQImage
from smalti.quantize import nearest
from tests.image import taming_reference as reference

CONFIG = {
    "ddconfig": {
        "double_z": False, "z_channels": 4, "resolution": 16, "in_channels": 3, "out_ch": 3, "ch": 32,
        "ch_mult": [1, 2, 1], "num_res_blocks": 2,
    },
    "quantconfig": {"n_e": 40, "e_dim": 4, "beta": 0.25, "legacy": False},
}  # fmt: skip


def random_model(**changes: Any) -> SimVQImage:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"widths": (32, 64, 32), "blocks": 2, "latent_channels": 4}
    config = SimVQImage.Config(encoder=Encoder.Config(stem=32, **sizes), decoder=Decoder.Config(**sizes), codes=40)
    return config.replace(**changes).build().eval()


def official(model: SimVQImage) -> dict[str, Tensor]:
    names = {
        "quantizer.alphabet.vectors.weight": "quantize.embedding.weight",
        "quantizer.alphabet.vectors.network.weight": "quantize.embedding_proj.weight",
        "quantizer.alphabet.vectors.network.bias": "quantize.embedding_proj.bias",
    }
    return {names.get(key, key): tensor.contiguous().clone() for key, tensor in model.state_dict().items()}


def images(batch: int = 2) -> Tensor:
    return torch.rand(batch, 3, 12, 16, generator=torch.Generator().manual_seed(1))


def plain_blocks(state: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    i = 0
    while f"{name}.{i}.conv1.weight" in state:
        x = reference.resnet_block(state, f"{name}.{i}", x)
        i += 1
    return x


def plain_encode(state: dict[str, Tensor], x: Tensor) -> Tensor:
    x = reference.conv(state, "encoder.conv_in", x)
    i = 0
    while f"encoder.down.{i}.block.0.conv1.weight" in state:
        x = plain_blocks(state, f"encoder.down.{i}.block", x)
        if f"encoder.down.{i}.downsample.weight" in state:
            x = reference.conv(state, f"encoder.down.{i}.downsample", x, stride=2)
        i += 1
    x = plain_blocks(state, "encoder.mid_block", x)
    return reference.conv(state, "encoder.conv_out", reference.swish(reference.norm(state, "encoder.norm_out", x)))


def plain_decode(state: dict[str, Tensor], x: Tensor, levels: int) -> Tensor:
    x = plain_blocks(state, "decoder.mid_block", reference.conv(state, "decoder.conv_in", x))
    for i in reversed(range(levels)):
        x = plain_blocks(state, f"decoder.up.{i}.block", x)
        if f"decoder.up.{i}.upsample.conv1.weight" in state:
            x = reference.conv(state, f"decoder.up.{i}.upsample.conv1", x)
            batch, channels, height, width = x.shape
            x = x.view(batch, 2, 2, channels // 4, height, width).permute(0, 3, 4, 1, 5, 2)
            x = x.reshape(batch, channels // 4, 2 * height, 2 * width)
    return reference.conv(state, "decoder.conv_out", reference.swish(reference.norm(state, "decoder.norm_out", x)))


def test_the_whole_equals_the_plain_network() -> None:
    model = random_model()
    state = official(model)
    z = plain_encode(state, images() * 2 - 1).permute(0, 2, 3, 1)
    codebook = state["quantize.embedding.weight"] @ state["quantize.embedding_proj.weight"].t()
    codebook = codebook + state["quantize.embedding_proj.bias"]
    expected = (z[..., None, :].double() - codebook.double()).square().sum(-1).argmin(-1)
    tokens = model.encode(images())
    assert torch.equal(tokens.codes[..., 0], expected)
    pixels = plain_decode(state, codebook[expected].permute(0, 3, 1, 2), levels=3)
    torch.testing.assert_close(model.decode(tokens), ((pixels + 1) / 2).clamp(0, 1), atol=2e-5, rtol=0)


def test_depth_to_space_by_hand() -> None:
    # One pixel of two channels: first both channels of the upper left pixel, then upper right, lower left, lower right.
    x = torch.arange(8.0).reshape(1, 8, 1, 1)
    expected = torch.tensor([[[[0.0, 2.0], [4.0, 6.0]], [[1.0, 3.0], [5.0, 7.0]]]])
    assert torch.equal(depth_to_space(x), expected)
    assert not torch.equal(F.pixel_shuffle(x, 2), expected)


def test_the_base_never_moves_and_the_map_does() -> None:
    model = random_model().train()
    before = model.state_dict()["quantizer.alphabet.vectors.weight"].clone()
    moved = model.quantizer.codebooks()[0].detach().clone()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    out = model(images())
    (F.l1_loss(out.x, images()) + out.loss).backward()
    optimizer.step()
    assert torch.equal(model.state_dict()["quantizer.alphabet.vectors.weight"], before)
    assert all("vectors.weight" not in name for name, _ in model.named_parameters())
    assert not torch.allclose(model.quantizer.codebooks()[0], moved)


def test_the_exported_codebook_gives_the_same_tokens_and_images() -> None:
    model = random_model()
    tokens, z = model.encode(images()), model.latents(images())
    codebook = model.quantizer.codebooks()[0]
    assert torch.equal(nearest(z.reshape(-1, 4), codebook), tokens.codes.flatten())
    assert torch.equal(codebook[tokens.codes[..., 0]], model.embed(tokens))


def test_loss_weights() -> None:
    for legacy in (False, True):
        model = random_model(legacy_training=legacy)
        out = model(images())
        distance = (model.latents(images()) - model.quantizer.decode(out.quantized.codes)).square().mean().item()
        assert out.terms["commitment"].item() == pytest.approx(distance * (1 if legacy else 0.25), rel=1e-5)
        assert out.terms["codebook"].item() == pytest.approx(distance * (0.25 if legacy else 1), rel=1e-5)


def test_moving_averages_are_preferred_and_live_weights_are_the_fallback() -> None:
    model = random_model()
    live = official(model)
    averaged = {key: tensor + 0.01 for key, tensor in live.items() if key != "quantize.embedding.weight"}
    ema = {f"model_ema.{key.replace('.', '')}": tensor for key, tensor in averaged.items()}
    counters = {"model_ema.decay": torch.tensor(0.999), "model_ema.num_updates": torch.tensor(-1)}
    state, _ = unwrap({"state_dict": live | ema | counters})
    own = SimVQImage.from_official(None, state).state_dict()
    assert torch.equal(own["encoder.conv_in.weight"], averaged["encoder.conv_in.weight"])
    assert torch.equal(own["quantizer.alphabet.vectors.network.bias"], averaged["quantize.embedding_proj.bias"])
    assert torch.equal(own["quantizer.alphabet.vectors.weight"], live["quantize.embedding.weight"])
    loaded = SimVQImage.from_official(None, live)
    assert torch.equal(loaded.encode(images()).codes, model.encode(images()).codes)


def test_the_yaml_and_the_tensors_alone_give_the_same_model() -> None:
    state = official(random_model()) | {"loss.discriminator.main.0.weight": torch.ones(1)}
    by_yaml = SimVQImage.from_official({"model": {"init_args": CONFIG}}, state)
    assert by_yaml.config == SimVQImage.from_official(None, state).config
    legacy = {**CONFIG, "quantconfig": {**CONFIG["quantconfig"], "legacy": True}}
    assert not SimVQImage.from_official(legacy, state).config.legacy_training
    assert SimVQImage.from_official(legacy, state, legacy_training=True).config.legacy_training


@pytest.mark.parametrize("config", [None, CONFIG])
def test_problems_are_named(config: dict[str, Any] | None) -> None:
    state = official(random_model())
    for key in ("encoder.down.1.block.0.conv1.weight", "quantize.embedding_proj.weight", "decoder.conv_in.bias"):
        with pytest.raises(CheckpointError, match=key.replace(".", r"\.")):
            SimVQImage.from_official(config, {name: tensor for name, tensor in state.items() if name != key})
        with pytest.raises(CheckpointError, match=key.replace(".", r"\.")):
            SimVQImage.from_official(config, state | {key: torch.ones(3)})
    with pytest.raises(ConfigError, match=r"lacks .*'ch'"):
        SimVQImage.from_official({"ddconfig": {"ch_mult": [1, 2]}}, state)
    with pytest.raises(CheckpointError, match="surprise"):
        SimVQImage.from_official(config, state | {"surprise": torch.ones(1)})


def test_saved_and_loaded_gives_the_same_codes(tmp_path: Path) -> None:
    model = random_model()
    loaded = SimVQImage.load(model.save(tmp_path / "model"))
    assert torch.equal(loaded.encode(images()).codes, model.encode(images()).codes)


def test_presets_and_wrong_sizes() -> None:
    for name, codes in {"simvq_1k": 1024, "simvq_8k": 8192, "simvq_65k": 65536, "simvq_262k": 262144}.items():
        config = SimVQImage.presets[name]
        assert (config.codes, config.encoder.factor, config.encoder.latent_channels) == (codes, 8, 128)
    with pytest.raises(ConfigError, match="latent channels"):
        SimVQImage.Config(encoder=Encoder.Config(latent_channels=64))
