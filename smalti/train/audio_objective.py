"""AudioObjective: spectra, waveform, codebook and discriminators, as neural codecs are trained.

    batch ──► model ──► y ──┬─ mel, STFT, waveform distances to x ─────────────┐
                │           ├─ frozen discriminators: be taken for real ───────┼──► "model"
                │           ├─ their feature maps: look like those of x ───────┤
                └─ loss ────┼──────────────────────────────────────────────────┘
                            └─ detached ─► discriminators: tell x from y ─────────► "discriminator"

The defaults are SimVQ's training; WavTokenizer's conditions the first two discriminators on its four bandwidths:

    adversaries = (MultiPeriod.Config(bandwidths=4), MultiResolution.Config(bandwidths=4), Dac.Config())

Without adversaries only distances are minimised: quick, and slightly buzzy. Sources: "Vocos" (2023), "WavTokenizer"
(2024), "SimVQ" (2024), "High-Fidelity Audio Compression with Improved RVQGAN" (2023), "Parallel WaveGAN" (2020).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

import smalti.config
from smalti.audio.base import AudioTokenizer
from smalti.audio.losses import PARALLEL_WAVEGAN, Resolution, multi_resolution_stft_distance
from smalti.audio.mel import MelSpectrogram, Scale
from smalti.audio.vocos import AdaLayerNorm, VocosBackbone
from smalti.errors import ConfigError
from smalti.tokenizer import NeuralTokenizer, Reconstruction
from smalti.train.adversary import discriminator_loss, generator_loss
from smalti.train.audio_discriminators import AdversarialLoss, Dac, MultiPeriod, MultiResolution, Verdict
from smalti.train.objective import MODEL, Losses, Model, Objective, frozen, logged, reconstruct

DISCRIMINATOR = "discriminator"  # the optimizer of all discriminators together
SILENT = 1e-8  # power a sample; keeps SI-SDR finite

Game = MultiPeriod.Config | MultiResolution.Config | Dac.Config
Adversary = Annotated[Game, Field(discriminator="type")]


class LogMel(nn.Module):
    """Mean |ln mel(x) - ln mel(y)|, with window and filters on the module's device."""

    class Config(smalti.config.Config):
        """One mel spectrogram, at the rate of the tokenizer; the defaults are those of Vocos.

        Args:
            n_fft: length of the Hann window.
            hop: samples from frame to frame.
            mels: triangles from 0 Hz to half the rate.
            scale: "htk" or "slaney".
            equal_area: divide every triangle by half its width.
            floor: mels are raised to it before the logarithm.
        """

        n_fft: int = Field(1024, ge=2)
        hop: int = Field(256, ge=1)
        mels: int = Field(100, ge=1)
        scale: Scale = "htk"
        equal_area: bool = False
        floor: float = Field(1e-7, gt=0)

        def build(self, rate: int) -> LogMel:
            """The distance at this sample rate (Hz)."""
            return LogMel(self, rate)

    def __init__(self, config: Config, rate: int) -> None:
        super().__init__()
        self.n_fft, self.hop, self.floor = config.n_fft, config.hop, config.floor
        mel = MelSpectrogram(rate, config.n_fft, config.hop, config.mels, config.scale, config.equal_area)
        self.window: Tensor
        self.filters: Tensor
        self.register_buffer("window", torch.hann_window(config.n_fft), persistent=False)
        self.register_buffer("filters", mel.filters(), persistent=False)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """The distance of two waveforms (batch, 1, time): a scalar."""
        logarithms = self.mels(torch.cat([x, y])[:, 0]).clamp(min=self.floor).log()
        one, other = logarithms.chunk(2)
        return (one - other).abs().mean()

    def mels(self, rows: Tensor) -> Tensor:
        """(batch, time) -> (batch, mels, time // hop + 1)."""
        rows = F.pad(rows, (0, max(0, self.n_fft // 2 + 1 - rows.shape[-1])))
        window = self.window.to(rows)
        spectrum = torch.stft(rows, self.n_fft, self.hop, window=window, center=True, return_complex=True)
        return self.filters.to(rows) @ spectrum.abs()


class STFT(smalti.config.Config):
    """One resolution of the STFT distance.

    Args:
        n_fft: points of the transform.
        hop: samples from frame to frame.
        window: length of the Hann window, at most n_fft.
    """

    n_fft: int = Field(ge=2)
    hop: int = Field(ge=1)
    window: int = Field(ge=1)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.window > self.n_fft:
            raise ValueError(f"window {self.window} is longer than n_fft {self.n_fft}")
        return self


class AudioObjective(Objective):
    """The objective; see the module's docstring.

    Schedules may change the attributes named as the Config's weights.
    """

    class Config(Objective.Config):
        """Weights and discriminators; the defaults are the published training of SimVQ's audio tokenizer.

        Args:
            sample_rate: the rate (Hz) that these settings are meant for, or 0 for whichever the tokenizer has.
            mels: mel spectrograms whose distances add up.
            mel_weight, stft_weight, waveform_weight: of the sum of mel distances, of the mean over `stft` of spectral
                convergence and log distance, and of the mean absolute difference of samples.
            stft: its resolutions; Parallel WaveGAN's if there are none.
            quantizer_weight: of what the model alone knows, `Reconstruction.loss`. Papers multiply the commitment loss
                by 1000; the model's own `commitment_weight` does not contain that.
            adversaries: the discriminators, at most one of each type; none for distances alone.
            adversarial_weight, feature_weight: of all generator losses, and of all feature matching.
            start: first step that knows of the discriminators.
            interval: the discriminators learn in every so many-th step.
            legacy_training: leave DAC's discriminator as it was drawn at random. WavTokenizer's published training did:
                its optimizer had another copy of it. (`WavTokenizer.Config.legacy_training` has the other half: codes
                that are never replaced.)
        """

        type: Literal["audio"] = "audio"
        sample_rate: int = Field(0, ge=0)
        mels: tuple[LogMel.Config, ...] = (LogMel.Config(),)
        mel_weight: float = Field(45.0, ge=0)
        stft: tuple[STFT, ...] = ()
        stft_weight: float = Field(0.0, ge=0)
        waveform_weight: float = Field(0.0, ge=0)
        quantizer_weight: float = Field(1000.0, ge=0)
        adversaries: tuple[Adversary, ...] = (MultiPeriod.Config(), MultiResolution.Config(), Dac.Config())
        adversarial_weight: float = Field(1.0, ge=0)
        feature_weight: float = Field(1.0, ge=0)
        start: int = Field(0, ge=0)
        interval: int = Field(1, ge=1)
        legacy_training: bool = False

        @model_validator(mode="after")
        def _check(self) -> Self:
            types = [each.type for each in self.adversaries]
            if len(set(types)) < len(types):
                raise ValueError(f"adversaries must be of different types, got {types}")
            if self.mel_weight and not self.mels:
                raise ValueError("mel_weight needs one of `mels` at least, or must be 0")
            return self

        def build(self, tokenizer: NeuralTokenizer) -> AudioObjective:
            return AudioObjective(self, tokenizer)

    def __init__(self, config: Config, tokenizer: NeuralTokenizer) -> None:
        super().__init__()
        self.config = config
        rate = _rate(tokenizer, config.sample_rate)
        self.mel_weight, self.stft_weight = config.mel_weight, config.stft_weight
        self.waveform_weight, self.quantizer_weight = config.waveform_weight, config.quantizer_weight
        self.adversarial_weight, self.feature_weight = config.adversarial_weight, config.feature_weight
        self.start, self.interval = config.start, config.interval
        self.mels = nn.ModuleList(each.build(rate) for each in config.mels)
        self.resolutions = [Resolution(each.n_fft, each.hop, each.window) for each in config.stft]
        self.games: dict[str, Game] = {each.type: each for each in config.adversaries}
        networks: dict[str, nn.Module] = {name: each.build() for name, each in self.games.items()}
        untrained = [name for name in networks if config.legacy_training and name == "dac"]
        self.random = nn.ModuleDict({name: networks.pop(name).requires_grad_(False) for name in untrained})
        self.discriminators = nn.ModuleDict(networks)
        self._bandwidth = _watch_bandwidth(tokenizer, config.adversaries)

    def trained(self) -> Mapping[str, nn.Module]:
        return {DISCRIMINATOR: self.discriminators} if self.discriminators else {}

    def losses(self, model: Model, batch: Mapping[str, Any], step: int) -> dict[str, Losses]:
        x, y, result = reconstruct(model, batch)
        x, y = x.to(y.device, torch.float32), y.float()
        loss, terms = self._distances(x, y, result)
        if not self.games or step < self.start:
            return {MODEL: Losses(loss, logged(terms))}
        learned: dict[str, Losses] = {}
        real: dict[str, list[Verdict]] = {}
        if self.discriminators and (step - self.start) % self.interval == 0:
            learned[DISCRIMINATOR], real = self._tell_apart(x, y.detach())
        game, terms_of_game = self._deceive(x, y, real)
        return {MODEL: Losses(loss + game, logged(terms | terms_of_game)), **learned}

    def _distances(self, x: Tensor, y: Tensor, result: Reconstruction) -> tuple[Tensor, dict[str, Tensor]]:
        """What needs no discriminator: the weighted sum, and its parts without weights."""
        terms = dict(result.terms)
        loss = self.quantizer_weight * result.loss
        # Logarithms of spectra do not survive half precision.
        with torch.autocast(x.device.type, enabled=False):
            if self.mels:
                terms["mel"] = torch.stack([mel(x, y) for mel in self.mels]).sum()
                loss = loss + self.mel_weight * terms["mel"]
            if self.stft_weight:
                terms["stft"] = multi_resolution_stft_distance(x, y, self.resolutions or PARALLEL_WAVEGAN).mean()
                loss = loss + self.stft_weight * terms["stft"]
            if self.waveform_weight:
                terms["waveform"] = (x - y).abs().mean()
                loss = loss + self.waveform_weight * terms["waveform"]
            terms["si_sdr"] = _si_sdr(x, y.detach())
        return loss, terms

    def _tell_apart(self, x: Tensor, y: Tensor) -> tuple[Losses, dict[str, list[Verdict]]]:
        """The discriminators' part of the game; y is detached. With it, what they say of x, detached too."""
        loss = x.new_zeros(())
        terms: dict[str, Tensor] = {}
        real: dict[str, list[Verdict]] = {}
        for name, network in self.discriminators.items():
            game = self.games[name]
            verdicts = network(torch.cat([x, y]), self._bandwidth.row)
            pairs = [each.logits.float().chunk(2) for each in verdicts]
            told = torch.stack([discriminator_loss(game.loss, of_x, of_y) for of_x, of_y in pairs]).sum()
            told = told / (len(pairs) if game.average else 1)
            loss = loss + game.weight * told
            terms[f"{name}/discriminator"] = told
            terms[f"{name}/real"] = torch.stack([of_x.mean() for of_x, _ in pairs]).mean()
            terms[f"{name}/fake"] = torch.stack([of_y.mean() for _, of_y in pairs]).mean()
            real[name] = [_first_half(each) for each in verdicts]
        return Losses(loss, logged(terms)), real

    def _deceive(self, x: Tensor, y: Tensor, real: Mapping[str, Sequence[Verdict]]) -> tuple[Tensor, dict[str, Tensor]]:
        """The generator's part of the game: its weighted sum, and its parts without weights.

        Args:
            real: what discriminators were found to say of x; the others are asked here.
        """
        loss = y.new_zeros(())
        terms: dict[str, Tensor] = {}
        for name, network in (*self.discriminators.items(), *self.random.items()):
            game = self.games[name]
            with frozen(network):
                fake = network(y, self._bandwidth.row)
            with torch.no_grad():
                of_x = real[name] if name in real else network(x, self._bandwidth.row)
            parts = len(fake) if game.average else 1
            won = torch.stack([_generator(game.loss, each.logits.float()) for each in fake]).sum() / parts
            matched = _feature_distance(of_x, fake) / parts
            terms |= {f"{name}/generator": won, f"{name}/features": matched}
            weighted = self.adversarial_weight * won + self.feature_weight * game.feature_weight * matched
            loss = loss + game.weight * weighted
        return loss, terms


# --- parts -----------------------------------------------------------------------------------------------------------


class _Bandwidth:
    """The row that the model chose in its last forward pass; None where nothing is conditioned on it."""

    row: int | None = None


def _watch_bandwidth(tokenizer: NeuralTokenizer, games: Sequence[Game]) -> _Bandwidth:
    """WavTokenizer draws a row per training step by itself; its discriminators must be told the same one.

    The watcher holds no network, so copies of the tokenizer (moving averages) drag no discriminators along.

    Raises:
        ConfigError: if a discriminator expects another number of rows than the tokenizer's decoder has.
    """
    heard, wanted = _Bandwidth(), {each.rows for each in games} - {0}
    if not wanted:
        return heard
    backbones = [each for each in tokenizer.modules() if isinstance(each, VocosBackbone)]
    rows = [each.norm.scale.num_embeddings if isinstance(each.norm, AdaLayerNorm) else 0 for each in backbones]
    if len(rows) != 1 or wanted != set(rows):
        raise ConfigError(
            f"the discriminators are conditioned on {sorted(wanted)} bandwidths, "
            f"{type(tokenizer).__name__} has {sum(rows)}"
        )

    def remember(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        heard.row = inputs[1] if len(inputs) > 1 else 0

    backbones[0].register_forward_pre_hook(remember)
    return heard


def _rate(tokenizer: NeuralTokenizer, stated: int) -> int:
    """The tokenizer's sample rate, Hz."""
    if not isinstance(tokenizer, AudioTokenizer):
        raise ConfigError(f"the objective 'audio' trains audio tokenizers, not {type(tokenizer).__name__}")
    if stated not in (0, tokenizer.sample_rate):
        raise ConfigError(
            f"the objective is meant for {stated} Hz, {type(tokenizer).__name__} works at {tokenizer.sample_rate} Hz"
        )
    return tokenizer.sample_rate


def _generator(kind: AdversarialLoss, logits: Tensor) -> Tensor:
    # Vocos stops pushing a logit that is past the margin, which image models' hinge (-logit) never does.
    return F.relu(1 - logits).mean() if kind == "hinge" else generator_loss(kind, logits)


def _first_half(verdict: Verdict) -> Verdict:
    """What was said of the first half of a batch, detached."""
    return Verdict(verdict.logits.chunk(2)[0].detach(), tuple(each.chunk(2)[0].detach() for each in verdict.maps))


def _feature_distance(real: Sequence[Verdict], fake: Sequence[Verdict]) -> Tensor:
    """Sum over all maps of the mean absolute difference."""
    pairs = [pair for one, other in zip(real, fake, strict=True) for pair in zip(one.maps, other.maps, strict=True)]
    return torch.stack([(one.float() - other.float()).abs().mean() for one, other in pairs]).sum()


@torch.no_grad()
def _si_sdr(x: Tensor, y: Tensor) -> Tensor:
    """Mean scale-invariant signal-to-distortion ratio in dB; sounds without power count as a very quiet one."""
    x, y = (each.flatten(1) - each.flatten(1).mean(1, keepdim=True) for each in (x, y))
    floor = SILENT * x.shape[1]
    target = (x * y).sum(1, keepdim=True) / (x.square().sum(1, keepdim=True) + floor) * x
    return 10 * ((target.square().sum(1) + floor) / ((y - target).square().sum(1) + floor)).log10().mean()
