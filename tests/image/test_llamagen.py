"""LlamaGen: the tokenizer and the transformer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from smalti.checkpoint import read_official
from smalti.errors import CheckpointError, ConfigError, InputError
from smalti.generate import Sampling
from smalti.generate.conditions import FeatureCondition
from smalti.image.llamagen import LlamaGen, LlamaGenAR, tokenizer_keys
from smalti.image.taming import VQGAN
from smalti.image.vqgan import Decoder, Encoder
from smalti.nn.transformer import GridRotary
from smalti.tokens import Tokens


def random_tokenizer(**changes: Any) -> LlamaGen:
    torch.manual_seed(0)
    return LlamaGen.Config.tiny().replace(**changes).build().eval()


def official(model: LlamaGen) -> dict[str, Tensor]:
    """The state under LlamaGen's names, with what else its files hold."""
    keys = tokenizer_keys(len(model.config.encoder.widths), len(model.config.decoder.widths))
    state = {keys.official(key): tensor.contiguous() for key, tensor in model.state_dict().items()}
    return state | {"quantize.codebook_used": torch.zeros(65536)}


def images(batch: int = 2) -> Tensor:
    return torch.rand(batch, 3, 8, 12, generator=torch.Generator().manual_seed(1))


# --- the tokenizer ---------------------------------------------------------------------------------------------------


def test_names_of_the_network_are_the_published_ones() -> None:
    keys = tokenizer_keys(3, 3)
    pairs = {
        "encoder.conv_in.weight": "encoder.conv_in.weight",
        "encoder.conv_blocks.1.res.0.conv1.weight": "encoder.down.1.block.0.conv1.weight",
        "encoder.conv_blocks.2.attn.1.q.bias": "encoder.down.2.attn.1.q.bias",
        "encoder.conv_blocks.0.downsample.conv.weight": "encoder.down.0.downsample.conv.weight",
        "encoder.mid.0.norm1.weight": "encoder.mid.block_1.norm1.weight",
        "encoder.mid.1.proj_out.weight": "encoder.mid.attn_1.proj_out.weight",
        "decoder.mid.2.conv2.bias": "decoder.mid.block_2.conv2.bias",
        "decoder.conv_blocks.0.res.2.nin_shortcut.weight": "decoder.up.2.block.2.nin_shortcut.weight",
        "decoder.conv_blocks.0.attn.0.k.weight": "decoder.up.2.attn.0.k.weight",
        "decoder.conv_blocks.2.res.0.conv1.weight": "decoder.up.0.block.0.conv1.weight",
        "decoder.conv_blocks.1.upsample.conv.weight": "decoder.up.1.upsample.conv.weight",
        "quantize.embedding.weight": "quantizer.alphabet.vectors.weight",
        "quant_conv.weight": "quant_conv.weight",
    }
    for official_name, own in pairs.items():
        assert (keys.own(official_name), keys.official(own)) == (own, official_name)


def test_taming_and_llamagen_are_one_network_under_two_names() -> None:
    model = random_tokenizer(unit=False)
    keys = tokenizer_keys(2, 2)
    for key in model.state_dict():
        assert keys.own(keys.official(key)) == key
    taming = {
        key.replace("quantizer.alphabet.vectors.weight", "quantize.embedding.weight"): tensor
        for key, tensor in model.state_dict().items()
    }
    twin, loaded = (
        VQGAN.from_official(None, taming),
        LlamaGen.from_official({"codebook_l2_norm": False}, official(model)),
    )
    tokens = loaded.encode(images())
    assert torch.equal(tokens.codes, twin.encode(images()).codes)
    assert torch.equal(loaded.decode(tokens), twin.decode(tokens))


def test_codes_are_the_rows_with_the_largest_cosine() -> None:
    model = random_tokenizer()
    z = model.latents(images())
    table = model.state_dict()["quantizer.alphabet.vectors.weight"]
    cosine = F.cosine_similarity(z[..., None, :].double(), table.double(), dim=-1)
    tokens = model.encode(images())
    assert torch.equal(tokens.codes[..., 0], cosine.argmax(-1))
    torch.testing.assert_close(model.embed(tokens).norm(dim=-1), torch.ones(z.shape[:-1]))


def test_losses_are_those_of_the_normalised_vectors() -> None:
    model = random_tokenizer(entropy_weight=0.3, commitment_weight=0.2).train()
    out = model(images())
    z = F.normalize(model.latents(images()).reshape(-1, 4), dim=-1)
    table = F.normalize(model.state_dict()["quantizer.alphabet.vectors.weight"], dim=-1)
    q = table[out.quantized.codes.flatten()]
    logits = -torch.cdist(z.double(), table.double()).square() / 0.01
    p, mean = logits.softmax(1), logits.softmax(1).mean(0)
    entropy = -(p * (logits + 1e-5).log_softmax(1)).sum(1).mean() + (mean * (mean + 1e-5).log()).sum()
    expected = {
        "codebook": (q - z).square().mean().item(),
        "commitment": 0.2 * (q - z).square().mean().item(),
        "entropy": 0.3 * entropy.item(),
    }
    for name, value in expected.items():
        assert out.terms[name].item() == pytest.approx(value, rel=1e-4)
    assert out.loss.item() == pytest.approx(sum(expected.values()), rel=1e-4)


def test_decoding_the_codes_is_the_forward_pass() -> None:
    model = random_tokenizer()
    torch.testing.assert_close(model.decode(model.encode(images())), model(images()).x, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("preset", "size", "tokens"), [("vq_ds16", 256, 256), ("vq_ds8", 256, 1024), ("vq_ds16", 384, 576)]
)
def test_token_counts(preset: str, size: int, tokens: int) -> None:
    config = LlamaGen.presets[preset]
    assert (size // config.encoder.factor) ** 2 == tokens
    narrow = (32,) * len(config.encoder.widths)
    model = config.replace(
        encoder=Encoder.Config(stem=32, widths=narrow, attention_levels=(len(narrow) - 1,), blocks=1),
        decoder=Decoder.Config(widths=narrow, attention_levels=(len(narrow) - 1,), blocks=1),
    ).build()
    codes = model.encode(torch.rand(1, 3, size, size)).codes
    assert codes[0].numel() == tokens
    assert codes.min() >= 0 and codes.max() < 16384


@pytest.mark.parametrize(("preset", "millions"), [("vq_ds16", 72), ("vq_ds8", 70)])
def test_presets_have_the_published_number_of_parameters(preset: str, millions: int) -> None:
    with torch.device("meta"):
        model = LlamaGen.presets[preset].build()
    assert round(sum(parameter.numel() for parameter in model.parameters()) / 1e6) == millions


@pytest.mark.parametrize("wrap", [
    lambda state: state,
    lambda state: {"model": state, "optimizer": {}},
    lambda state: {"state_dict": state},
    lambda state: {"ema": state, "model": {key: tensor + 1 for key, tensor in state.items()}},
    lambda state: {"model": {f"_orig_mod.{key}": tensor for key, tensor in state.items()}},
    lambda state: {"module": {f"module.{key}": tensor for key, tensor in state.items()}},
])  # fmt: skip
def test_every_wrapper_gives_the_same_codes(wrap: Any, tmp_path: Path) -> None:
    model = random_tokenizer()
    wrapped = wrap(official(model))
    torch.save(wrapped, tmp_path / "vq.pt")
    read = read_official(tmp_path / "vq.pt")
    loaded = LlamaGen.from_official(None, read.state)
    assert loaded.config.replace(entropy_weight=0.1) == model.config
    assert torch.equal(loaded.encode(images()).codes, model.encode(images()).codes)
    assert ("ema" in read.source) == ("ema" in wrapped)


def test_official_arguments_and_tensors_give_the_same_model() -> None:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"latent_channels": 8, "attention_levels": (1,)}
    model = random_tokenizer(
        encoder=Encoder.Config(stem=32, blocks=1, widths=(64, 32), **sizes),
        decoder=Decoder.Config(blocks=2, widths=(32, 96), **sizes),
    )
    arguments = {
        "codebook_size": 32, "codebook_embed_dim": 4, "codebook_l2_norm": True, "commit_loss_beta": 0.25,
        "entropy_loss_ratio": 0.0, "encoder_ch_mult": [2, 1], "decoder_ch_mult": [1, 3], "z_channels": 8,
        "ch": 32, "num_res_blocks": 1,
    }  # fmt: skip
    state = official(model)
    assert LlamaGen.from_official(arguments, state).config == LlamaGen.from_official(None, state).config


@pytest.mark.parametrize("key", [
    "encoder.conv_blocks.0.res.0.conv1.weight", "decoder.conv_blocks.0.upsample.conv.bias", "decoder.mid.1.q.weight",
    "quantize.embedding.weight",
])  # fmt: skip
def test_problems_are_named_as_the_file_names_them(key: str) -> None:
    state = official(random_tokenizer())
    escaped = key.replace(".", r"\.")
    with pytest.raises(CheckpointError, match=escaped):
        LlamaGen.from_official(None, {name: tensor for name, tensor in state.items() if name != key})
    with pytest.raises(CheckpointError, match=r"encoder\.conv_blocks\.0\.surprise"):
        LlamaGen.from_official(None, state | {"encoder.conv_blocks.0.surprise": torch.ones(2)})
    if "quantize" not in key:
        with pytest.raises(CheckpointError, match=escaped):
            LlamaGen.from_official(None, state | {key: torch.ones(7)})


# --- the transformer -------------------------------------------------------------------------------------------------


def ar_state(width: int, layers: int, heads: int, kv_heads: int, hidden: int, ids: int) -> dict[str, Tensor]:
    """A random class-conditional transformer under LlamaGen's names."""
    torch.manual_seed(0)
    fused = (heads + 2 * kv_heads) * width // heads
    shapes = {"tok_embeddings.weight": (ids, width), "norm.weight": (width,), "output.weight": (ids, width),
              "cls_embedding.embedding_table.weight": (11, width)}  # fmt: skip
    for layer in range(layers):
        shapes |= {
            f"layers.{layer}.attention.wqkv.weight": (fused, width),
            f"layers.{layer}.attention.wo.weight": (width, width),
            f"layers.{layer}.feed_forward.w1.weight": (hidden, width),
            f"layers.{layer}.feed_forward.w2.weight": (width, hidden),
            f"layers.{layer}.feed_forward.w3.weight": (hidden, width),
            f"layers.{layer}.attention_norm.weight": (width,),
            f"layers.{layer}.ffn_norm.weight": (width,),
        }
    return {key: torch.randn(shape) * 0.2 for key, shape in shapes.items()}


def plain_llama(state: dict[str, Tensor], prefix: Tensor, ids: Tensor, grid: int, heads: int, kv_heads: int) -> Tensor:
    """Logits of every image position, written out with complex rotations and an explicit softmax."""

    def norm(name: str, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5) * state[name]

    x = torch.cat([prefix, state["tok_embeddings.weight"][ids]], dim=1)
    _, steps, width = x.shape
    dim, length = width // heads, prefix.shape[1]
    frequencies = 10000.0 ** (-torch.arange(dim // 4).double() * 2 / (dim // 2))
    turns = torch.zeros(steps, dim // 2, dtype=torch.complex128)
    for step in range(length, steps):
        row, column = divmod(step - length, grid)
        turns[step] = torch.polar(torch.ones(dim // 2).double(), torch.cat([row * frequencies, column * frequencies]))
    mask = torch.ones(steps, steps).tril().bool()
    layer = 0
    while f"layers.{layer}.attention.wo.weight" in state:
        name = f"layers.{layer}"
        rows = norm(f"{name}.attention_norm.weight", x) @ state[f"{name}.attention.wqkv.weight"].t()
        q, k, v = rows.split([width, kv_heads * dim, kv_heads * dim], dim=-1)
        heads_out = []
        for head in range(heads):
            group = head // (heads // kv_heads)
            qh, kh, vh = (
                q[..., head * dim :][..., :dim],
                k[..., group * dim :][..., :dim],
                v[..., group * dim :][..., :dim],
            )
            qh, kh = (
                torch.view_as_real(torch.view_as_complex(part.double().unflatten(-1, (-1, 2))) * turns).flatten(-2)
                for part in (qh, kh)
            )
            scores = (qh @ kh.transpose(1, 2) / dim**0.5).masked_fill(~mask, -torch.inf).softmax(-1)
            heads_out.append(scores.float() @ vh)
        x = x + torch.cat(heads_out, -1) @ state[f"{name}.attention.wo.weight"].t()
        h = norm(f"{name}.ffn_norm.weight", x)
        gate = h @ state[f"{name}.feed_forward.w1.weight"].t()
        h = gate * torch.sigmoid(gate) * (h @ state[f"{name}.feed_forward.w3.weight"].t())
        x = x + h @ state[f"{name}.feed_forward.w2.weight"].t()
        layer += 1
    return norm("norm.weight", x)[:, length - 1 :] @ state["output.weight"].t()


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_logits_equal_those_of_the_plain_transformer(kv_heads: int) -> None:
    state = ar_state(width=32, layers=2, heads=4, kv_heads=kv_heads, hidden=48, ids=20)
    model = LlamaGenAR.from_official({"n_head": 4, "block_size": 9}, state)
    codes, label = torch.randint(20, (3, 9)), torch.tensor([0, 7, 10])
    tokens = Tokens.of(codes.reshape(3, 3, 3, 1), (20,))
    prefix = state["cls_embedding.embedding_table.weight"][label][:, None]
    expected = plain_llama(state, prefix, codes[:, :-1], grid=3, heads=4, kv_heads=kv_heads)
    modelled = model(tokens, label=label)
    torch.testing.assert_close(modelled.logits, expected, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(modelled.loss, F.cross_entropy(expected.flatten(0, 1), codes.flatten()))


def test_guided_greedy_generation_is_the_argmax_of_the_plain_transformer() -> None:
    state = ar_state(width=32, layers=2, heads=4, kv_heads=4, hidden=48, ids=20)
    model = LlamaGenAR.from_official({"n_head": 4, "block_size": 9}, state)
    label, scale = torch.tensor([1, 2]), 2.5
    table = state["cls_embedding.embedding_table.weight"]
    ids = torch.empty(2, 0, dtype=torch.int64)
    for _ in range(9):
        with_class, without = (
            plain_llama(state, table[labels][:, None], ids, grid=3, heads=4, kv_heads=4)[:, -1]
            for labels in (label, torch.tensor([10, 10]))
        )
        ids = torch.cat([ids, (without + scale * (with_class - without)).argmax(-1, keepdim=True)], dim=1)
    drawn = model.generate(2, sampling=Sampling(temperature=0, guidance=scale), label=label)
    assert torch.equal(drawn.flat(), ids)
    assert drawn.codes.shape == (2, 3, 3, 1)


def text_model() -> tuple[LlamaGenAR, dict[str, Tensor]]:
    state = ar_state(width=32, layers=2, heads=4, kv_heads=4, hidden=48, ids=20)
    del state["cls_embedding.embedding_table.weight"]
    state |= {
        "cls_embedding.cap_proj.fc1.weight": torch.randn(32, 6),
        "cls_embedding.cap_proj.fc2.weight": torch.randn(32, 32) * 0.2,
        "cls_embedding.uncond_embedding": torch.randn(5, 6),
    }
    return LlamaGenAR.from_official({"n_head": 4, "block_size": 4, "cls_token_num": 5}, state), state


def test_text_features_pass_their_mlp() -> None:
    model, state = text_model()
    features, codes = torch.randn(2, 5, 6), torch.randint(20, (2, 4))
    prefix = F.gelu(features @ state["cls_embedding.cap_proj.fc1.weight"].t(), approximate="tanh")
    prefix = prefix @ state["cls_embedding.cap_proj.fc2.weight"].t()
    expected = plain_llama(state, prefix, codes[:, :-1], grid=2, heads=4, kv_heads=4)
    tokens = Tokens.of(codes.reshape(2, 2, 2, 1), (20,))
    torch.testing.assert_close(model(tokens, features=features).logits, expected, atol=2e-5, rtol=1e-4)


def test_padded_text_changes_nothing() -> None:
    model, _ = text_model()
    features, mask = torch.randn(2, 5, 6), torch.tensor([[0, 0, 1, 1, 1], [0, 1, 1, 1, 1]])
    other = torch.where(mask[..., None] == 0, torch.randn(2, 5, 6), features)
    tokens = Tokens.of(torch.randint(20, (2, 2, 2, 1)), (20,))
    first, second = (model(tokens, features=each, features_mask=mask).logits for each in (features, other))
    torch.testing.assert_close(first, second)
    assert not torch.allclose(first, model(tokens, features=features).logits)
    sampling = Sampling(guidance=3.0)
    drawn = [
        model.generate(2, sampling=sampling, seed=5, features=each, features_mask=mask) for each in (features, other)
    ]
    assert drawn[0].equal(drawn[1])


def test_old_files_say_their_grid_by_the_position_table() -> None:
    state = ar_state(width=32, layers=2, heads=4, kv_heads=4, hidden=48, ids=20)
    model = LlamaGenAR.from_official({"n_head": 4}, state | {"freqs_cis": torch.zeros(26, 4, 2)})
    assert model.config.transformer.positions == GridRotary(grid=(5, 5), zero_prefix=True)


def test_transformer_problems_are_named_as_the_file_names_them() -> None:
    state, config = ar_state(32, 2, 4, 4, 48, 20), {"n_head": 4, "block_size": 9}
    for key in ("layers.1.attention.wo.weight", "layers.0.feed_forward.w3.weight", "output.weight", "norm.weight"):
        with pytest.raises(CheckpointError, match=key.replace(".", r"\.")):
            LlamaGenAR.from_official(config, {name: tensor for name, tensor in state.items() if name != key})
    with pytest.raises(CheckpointError, match="surprise"):
        LlamaGenAR.from_official(config, state | {"surprise": torch.ones(1)})
    with pytest.raises(ConfigError, match="n_head"):
        LlamaGenAR.from_official({"block_size": 9}, state)


@pytest.mark.parametrize(("preset", "millions"), [
    ("c2i_B_256", 111), ("c2i_L_256", 343), ("c2i_XL_384", 775), ("c2i_XXL_384", 1411), ("c2i_3B_384", 3098),
])  # fmt: skip
def test_transformers_have_the_published_number_of_parameters(preset: str, millions: int) -> None:
    with torch.device("meta"):
        model = LlamaGenAR.presets[preset].build()
    assert sum(parameter.numel() for parameter in model.parameters()) / 1e6 == pytest.approx(millions, rel=0.01)


def test_labels_that_do_not_exist_are_refused() -> None:
    model = LlamaGenAR.Config.tiny().build().eval()
    with pytest.raises(InputError, match="labels must be in"):
        model.generate(1, label=torch.tensor([4]))
    with pytest.raises(InputError, match="does not take"):
        model.generate(1, features=torch.ones(1))


def test_no_class_is_the_null_class() -> None:
    model = LlamaGenAR.Config.tiny().build().eval()
    without, null = model.generate(1, seed=3), model.generate(1, seed=3, label=torch.tensor([3]))
    assert without.equal(null)


def test_text_conditions_are_declared() -> None:
    config = LlamaGenAR.presets["t2i_XL_256"]
    assert isinstance(config.condition, FeatureCondition)
    assert config.transformer.context == 120 + 256
