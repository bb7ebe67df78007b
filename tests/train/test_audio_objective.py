"""The audio objective, against losses written out, and what must not leak, wait or burst."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from smalti.audio.losses import PARALLEL_WAVEGAN, log_mel_distance, multi_resolution_stft_distance
from smalti.audio.mel import MelSpectrogram
from smalti.audio.metrics import SISDR
from smalti.audio.simvq import SimVQAudio
from smalti.audio.speech import SpeechCodec
from smalti.audio.wavtokenizer import WavTokenizer
from smalti.errors import ConfigError
from smalti.image.simvq import SimVQImage
from smalti.tokenizer import NeuralTokenizer
from smalti.train.audio_discriminators import Dac, MultiPeriod, MultiResolution
from smalti.train.audio_objective import STFT, AudioObjective, LogMel

MEL = LogMel.Config(n_fft=128, hop=32, mels=20)


def tiny_adversaries(bandwidths: int = 0) -> tuple[Any, ...]:
    return (
        MultiPeriod.Config(periods=(2, 3), channels=(2, 3, 4), bandwidths=bandwidths),
        MultiResolution.Config(resolutions=((64, 16), (32, 8)), channels=3, bandwidths=bandwidths),
        Dac.Config(periods=(2,), period_channels=(2, 3), windows=(64, 32), channels=3),
    )


def config(**changes: Any) -> AudioObjective.Config:
    return AudioObjective.Config(**{"mels": (MEL,), "adversaries": tiny_adversaries(), **changes})


def simvq(seed: int = 0) -> SimVQAudio:
    torch.manual_seed(seed)
    return SimVQAudio.Config.tiny().build().train()


def batch(seed: int = 1, samples: int = 600) -> dict[str, Tensor]:
    return {"x": 0.3 * torch.randn(2, 1, samples, generator=torch.Generator().manual_seed(seed))}


def gradients(network: torch.nn.Module) -> list[Tensor]:
    return [each.grad for each in network.parameters() if each.grad is not None]


# --- values ----------------------------------------------------------------------------------------------------------


def hinge(x: Tensor) -> Tensor:
    return torch.where(x > 0, x, torch.zeros_like(x)).mean()


def written_out(objective: AudioObjective, x: Tensor, y: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Losses of generator and discriminators as the sheet has them, a network and a map at a time."""
    generator, discriminator = {}, {}
    for name, network in objective.discriminators.items():
        real, fake = network(x), network(y)
        won, told, matched = torch.zeros(()), torch.zeros(()), torch.zeros(())
        for r, f in zip(real, fake, strict=True):
            if name == "dac":
                won = won + (1 - f.logits).pow(2).mean()
                told = told + f.logits.pow(2).mean() + (1 - r.logits).pow(2).mean()
            else:
                won = won + hinge(1 - f.logits) / len(real)
                told = told + (hinge(1 - r.logits) + hinge(1 + f.logits)) / len(real)
            for one, other in zip(r.maps, f.maps, strict=True):
                matched = matched + (one - other).abs().mean() / (1 if name == "dac" else len(real))
        generator |= {f"{name}/generator": won, f"{name}/features": matched}
        discriminator[f"{name}/discriminator"] = told
    return generator, discriminator


def test_losses_are_those_of_simvq() -> None:
    model, data = simvq(), batch()
    objective = config().build(model)
    found = objective.losses(model, data, step=0)
    result = model(data["x"], raw=True)
    assert result.x is not None
    generator, discriminator = written_out(objective, data["x"], result.x)
    mel = log_mel_distance(data["x"], result.x, MelSpectrogram(8_000, 128, 32, 20)).mean()
    torch.testing.assert_close(
        found["model"].loss, sum(generator.values()) + 45 * mel + 1000 * result.loss, atol=1e-4, rtol=1e-5
    )
    torch.testing.assert_close(found["discriminator"].loss, sum(discriminator.values()))
    for name, value in {**generator, "mel": mel, "commitment": result.terms["commitment"]}.items():
        torch.testing.assert_close(found["model"].terms[name], value.detach(), msg=name)
    for name, value in discriminator.items():
        torch.testing.assert_close(found["discriminator"].terms[name], value.detach(), msg=name)
    for losses in found.values():
        assert all(value.ndim == 0 and not value.requires_grad for value in losses.terms.values())


def test_weights_scale_their_part_alone() -> None:
    model, data = simvq(), batch()
    part = MultiResolution.Config(resolutions=((64, 16),), channels=3, weight=0.1, feature_weight=2)
    settings = config(
        adversaries=(part,), mel_weight=3, stft_weight=5, waveform_weight=7, quantizer_weight=11,
        adversarial_weight=13, feature_weight=17,
    )  # fmt: skip
    found = settings.build(model).losses(model, data, 0)["model"]
    y = model(data["x"], raw=True)
    terms, difference = found.terms, (y.x - data["x"]).abs().mean()
    stft = multi_resolution_stft_distance(data["x"], y.x).mean()
    wanted = 3 * terms["mel"] + 5 * stft + 7 * difference + 11 * y.loss
    game = 13 * terms["multi-resolution/generator"] + 17 * 2 * terms["multi-resolution/features"]
    torch.testing.assert_close(found.loss, wanted + 0.1 * game)


def test_distances_alone_are_those_of_the_metrics() -> None:
    torch.manual_seed(0)
    model = SpeechCodec(SpeechCodec.Config.tiny().replace(sample_rate=16_000)).eval()
    mels = tuple(
        LogMel.Config(n_fft=n, hop=n // 4, mels=m, floor=1e-4) for n, m in ((512, 40), (1024, 80), (2048, 120))
    )
    stft = tuple(STFT(n_fft=each.n_fft, hop=each.hop, window=each.window) for each in PARALLEL_WAVEGAN)
    settings = config(mels=mels, mel_weight=1, stft=stft, stft_weight=1, quantizer_weight=0, adversaries=())
    objective, data = settings.build(model), batch(samples=4000)
    found = objective.losses(model, data, 0)
    assert set(found) == {"model"} and not objective.trained() and not list(objective.parameters())
    x, y = data["x"], model(data["x"], raw=True).x
    wanted = multi_resolution_stft_distance(x, y).mean() + sum(
        log_mel_distance(x, y, MelSpectrogram(16_000, n, n // 4, m), floor=1e-4).mean()
        for n, m in ((512, 40), (1024, 80), (2048, 120))
    )
    torch.testing.assert_close(found["model"].loss, wanted)
    # Random weights give what is unlike its input: the term is a difference of nearly equal float32 sums there.
    si_sdr = SISDR(16_000).values(x, y.detach()).mean()
    torch.testing.assert_close(found["model"].terms["si_sdr"].double(), si_sdr, atol=1.5, rtol=0)


@pytest.mark.parametrize("rate", [16_000, 24_000])
def test_mel_distance_against_sums_written_out(rate: int) -> None:
    n_fft, hop, mels, floor = 256, 100, 12, 1e-3
    x, y = torch.randn(2, 3, 1, 700).double().unbind()
    top = 2595 * np.log10(1 + rate / 2 / 700)
    corners = 700 * (10 ** (np.linspace(0, top, mels + 2) / 2595) - 1)
    grid = np.arange(n_fft // 2 + 1) * rate / n_fft
    filters = np.stack([np.interp(grid, corners[m : m + 3], [0, 1, 0]) for m in range(mels)])
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(n_fft) / n_fft)

    def logarithms(waveform: Tensor) -> np.ndarray:
        rows = np.pad(waveform[:, 0].numpy(), ((0, 0), (n_fft // 2, n_fft // 2)), mode="reflect")
        frames = np.stack([rows[:, t : t + n_fft] for t in range(0, 701, hop)], axis=1) * window
        return np.log(np.maximum(np.abs(np.fft.rfft(frames)) @ filters.T, floor))

    distance = LogMel(LogMel.Config(n_fft=n_fft, hop=hop, mels=mels, floor=floor), rate)
    assert float(distance(x, y)) == pytest.approx(np.abs(logarithms(x) - logarithms(y)).mean(), rel=1e-5)


def test_spectral_tensors_move_with_the_module_and_are_not_saved() -> None:
    objective = config().build(simvq())
    assert {name for name, _ in objective.named_buffers() if name.startswith("mels")} == {
        "mels.0.window",
        "mels.0.filters",
    }
    assert not any("window" in name or "filters" in name for name in objective.state_dict())
    assert all(buffer.is_meta for buffer in objective.to("meta").buffers())


# --- when ------------------------------------------------------------------------------------------------------------


def test_discriminators_wait_for_the_start_and_learn_every_so_often() -> None:
    model, data = simvq(), batch()
    objective = config(start=3, interval=2).build(model)
    found = [objective.losses(model, data, step) for step in range(7)]
    assert ["discriminator" in each for each in found] == [False, False, False, True, False, True, False]
    assert ["dac/generator" in each["model"].terms for each in found] == [False] * 3 + [True] * 4
    distances = 45 * found[0]["model"].terms["mel"] + 1000 * model(data["x"], raw=True).loss
    torch.testing.assert_close(found[0]["model"].loss, distances)
    # What the discriminators say of x is the same, asked anew or shared with their own step.
    torch.testing.assert_close(found[3]["model"].loss, found[4]["model"].loss)


def test_published_wavtokenizer_leaves_dac_random() -> None:
    torch.manual_seed(0)
    model, data = WavTokenizer.Config.tiny().build().train(), batch()
    right = config(adversaries=tiny_adversaries(4)).build(model)
    legacy = config(adversaries=tiny_adversaries(4), legacy_training=True).build(model)
    assert set(right.trained()["discriminator"]) == {"multi-period", "multi-resolution", "dac"}
    assert set(legacy.trained()["discriminator"]) == {"multi-period", "multi-resolution"}
    assert not any(each.requires_grad for each in legacy.random.parameters())
    found = legacy.losses(model, data, 0)
    assert "dac/generator" in found["model"].terms and "dac/discriminator" not in found["discriminator"].terms
    assert any(name.startswith("random.dac") for name in legacy.state_dict())  # resuming needs the same drawing


def test_discriminators_hear_the_row_that_the_model_drew() -> None:
    torch.manual_seed(0)
    model, data = WavTokenizer.Config.tiny().replace(kmeans_iterations=0).build().train(), batch()
    objective = config(adversaries=tiny_adversaries(4)).build(model)
    heard: list[int | None] = []
    objective.discriminators["multi-period"].register_forward_pre_hook(lambda module, inputs: heard.append(inputs[1]))
    torch.manual_seed(5)
    for step in range(12):
        objective.losses(model, data, step)
    torch.manual_seed(5)
    drawn = []
    for _ in range(12):
        model.backbone.forward = lambda x, row: drawn.append(row) or x.new_zeros(2, x.shape[1], 32)  # type: ignore
        model(data["x"], raw=True)
    assert list(heard[::2]) == heard[1::2] == drawn
    assert set(drawn) == {0, 1, 2, 3}


def test_copies_of_the_model_bring_no_discriminators() -> None:
    model = WavTokenizer.Config.tiny().build()
    objective = config(adversaries=tiny_adversaries(4)).build(model)
    twin = copy.deepcopy(model)
    (hook,) = twin.backbone._forward_pre_hooks.values()
    assert not any(isinstance(cell.cell_contents, torch.nn.Module) for cell in hook.__closure__ or ())
    assert not any("discriminator" in name for name in model.state_dict())
    assert objective.trained()


# --- what must not leak, wait or burst -------------------------------------------------------------------------------


def test_each_loss_reaches_its_own_parameters_only() -> None:
    model = simvq()
    objective = config().build(model)
    found = objective.losses(model, batch(), 0)
    found["model"].loss.backward()
    assert len(gradients(model)) == len([each for each in model.parameters() if each.requires_grad])
    assert not gradients(objective)
    assert all(each.requires_grad for each in objective.discriminators.parameters())
    model.zero_grad()
    found["discriminator"].loss.backward()
    assert not gradients(model)
    assert len(gradients(objective)) == len(list(objective.parameters()))


def test_the_adversary_and_its_maps_do_reach_the_model() -> None:
    model = simvq()
    for weights in ({"adversarial_weight": 1, "feature_weight": 0}, {"adversarial_weight": 0, "feature_weight": 1}):
        objective = config(mel_weight=0, quantizer_weight=0, **weights).build(model)
        model.zero_grad()
        objective.losses(model, batch(), 0)["model"].loss.backward()
        assert model.head.out.weight.grad is not None and model.head.out.weight.grad.abs().sum() > 0


class Waiting(TorchDispatchMode):
    """Refuses what makes a device's queue wait."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert "local_scalar_dense" not in str(func) and "nonzero" not in str(func), func
        return func(*args, **(kwargs or {}))


def test_no_value_is_asked_of_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = simvq(), batch()
    objective = config(stft_weight=1, waveform_weight=1).build(model)
    result = model(data["x"], raw=True)
    monkeypatch.setattr("smalti.train.audio_objective.reconstruct", lambda model, batch: (batch["x"], result.x, result))
    with Waiting():
        objective.losses(model, data, 0)
    with pytest.raises(AssertionError), Waiting():
        bool(torch.ones(()) > 0)


@pytest.mark.parametrize("level", [0.0, 1e-12])
def test_silence_gives_finite_losses_and_gradients(level: float) -> None:
    model = simvq()
    with torch.no_grad():  # a decoder that is as silent as the sound
        model.head.out.weight.zero_()
        model.head.out.bias.fill_(-60.0)
    objective = config(stft_weight=1, waveform_weight=1).build(model)
    found = objective.losses(model, {"x": level * torch.randn(2, 1, 600)}, 0)
    for losses in found.values():
        assert torch.isfinite(losses.loss) and all(torch.isfinite(value) for value in losses.terms.values())
        losses.loss.backward()
    assert all(torch.isfinite(each).all() for each in [*gradients(model), *gradients(objective)])


def falling(objective: AudioObjective, model: NeuralTokenizer, name: str, rate: float, steps: int) -> list[float]:
    """Values of one loss while its own network learns and the other rests."""
    networks: Mapping[str, torch.nn.Module] = {"model": model, **objective.trained()}
    optimizer = torch.optim.AdamW(networks[name].parameters(), rate)
    values = []
    for step in range(steps):
        losses = objective.losses(model, batch(samples=300), step)[name]
        optimizer.zero_grad()
        losses.loss.backward()
        optimizer.step()
        values.append(float(losses.loss.detach()))
    return values


def test_both_sides_of_the_game_improve_against_a_resting_other() -> None:
    model = simvq()
    objective = config(mel_weight=0, quantizer_weight=0).build(model)
    told = falling(objective, model, "discriminator", 1e-2, 12)
    assert told[-1] < 0.9 * told[0]
    won = falling(objective, model, "model", 1e-2, 12)
    assert won[-1] < 0.9 * won[0]


def test_distances_fall() -> None:
    model = simvq()
    values = falling(config(adversaries=()).build(model), model, "model", 3e-3, 25)
    assert values[-1] < 0.8 * values[0]


# --- settings --------------------------------------------------------------------------------------------------------


def test_a_tokenizer_that_does_not_fit_is_refused() -> None:
    model = simvq()
    with pytest.raises(ConfigError, match="trains audio tokenizers, not SimVQImage"):
        config().build(SimVQImage.Config.tiny().build())
    with pytest.raises(ConfigError, match="meant for 24000 Hz, SimVQAudio works at 8000 Hz"):
        config(sample_rate=24_000).build(model)
    assert config(sample_rate=8_000).build(model).trained()
    with pytest.raises(ConfigError, match=r"conditioned on \[4\] bandwidths, SimVQAudio has 0"):
        config(adversaries=tiny_adversaries(4)).build(model)
    with pytest.raises(ConfigError, match=r"conditioned on \[3\] bandwidths, WavTokenizer has 4"):
        config(adversaries=tiny_adversaries(3)).build(WavTokenizer.Config.tiny().build())


def test_wrong_settings_are_named() -> None:
    with pytest.raises(ConfigError, match="different types"):
        config(adversaries=(Dac.Config(), Dac.Config()))
    with pytest.raises(ConfigError, match="mel_weight"):
        config(mels=())
    with pytest.raises(ConfigError, match="window 64 is longer"):
        STFT(n_fft=32, hop=8, window=64)
    read = AudioObjective.Config(adversaries=[{"type": "multi-period", "bandwidths": 4}, {"type": "dac"}])
    assert read.adversaries == (MultiPeriod.Config(bandwidths=4), Dac.Config())
