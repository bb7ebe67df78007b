"""The SEANet encoder, against the second spelling of `codec_reference`."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from smalti.audio.seanet import PaddedConv, SEANetEncoder, elu_
from smalti.checkpoint import KeyTable, fold_weight_norm
from smalti.errors import CheckpointError, ConfigError
from smalti.folder import fill
from tests.audio import codec_reference as reference

PREFIX = "encoder.model."


def loaded(state: dict[str, Tensor], **choices: Any) -> SEANetEncoder:
    folded = fold_weight_norm(state)
    config = SEANetEncoder.Config.of_official(folded, PREFIX, ".conv.conv", **choices)
    encoder = config.build().eval()
    fill(encoder, KeyTable(config.official_names(PREFIX, ".conv.conv", "")).own_state(folded), "the encoder")
    return encoder


@settings(max_examples=25, deadline=None)
@given(
    ratios=st.lists(st.integers(1, 6), min_size=1, max_size=3).map(tuple),
    filters=st.integers(3, 6),
    residual_layers=st.integers(1, 3),
    lstm_layers=st.integers(0, 3),
    causal=st.booleans(),
    time=st.integers(1, 150),
    seed=st.integers(0, 99),
)
def test_latents_are_those_of_the_plain_spelling(
    ratios: tuple[int, ...], filters: int, residual_layers: int, lstm_layers: int, causal: bool, time: int, seed: int
) -> None:
    draw = torch.Generator().manual_seed(seed)
    sizes = {"filters": filters, "ratios": ratios, "residual_layers": residual_layers, "lstm_layers": lstm_layers}
    state = reference.random_encoder(draw, PREFIX, **sizes)
    x = torch.randn(2, 1, time, generator=draw)
    with torch.no_grad():
        ours = loaded(state, causal=causal)(x.transpose(1, 2)).transpose(1, 2)
    torch.testing.assert_close(ours, reference.encode(state, PREFIX, x, causal=causal), rtol=1e-4, atol=1e-4)


@given(time=st.integers(1, 5000), ratios=st.lists(st.integers(1, 9), min_size=1, max_size=4))
@settings(max_examples=200, deadline=None)
def test_every_stride_gives_the_chained_ceiling(time: int, ratios: list[int]) -> None:
    x, chained = torch.zeros(1, time, 1), time
    for ratio in ratios:
        x = PaddedConv(1, 1, 2 * ratio, stride=ratio)(x)
        chained = -(-chained // ratio)
        assert x.shape[1] == chained
    hop = SEANetEncoder.Config(ratios=tuple(ratios)).hop
    assert chained == -(-time // hop)


def test_a_causal_encoder_does_not_hear_what_comes_later() -> None:
    torch.manual_seed(0)
    encoder = SEANetEncoder.Config(filters=4, dimension=8, ratios=(4, 3), causal=True).build().eval()
    hop, frames = 12, 60
    x = torch.randn(1, hop * frames, 1)
    with torch.no_grad():
        before = encoder(x)
        for frame in (12, 30, 59):
            changed = x.clone()
            changed[:, frame * hop :] = torch.randn(1, hop * (frames - frame), 1)
            after = encoder(changed)
            assert torch.equal(before[:, :frame], after[:, :frame])
            assert not torch.allclose(before[:, frame:], after[:, frame:])


def test_the_other_choices_of_encodecs_family_run() -> None:
    encoder = SEANetEncoder.Config(
        channels=2, filters=4, dimension=6, ratios=(3,), bidirectional=True, true_skip=True, pad_mode="constant"
    ).build()
    assert encoder(torch.randn(2, 10, 2)).shape == (2, 4, 6)
    assert isinstance(encoder.levels[0].blocks[0].shortcut, nn.Identity)
    assert encoder.conv_out.in_channels == 16


def test_both_directions_of_an_lstm_meet_the_input_twice() -> None:
    encoder = SEANetEncoder.Config(filters=4, dimension=6, ratios=(3,), bidirectional=True).build()
    x = torch.randn(1, 5, 8)
    heard, _ = encoder.recurrent.lstm(x)
    torch.testing.assert_close(encoder.recurrent(x), heard + torch.cat([x, x], dim=-1))


def test_weight_norm_trains_and_folds_into_the_same_encoder() -> None:
    torch.manual_seed(0)
    config = SEANetEncoder.Config(filters=4, dimension=8, ratios=(3, 2), weight_norm=True)
    trained = config.build().eval()
    x = torch.randn(2, 50, 1)
    trained(x).square().sum().backward()
    assert all(parameter.grad is not None for parameter in trained.parameters())
    plain = config.replace(weight_norm=False).build().eval()
    fill(plain, fold_weight_norm(trained.state_dict()), "the folded encoder")
    with torch.no_grad():
        torch.testing.assert_close(plain(x), trained(x))


def test_gradients_do_not_depend_on_overwriting() -> None:
    torch.manual_seed(0)
    encoder = SEANetEncoder.Config(filters=4, dimension=8, ratios=(3, 2)).build()
    x = torch.randn(1, 50, 1)
    recorded = encoder(x)
    with torch.no_grad():
        torch.testing.assert_close(encoder(x), recorded.detach())
    assert torch.autograd.grad(recorded.sum(), encoder.conv_in.weight)[0].abs().sum() > 0


def test_validation_under_autocast_runs() -> None:
    torch.manual_seed(0)
    encoder = SEANetEncoder.Config(filters=256, dimension=8, ratios=(2,), lstm_layers=0).build()
    x = torch.randn(1, 9, 1)
    with torch.no_grad():
        exact = encoder(x)
        with torch.autocast("cpu", torch.bfloat16):
            torch.testing.assert_close(encoder(x).float(), exact, rtol=0.1, atol=0.05)


def test_input_is_never_overwritten() -> None:
    for time in (1, 6, 37):
        encoder = SEANetEncoder.Config(filters=4, dimension=8, ratios=(3,)).build()
        x = torch.randn(1, time, 1)
        kept = x.clone()
        with torch.no_grad():
            encoder(x)
        assert torch.equal(x, kept)


def test_elu_is_torchs_to_the_last_bits() -> None:
    special = torch.tensor([0.0, -0.0, 1e-8, -1e-8, -90.0, 90.0, -3e38, 3e38])
    x = torch.cat([torch.randn(600_000) * 3, special]).view(2, -1, 4)
    expected = F.elu(x.double())
    with torch.no_grad():
        assert (elu_(x.clone()).double() - expected).abs().max() < 1e-7
    leaf = torch.tensor([-1.0, 0.5], requires_grad=True)
    assert elu_(leaf) is not leaf


def test_tensors_of_something_else_are_refused() -> None:
    with pytest.raises(CheckpointError, match=r"encoder\.model\."):
        SEANetEncoder.Config.of_official({"encoder.model.0.weight": torch.zeros(3)}, PREFIX, ".conv.conv")
    with pytest.raises(CheckpointError):
        SEANetEncoder.Config.of_official({}, PREFIX, ".conv.conv")


@pytest.mark.parametrize("wrong", [{"ratios": ()}, {"ratios": (2, 0)}, {"filters": 1}, {"pad_mode": "edge"}])
def test_wrong_numbers_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        SEANetEncoder.Config(**wrong)


@pytest.mark.parametrize("residual_layers", [1, 3])
def test_long_sounds_in_pieces_are_the_whole(residual_layers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    sizes = {"filters": 4, "dimension": 8, "ratios": (4, 3), "residual_layers": residual_layers}
    for causal in (False, True):
        encoder = SEANetEncoder.Config(causal=causal, **sizes).build().eval()
        for time in (1_300, 1_301, 1_311):
            x = torch.randn(2, time, 1)
            with torch.no_grad():
                whole = encoder(x)
                monkeypatch.setattr("smalti.audio.seanet.SAMPLES_AT_ONCE", 130)
                torch.testing.assert_close(encoder(x), whole)
                monkeypatch.undo()
