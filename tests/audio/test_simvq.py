"""SimVQ's audio tokenizer: loading, codes, causality, its codebook."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from smalti.audio.simvq import SimVQAudio
from smalti.errors import CheckpointError
from smalti.systems import find
from tests.audio import codec_reference as reference

ENCODER = "encoder.model."


def official(
    seed: int = 0, *, ratios: tuple[int, ...] = (3, 2), codes: int = 50, dimension: int = 8
) -> dict[str, Tensor]:
    """A random checkpoint under the published names, with what is kept beside the tokenizer."""
    draw = torch.Generator().manual_seed(seed)
    hop = int(torch.tensor(ratios).prod())
    return {
        **reference.random_encoder(draw, ENCODER, ratios=ratios, dimension=dimension),
        "quantize.embedding.weight": torch.randn(codes, dimension, generator=draw),
        "quantize.embedding_proj.weight": torch.randn(dimension, dimension, generator=draw),
        "quantize.embedding_proj.bias": torch.randn(dimension, generator=draw) / 10,
        **reference.random_decoder(draw, bandwidths=0, dimension=dimension, n_fft=4 * hop),
        **reference.random_encoder(draw, "decoder.model."),
        "loss.discriminator.weight": torch.zeros(1),
    }


def averaged(state: dict[str, Tensor], change: float) -> dict[str, Tensor]:
    """The state with moving averages of what is trained, which differ from the live tensors."""
    frozen = ("quantize.embedding.weight", "head.istft.window")
    averages = {
        f"model_ema.{key.replace('.', '')}": value + change for key, value in state.items() if key not in frozen
    }
    return {**state, **averages, "model_ema.decay": torch.tensor(0.999), "model_ema.num_updates": torch.tensor(-1)}


@settings(max_examples=15, deadline=None)
@given(
    ratios=st.lists(st.integers(2, 5), min_size=1, max_size=3).map(tuple),
    time=st.integers(1, 300),
    seed=st.integers(0, 99),
)
def test_codes_and_waveforms_are_those_of_the_plain_spelling(ratios: tuple[int, ...], time: int, seed: int) -> None:
    state = official(seed, ratios=ratios)
    tokenizer = SimVQAudio.from_official(None, state)
    wav = torch.randn(2, 1, time, generator=torch.Generator().manual_seed(seed))
    wide = {key: value.double() for key, value in state.items()}
    z = reference.encode(wide, ENCODER, wav.double(), causal=True).transpose(1, 2)
    rows = wide["quantize.embedding.weight"] @ wide["quantize.embedding_proj.weight"].t()
    rows = rows + wide["quantize.embedding_proj.bias"]
    best = (z[:, :, None] - rows).square().sum(-1).topk(2, largest=False)
    clear = best.values[..., 1] - best.values[..., 0] > 1e-3
    tokens = tokenizer.encode(wav, raw=True)
    assert torch.equal(tokens.codes[..., 0][clear], best.indices[..., 0][clear])
    # In float64: over few frames the group norms enlarge what rounding leaves of nearly equal values.
    vectors = rows[tokens.codes[..., 0]].transpose(1, 2)
    expected = reference.head(wide, reference.backbone(wide, vectors), tokenizer.hop)
    tokenizer.double()
    with torch.no_grad():
        decoded = tokenizer.synthesis(vectors.transpose(1, 2), None)[:, 0]
    torch.testing.assert_close(decoded, expected, rtol=1e-5, atol=1e-5)


def test_a_second_at_the_published_strides_is_75_tokens() -> None:
    tokenizer = SimVQAudio.from_official(None, official(ratios=(8, 5, 4, 2)))
    assert (tokenizer.hop, tokenizer.token_rate) == (320, 75)
    tokens = tokenizer.encode(torch.randn(1, 1, 24_000))
    assert tokens.codes.shape == (1, 75, 1)
    assert tokenizer.decode(tokens).shape == (1, 1, 24_000)
    assert tokenizer.encode(torch.randn(1, 1, 24_001)).codes.shape == (1, 76, 1)


def test_tokens_do_not_hear_what_comes_later() -> None:
    torch.manual_seed(0)
    tokenizer = SimVQAudio.Config.tiny().replace(codes=4096).build().eval()
    x = torch.randn(1, 1, 80 * tokenizer.hop)
    before = tokenizer.encode(x, raw=True).codes
    for frame in (12, 40, 79):
        changed = x.clone()
        changed[..., frame * tokenizer.hop :] = torch.randn(1, 1, (80 - frame) * tokenizer.hop)
        after = tokenizer.encode(changed, raw=True).codes
        assert torch.equal(before[:, :frame], after[:, :frame])


# --- checkpoints -----------------------------------------------------------------------------------------------------


def test_moving_averages_are_preferred_and_the_frozen_base_is_the_live_one() -> None:
    live = official()
    state = averaged(live, change=0.25)
    ours = SimVQAudio.from_official(None, state).state_dict()
    base = live["quantize.embedding.weight"]
    assert torch.equal(ours["quantizer.alphabet.vectors.weight"], base)
    assert torch.equal(ours["backbone.embed.bias"], live["backbone.embed.bias"] + 0.25)
    projection = "quantizer.alphabet.vectors.network.weight"
    assert torch.equal(ours[projection], live["quantize.embedding_proj.weight"] + 0.25)


def test_without_averages_the_live_tensors_are_taken() -> None:
    state = official()
    ours = SimVQAudio.from_official(None, state).state_dict()
    assert torch.equal(ours["backbone.embed.bias"], state["backbone.embed.bias"])


def test_sizes_are_read_off_the_tensors_and_checked_against_the_yaml() -> None:
    state = official(codes=50)
    config = SimVQAudio.from_official(None, state).config
    assert (config.codes, config.encoder.dimension, config.encoder.causal, config.commitment_weight) == (
        50,
        8,
        True,
        0.25,
    )
    yaml = {
        "model": {
            "init_args": {
                "ddconfig": {"causal": False, "dimension": 8, "ratios": [3, 2]},
                "quantconfig": {"n_e": 50, "e_dim": 8, "beta": 0.5, "legacy": True},
            }
        }
    }
    config = SimVQAudio.from_official(yaml, state).config
    assert (config.encoder.causal, config.commitment_weight, config.legacy_training) == (False, 0.5, False)
    assert SimVQAudio.from_official(yaml, state, legacy_training=True).config.legacy_training
    yaml["model"]["init_args"]["quantconfig"]["n_e"] = 51
    with pytest.raises(CheckpointError, match="says"):
        SimVQAudio.from_official(yaml, state)


def test_a_missing_tensor_is_refused_by_its_published_name() -> None:
    for key in ("quantize.embedding_proj.bias", "quantize.embedding.weight", "encoder.model.1.block.3.conv.conv.bias"):
        state = official()
        del state[key]
        with pytest.raises(CheckpointError, match=key):
            SimVQAudio.from_official(None, state)


def test_every_preset_that_the_table_names_exists() -> None:
    assert {each.preset for each in find("simvq/audio").weights} <= {*SimVQAudio.presets, None}


# --- codebook --------------------------------------------------------------------------------------------------------


def test_the_codebook_written_out_gives_the_same_vectors() -> None:
    tokenizer = SimVQAudio.from_official(None, official())
    tokens = tokenizer.encode(torch.randn(2, 1, 100))
    torch.testing.assert_close(tokenizer.embed(tokens), tokenizer.quantizer.codebooks()[0][tokens.codes[..., 0]])


def test_training_moves_the_map_and_never_the_base() -> None:
    torch.manual_seed(0)
    tokenizer = SimVQAudio.Config.tiny().build().train()
    vectors = tokenizer.quantizer.alphabet.vectors
    base, rows = vectors.weight.clone(), tokenizer.quantizer.codebooks()[0].clone()
    optimizer = torch.optim.SGD(tokenizer.parameters(), lr=1.0)
    tokenizer(torch.randn(2, 1, 120)).loss.backward()
    assert not vectors.weight.requires_grad
    optimizer.step()
    tokenizer.quantizer.update()
    assert torch.equal(vectors.weight, base)
    assert not torch.equal(tokenizer.quantizer.codebooks()[0], rows)


def test_both_losses_have_their_published_weights() -> None:
    torch.manual_seed(0)
    for legacy, weights in ((False, (1.0, 0.25)), (True, (0.25, 1.0))):
        tokenizer = SimVQAudio.Config.tiny().replace(legacy_training=legacy).build()
        z = torch.randn(1, 9, 8)
        out = tokenizer.quantizer(z)
        distance = (z - tokenizer.quantizer.codebooks()[0][out.codes[..., 0]]).square().mean()
        assert torch.allclose(out.terms["codebook"], weights[0] * distance)
        assert torch.allclose(out.terms["commitment"], weights[1] * distance)
