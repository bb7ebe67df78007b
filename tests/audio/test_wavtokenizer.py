"""WavTokenizer: loading, codes, lengths, long recordings, training of its codebook."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from smalti.audio.base import Window
from smalti.audio.wavtokenizer import KNOWN_CODES, Decode, WavTokenizer
from smalti.errors import CheckpointError, ConfigError, InputError
from smalti.systems import find
from tests.audio import codec_reference as reference

ENCODER = reference.FEATURES + "encoder.model."
RATIOS, HOP = (3, 2), 6
TINY = WavTokenizer.Config.tiny().build().eval()


def official(seed: int = 0, *, ratios: tuple[int, ...] = RATIOS, codes: int = 40, **sizes: int) -> dict[str, Tensor]:
    """A random checkpoint in the layout of the authors, with what they keep beside the tokenizer."""
    draw = torch.Generator().manual_seed(seed)
    hop = torch.tensor(ratios).prod().item()
    state = reference.random_encoder(draw, ENCODER, ratios=ratios, **sizes)
    rows = reference.encode(state, ENCODER, torch.randn(1, 1, codes * hop, generator=draw))[0].t()
    return {
        **state,
        **reference.random_codebook(draw, reference.CODEBOOK, codes, rows.shape[1]),
        reference.CODEBOOK + "embed": rows.clone(),
        **reference.random_decoder(draw, n_fft=4 * hop),
        **reference.random_encoder(draw, reference.FEATURES + "decoder.model."),
        "multiperioddisc.discriminators.0.convs.0.weight_v": torch.zeros(1),
        "multiresddisc.discriminators.0.band.weight": torch.zeros(1),
        "dac.discriminators.0.bias": torch.zeros(1),
        "dacdiscriminator.discriminators.0.bias": torch.zeros(1),
        "melspec_loss.mel_spec.spectrogram.window": torch.zeros(1),
    }


def in_transformers(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The key map of the second published layout."""
    renamed = {}
    for key, value in state.items():
        if not key.startswith((ENCODER, reference.CODEBOOK, "backbone.", "head.out.")):
            continue
        key = key.replace(ENCODER, "encoder.layers.").replace(reference.CODEBOOK, "quantizer.codebook.")
        key = key.replace(".conv.conv.weight_g", ".conv.parametrizations.weight.original0")
        key = key.replace(".conv.conv.weight_v", ".conv.parametrizations.weight.original1")
        key = key.replace(".conv.conv.bias", ".conv.bias").replace("head.out.", "head.linear.")
        renamed[key] = value
    return renamed


def plain_codes(state: dict[str, Tensor], wav: Tensor) -> tuple[Tensor, Tensor]:
    """Codes by the plain spelling in float64, and by how much the second best code is worse."""
    wide = {key: value.double() for key, value in state.items()}
    z = reference.encode(wide, ENCODER, wav.double()).transpose(1, 2)
    distances = (z[:, :, None] - wide[reference.CODEBOOK + "embed"]).square().sum(-1)
    best = distances.topk(2, largest=False)
    return best.indices[..., 0], best.values[..., 1] - best.values[..., 0]


# --- codes and waveforms ---------------------------------------------------------------------------------------------


@settings(max_examples=15, deadline=None)
@given(
    ratios=st.lists(st.integers(2, 5), min_size=1, max_size=3).map(tuple),
    residual_layers=st.integers(1, 2),
    lstm_layers=st.integers(0, 2),
    time=st.integers(2, 400),
    row=st.integers(0, 3),
    seed=st.integers(0, 99),
)
def test_codes_and_waveforms_are_those_of_the_plain_spelling(
    ratios: tuple[int, ...], residual_layers: int, lstm_layers: int, time: int, row: int, seed: int
) -> None:
    state = official(seed, ratios=ratios, residual_layers=residual_layers, lstm_layers=lstm_layers)
    tokenizer = WavTokenizer.from_official(None, state)
    wav = torch.randn(2, 1, time, generator=torch.Generator().manual_seed(seed))
    tokens = tokenizer.encode(wav, raw=True)
    codes, margin = plain_codes(state, wav)
    clear = margin > 1e-3
    assert torch.equal(tokens.codes[..., 0][clear], codes[clear])
    # In float64: over few frames the group norms enlarge what rounding leaves of nearly equal values.
    wide = {key: value.double() for key, value in state.items()}
    vectors = wide[reference.CODEBOOK + "embed"][tokens.codes[..., 0]].transpose(1, 2)
    expected = reference.head(wide, reference.backbone(wide, vectors, row), tokenizer.hop)
    tokenizer.double()
    with torch.no_grad():
        decoded = tokenizer.synthesis(vectors.transpose(1, 2), Decode(row))[:, 0]
    torch.testing.assert_close(decoded, expected, rtol=1e-6, atol=1e-6)


@settings(max_examples=30, deadline=None)
@given(time=st.integers(1, 700))
def test_what_was_encoded_comes_back_at_its_length(time: int) -> None:
    tokenizer = TINY
    x = torch.rand(1, 1, time) - 0.5
    tokens = tokenizer.encode(x)
    assert tokens.codes.shape == (1, -(-time // tokenizer.hop), 1)
    assert tokenizer.decode(tokens).shape == x.shape
    assert tokenizer.decode(tokens, raw=True).shape == (1, 1, tokens.codes.shape[1] * tokenizer.hop)


def test_other_rates_and_channels_come_back_as_one_channel_of_the_same_length() -> None:
    x = torch.rand(2, 2, 1000) - 0.5
    for rate in (8_000, 16_000, 44_100):
        tokens = TINY.encode(x, sample_rate=rate)
        assert tokens.codes.shape[1] == -(-round(1000 * 8_000 / rate) // TINY.hop)
        assert TINY.decode(tokens).shape == (2, 1, 1000)


def test_rates_of_the_published_models() -> None:
    for preset, tokens, bits in (("smalldata_frame40", 40, 480), ("smalldata_frame75", 75, 900)):
        with torch.device("meta"):
            tokenizer = WavTokenizer.presets[preset].build()
        assert (tokenizer.token_rate, tokenizer.bitrate) == (tokens, bits)
        assert tokenizer.head.window.shape == (4 * tokenizer.hop,)


def test_every_preset_that_the_table_names_exists() -> None:
    assert {each.preset for each in find("wavtokenizer").weights} <= {*WavTokenizer.presets, None}


def test_bandwidth_rows_are_options_of_decoding() -> None:
    tokenizer = WavTokenizer.from_official(None, official())
    tokens = tokenizer.encode(torch.randn(1, 1, 90), raw=True)
    assert torch.equal(tokenizer.decode(tokens), tokenizer.decode(tokens, Decode(0)))
    assert not torch.allclose(tokenizer.decode(tokens), tokenizer.decode(tokens, Decode(3)))
    for row in (-1, 4):
        with pytest.raises(ConfigError, match=r"0\.\.3"):
            tokenizer.decode(tokens, Decode(row))


def test_another_layout_of_raw_input_is_refused() -> None:
    for shape in ((1, 90), (1, 2, 90)):
        with pytest.raises(InputError):
            TINY.encode(torch.zeros(shape), raw=True)


# --- checkpoints -----------------------------------------------------------------------------------------------------


def test_both_published_layouts_give_the_same_tokenizer() -> None:
    state = official()
    ours = WavTokenizer.from_official(None, state).state_dict()
    for other in (in_transformers(state), {f"encoder_model.{k}": v for k, v in in_transformers(state).items()}):
        theirs = WavTokenizer.from_official(None, other).state_dict()
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_sizes_are_read_off_the_tensors() -> None:
    config = WavTokenizer.from_official(None, official(ratios=(5, 3, 2), codes=33, residual_layers=2)).config
    assert (config.encoder.ratios, config.encoder.residual_layers, config.encoder.lstm_layers) == ((5, 3, 2), 2, 2)
    assert (config.codes, config.head.n_fft, config.head.hop, config.backbone.bandwidths) == (33, 120, 30, 4)
    assert (config.sample_rate, config.window) == (24_000, Window())


def test_what_only_the_configuration_says_is_taken_from_it() -> None:
    features = {"init_args": {"dowmsamples": [3, 2], "vq_bins": 40, "vq_kmeans": 7}}
    yaml = {"model": {"init_args": {"sample_rate": 16_000, "feature_extractor": features}}}
    config = WavTokenizer.from_official(yaml, official()).config
    assert (config.sample_rate, config.kmeans_iterations) == (16_000, 7)
    assert WavTokenizer.from_official({"sampling_rate": 8_000}, in_transformers(official())).sample_rate == 8_000


@pytest.mark.parametrize("field", ["upsampling_ratios", "codebook_size", "decoder_num_layers", "num_lstm_layers"])
def test_a_configuration_that_contradicts_the_tensors_is_refused(field: str) -> None:
    wrong = {"upsampling_ratios": [2, 3], "codebook_size": 41, "decoder_num_layers": 3, "num_lstm_layers": 1}
    with pytest.raises(CheckpointError, match="says"):
        WavTokenizer.from_official({field: wrong[field]}, in_transformers(official()))


@pytest.mark.parametrize(
    "key",
    [
        ENCODER + "0.conv.conv.weight_g",
        ENCODER + "1.block.3.conv.conv.bias",
        ENCODER + "7.lstm.weight_hh_l1",
        reference.CODEBOOK + "cluster_size",
        reference.CODEBOOK + "inited",
        "backbone.convnext.1.gamma",
        "backbone.pos_net.2.k.weight",
        "backbone.embed.weight",
        "head.out.weight",
    ],
)
def test_a_missing_tensor_is_refused_by_its_name(key: str) -> None:
    state = official()
    del state[key]
    with pytest.raises(CheckpointError) as caught:
        WavTokenizer.from_official(None, state)
    assert key.removesuffix("weight_g").removeprefix("backbone.") in str(caught.value)


def test_a_tensor_too_many_is_refused_by_its_name() -> None:
    with pytest.raises(CheckpointError, match="extra_module"):
        WavTokenizer.from_official(None, {**official(), "extra_module.weight": torch.zeros(1)})


@pytest.mark.parametrize("config", [{}, {"model": "a name"}, {"model": {"init_args": None}}, {"architectures": ["X"]}])
def test_a_configuration_that_says_nothing_of_it_changes_nothing(config: dict[str, Any]) -> None:
    assert WavTokenizer.from_official(config, official()).config == WavTokenizer.from_official(None, official()).config


def test_another_kind_of_checkpoint_is_refused() -> None:
    with pytest.raises(CheckpointError, match="not a WavTokenizer checkpoint"):
        WavTokenizer.from_official(None, {"encoder.conv_in.weight": torch.zeros(1)})


def test_the_window_may_be_missing() -> None:
    state = official()
    del state["head.istft.window"]
    torch.testing.assert_close(WavTokenizer.from_official(None, state).head.window, torch.hann_window(4 * HOP))


def test_known_codes_say_when_they_do_not_hold() -> None:
    assert KNOWN_CODES.waveform().shape == (1, 1, 12_000)
    assert not KNOWN_CODES.holds(TINY)
    assert KNOWN_CODES.checkpoint in {each.name for each in find("wavtokenizer").weights}


# --- long recordings -------------------------------------------------------------------------------------------------


def windowed(seconds: float, context: float) -> WavTokenizer:
    torch.manual_seed(0)
    config = WavTokenizer.Config.tiny()
    networks = {"encoder": config.encoder.replace(lstm_layers=0)}  # without it the encoder hears a few frames only
    return config.replace(window=Window(seconds=seconds, context=context), **networks).build().eval()


def test_windows_with_enough_context_give_the_codes_of_the_whole() -> None:
    tokenizer = windowed(seconds=0.1, context=0.02)
    x = torch.randn(1, 1, 8_000)
    assert torch.equal(tokenizer.encode(x).codes, tokenizer.encode(x, raw=True).codes)
    assert not torch.equal(windowed(0.1, 0.0).encode(x).codes, tokenizer.encode(x, raw=True).codes)


def test_windows_keep_lengths_and_cover_everything_once() -> None:
    for time in (799, 800, 801, 1601, 4_003):
        tokenizer = windowed(seconds=0.1, context=0.01)
        x = torch.randn(1, 1, time)
        tokens = tokenizer.encode(x)
        assert tokens.codes.shape[1] == -(-time // tokenizer.hop)
        assert tokenizer.decode(tokens).shape == x.shape


def test_recordings_within_a_window_are_not_cut() -> None:
    tokenizer, x = windowed(seconds=1.0, context=0.01), torch.randn(1, 1, 7_990)
    tokens = tokenizer.encode(x)
    assert torch.equal(tokens.codes, tokenizer.encode(x, raw=True).codes)
    assert torch.equal(tokenizer.decode(tokens, raw=True)[..., :7_990], tokenizer.decode(tokens))


def test_the_window_is_part_of_what_decides_codes() -> None:
    torch.manual_seed(0)
    one = WavTokenizer.Config.tiny().build()
    other = WavTokenizer.Config.tiny().replace(window=None).build()
    other.load_state_dict(one.state_dict())
    assert one.codes_hash != other.codes_hash


def test_weight_norm_of_training_folds_away() -> None:
    torch.manual_seed(0)
    config = WavTokenizer.Config.tiny()
    trained = config.replace(encoder=config.encoder.replace(weight_norm=True)).build().eval()
    plain, x = trained.folded(), torch.randn(1, 1, 500)
    assert not plain.config.encoder.weight_norm
    torch.testing.assert_close(plain.latents(x), trained.latents(x))
    assert torch.equal(plain.encode(x).codes, trained.encode(x).codes)


# --- training --------------------------------------------------------------------------------------------------------


def test_the_codebook_starts_from_kmeans_and_follows() -> None:
    torch.manual_seed(0)
    tokenizer = WavTokenizer.Config.tiny().build().train()
    before = tokenizer.quantizer.codebooks()[0].clone()
    x = torch.randn(4, 1, 300)
    z = tokenizer.latents(x)
    out = tokenizer(x)
    assert out.quantized is not None
    started = tokenizer.quantizer.codebooks()[0].clone()
    assert not torch.equal(started, before)
    torch.testing.assert_close(out.loss, F.mse_loss(z, started[out.quantized.codes[..., 0]]))
    tokenizer.quantizer.update()
    assert not torch.equal(tokenizer.quantizer.codebooks()[0], started)


def test_training_draws_every_bandwidth() -> None:
    torch.manual_seed(0)
    tokenizer = WavTokenizer.from_official(None, official()).train()
    for _ in range(40):
        tokenizer(torch.randn(1, 1, 60), raw=True).x.sum().backward()
    gradients = tokenizer.backbone.norm.scale.weight.grad
    assert gradients is not None
    assert bool(gradients.any(dim=1).all())


def test_legacy_training_never_replaces_a_code() -> None:
    state = official()
    assert WavTokenizer.from_official(None, state).quantizer.alphabet.revive is not None
    legacy = WavTokenizer.from_official(None, state, legacy_training=True)
    assert legacy.quantizer.alphabet.revive is None
