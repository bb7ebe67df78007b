"""ImageObjective: pixels, perceptual distances, codebook and a PatchGAN, as image tokenizers are trained.

    batch ──► model ──► y ──┬─ pixel and perceptual distances to x: nll ────────────┐
                │           ├─ frozen discriminator: be taken for real, times d ────┼──► "model"
                └─ loss ────┼───────────────────────────────────────────────────────┘
                            └─ detached ─► discriminator: tell x from y ──► "discriminator"

    d = weight, or with `last_layer` weight · clamp(‖∂nll‖ / (‖∂g‖ + 1e-4), 0, limit) at that parameter, as in VQGAN

How the papers trained, beside `quantizer_weight=1` and `lpips=LPIPSTerm(weight=1, ...)`:

    VQGAN      l1_weight=1; Adversary(weight=0.8, start=250001, last_layer="decoder.conv_out.weight");
               with 16384 codes weight 0.75 and a PatchGAN of 2 layers
    LlamaGen   l1_weight=0, l2_weight=1; Adversary(weight=0.5, discriminator_weight=0.5, start=20000)
    SimVQ      l1_weight=1; Adversary(weight=0.1, generator_loss="non_saturating", per_image=True)

Generator and discriminator learn from one and the same reconstruction. (VQGAN's own code computes it anew for the
discriminator after the generator's step, at twice the price.)

Sources: "Taming Transformers for High-Resolution Image Synthesis" (2020), "Autoregressive Model Beats Diffusion: Llama
for Scalable Image Generation" (2024), "Addressing Representation Collapse in Vector Quantized Models with One Linear
Layer" (2024).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

import smalti.config
from smalti.config import FieldError, named
from smalti.errors import ConfigError
from smalti.image.base import ImageTokenizer
from smalti.image.losses import decibels, dissimilarity, log_mse, squared_error
from smalti.image.lpips import LPIPS, Network
from smalti.tokenizer import NeuralTokenizer
from smalti.train.adversary import GAN, LIMIT, adaptive_weight, discriminator_loss, generator_loss
from smalti.train.objective import MODEL, Losses, Model, Objective, frozen, logged, parameter_of, reconstruct
from smalti.train.patchgan import PatchGAN
from smalti.train.perceptual import PHASES, SHIPPED, WINDOW, ZOOM, PerceptualDistance, value_range

DISCRIMINATOR = "discriminator"  # the optimizer of the PatchGAN


class LPIPSTerm(smalti.config.Config):
    """LPIPS as a loss; Smalti ships no weights of it.

    Args:
        weight: of its mean over the batch.
        backbone: path of torchvision's vgg16 file, or of a taming-transformers checkpoint, which has the heads too.
        heads: path of LPIPS's own weights/v0.1/vgg.pth; None if the first file has them.
        network: "vgg", which the papers train with, or "alex".
    """

    weight: float = Field(1.0, ge=0)
    backbone: str
    heads: str | None = None
    network: Network = "vgg"

    def build(self) -> LPIPS:
        """The distance with its weights.

        Raises:
            ConfigError: if a file is missing; it says which are needed.
            CheckpointError: if a file does not fit.
        """
        missing = [path for path in (self.backbone, self.heads) if path is not None and not Path(path).is_file()]
        if missing:
            files = "vgg16 as backbone and weights/v0.1/vgg.pth" if self.network == "vgg" else "alexnet and alex.pth"
            raise ConfigError(
                f"lpips: there is no file {' nor '.join(missing)}. It needs torchvision's {files} of the lpips "
                "repository (richzhang/PerceptualSimilarity) as heads, or one taming-transformers checkpoint as "
                "backbone. Without them, `perceptual` works with the weights that ship"
            )
        return LPIPS.from_files(self.backbone, self.heads, self.network)


class PerceptualTerm(smalti.config.Config):
    """Features of one of our own encoders as a loss; see `smalti.train.perceptual`.

    Args:
        weight: of its mean over the batch.
        tokenizer: a name whose weights ship, or a saved folder.
        layers: dotted names of modules whose outputs are compared; the encoder's stages if there are none.
        window: positions of a feature map that share an energy, in both directions.
        phases, zoom: places in the encoder's grid, and enlargement, at which images are looked at; the work grows with
            the square of both, and 1 for both judges worst.
    """

    weight: float = Field(1.0, ge=0)
    tokenizer: str = SHIPPED
    layers: tuple[str, ...] = ()
    window: int = Field(WINDOW, ge=1)
    phases: int = Field(PHASES, ge=1, le=8)
    zoom: int = Field(ZOOM, ge=1, le=4)

    def build(self) -> PerceptualDistance:
        return PerceptualDistance.from_saved(
            self.tokenizer, layers=self.layers, window=self.window, phases=self.phases, zoom=self.zoom
        )


class Adversary(nn.Module):
    """A PatchGAN and its game with the tokenizer.

    Schedules may change `weight` and `discriminator_weight`.
    """

    class Config(smalti.config.Config):
        """The defaults are those of VQGAN, without its adaptive weight.

        Args:
            network: sizes of the discriminator.
            discriminator_loss, generator_loss: names of `smalti.train.adversary`.
            per_image: the generator's loss takes the mean logit of each image instead of each patch's logit.
            weight: of the generator's loss.
            discriminator_weight: of the discriminator's; it matters where gradients are clipped.
            start: first step that knows of the discriminator.
            interval: the discriminator learns in every so many-th step.
            last_layer: dotted name of the tokenizer's parameter at which both losses shall pull equally hard (see the
                module's docstring); None for a fixed weight.
            limit: of that factor.
        """

        network: PatchGAN.Config = PatchGAN.Config()
        discriminator_loss: GAN = "hinge"
        generator_loss: GAN = "hinge"
        per_image: bool = False
        weight: float = Field(0.8, ge=0)
        discriminator_weight: float = Field(1.0, gt=0)
        start: int = Field(0, ge=0)
        interval: int = Field(1, ge=1)
        last_layer: str | None = None
        limit: float = Field(LIMIT, gt=0)

        def build(self, tokenizer: NeuralTokenizer) -> Adversary:
            return Adversary(self, tokenizer)

    def __init__(self, config: Config, tokenizer: NeuralTokenizer) -> None:
        super().__init__()
        self.config = config
        self.weight, self.discriminator_weight = config.weight, config.discriminator_weight
        self.discriminator = config.network.build()
        # In a tuple, because a parameter as an attribute would become one of this module too.
        with named("adversary.last_layer"):
            self._last_layer = () if config.last_layer is None else (parameter_of(tokenizer, config.last_layer),)

    def deceive(self, y: Tensor, nll: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The generator's part of the game: its weighted loss, and what to log.

        Args:
            y: reconstructions (B, C, H, W), with gradient.
            nll: what else the tokenizer is to minimise about them, a scalar.

        Raises:
            ConfigError: if the parameter of the adaptive weight is frozen.
        """
        with frozen(self.discriminator):
            logits = self.discriminator(y)
        if self.config.per_image:
            logits = logits.flatten(1).mean(1)
        loss = generator_loss(self.config.generator_loss, logits)
        factor = self.weight * self._balance(nll, loss)
        return factor * loss, {"generator": loss, "d_weight": factor}

    def tell_apart(self, x: Tensor, y: Tensor) -> Losses:
        """The discriminator's part of the game; y is detached."""
        # One batch after the other: normalised together they would not be what the papers trained with.
        real, fake = self.discriminator(x), self.discriminator(y)
        # Image papers take the mean of both halves.
        loss = 0.5 * discriminator_loss(self.config.discriminator_loss, real, fake)
        return Losses(self.discriminator_weight * loss, logged({"real": real, "fake": fake}))

    def _balance(self, nll: Tensor, loss: Tensor) -> Tensor:
        if not self._last_layer:
            return loss.new_ones(())
        (parameter,) = self._last_layer
        if not parameter.requires_grad:
            problem = (
                f"{self.config.last_layer!r} is frozen in this stage: the adaptive weight needs its gradient; name a "
                "parameter that is trained, or none for a fixed weight"
            )
            raise FieldError("", [("adversary.last_layer", problem)])
        return adaptive_weight(nll, loss, parameter, self.config.limit)


class ImageObjective(Objective):
    """The objective; see the module's docstring.

    Schedules may change the attributes named as the Config's weights, and `lpips_weight` and `perceptual_weight`.
    """

    class Config(Objective.Config):
        """Weights and networks; the defaults are VQGAN's without what needs more weights or a discriminator.

        Distances of pixels are means, in the network's own range (black to white is 2 in [-1,1]).

        Args:
            l1_weight, l2_weight: of the mean absolute and squared difference.
            log_l2_weight: of the mean over images of ln(squared difference + 1e-4), which stands for the mean PSNR.
            ssim_weight: of 1 - SSIM in [0,1], with the metric's variant "skimage-gauss" (11x11 Gaussian 1.5, whole
                windows).
            quantizer_weight: of what the model alone knows, `Reconstruction.loss`.
            lpips, perceptual, adversary: None for none.
        """

        type: Literal["image"] = "image"
        l1_weight: float = Field(1.0, ge=0)
        l2_weight: float = Field(0.0, ge=0)
        log_l2_weight: float = Field(0.0, ge=0)
        ssim_weight: float = Field(0.0, ge=0)
        quantizer_weight: float = Field(1.0, ge=0)
        lpips: LPIPSTerm | None = None
        perceptual: PerceptualTerm | None = None
        adversary: Adversary.Config | None = None

        @model_validator(mode="after")
        def _check(self) -> Self:
            networks = [each.weight for each in (self.lpips, self.perceptual) if each is not None]
            if not any((self.l1_weight, self.l2_weight, self.log_l2_weight, self.ssim_weight, *networks)):
                raise ValueError("at least one distance between images needs a weight above 0")
            return self

        def build(self, tokenizer: NeuralTokenizer) -> ImageObjective:
            return ImageObjective(self, tokenizer)

    def __init__(self, config: Config, tokenizer: NeuralTokenizer) -> None:
        super().__init__()
        if not isinstance(tokenizer, ImageTokenizer):
            raise ConfigError(f"the objective 'image' trains image tokenizers, not {type(tokenizer).__name__}")
        _check_channels(config, tokenizer.channels)
        self.config = config
        self.range = value_range(tokenizer)
        self.l1_weight, self.l2_weight, self.log_l2_weight = config.l1_weight, config.l2_weight, config.log_l2_weight
        self.ssim_weight, self.quantizer_weight = config.ssim_weight, config.quantizer_weight
        self.lpips_weight = 0.0 if config.lpips is None else config.lpips.weight
        self.perceptual_weight = 0.0 if config.perceptual is None else config.perceptual.weight
        self.lpips = None if config.lpips is None else config.lpips.build()
        self.perceptual = None if config.perceptual is None else config.perceptual.build()
        self.adversary = None if config.adversary is None else config.adversary.build(tokenizer)

    def trained(self) -> Mapping[str, nn.Module]:
        return {} if self.adversary is None else {DISCRIMINATOR: self.adversary.discriminator}

    @property
    def looks_at_parameters(self) -> bool:
        return self.adversary is not None and self.adversary.config.last_layer is not None

    def losses(self, model: Model, batch: Mapping[str, Any], step: int) -> dict[str, Losses]:
        x, y, result = reconstruct(model, batch)
        x, y = x.to(y.device, torch.float32), y.float()
        nll, terms = self._distances(x, y)
        loss = nll + self.quantizer_weight * result.loss
        terms |= {"quantizer": result.loss, **result.terms}
        adversary = self.adversary
        if adversary is None or step < adversary.config.start:
            return {MODEL: Losses(loss, logged(terms))}
        game, terms_of_game = adversary.deceive(y, nll)
        learned = {MODEL: Losses(loss + game, logged(terms | terms_of_game))}
        if (step - adversary.config.start) % adversary.config.interval == 0:
            learned[DISCRIMINATOR] = adversary.tell_apart(x, y.detach())
        return learned

    def _distances(self, x: Tensor, y: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Between images and reconstructions: the weighted sum, and its parts without weights."""
        low, high = self.range
        pixels, rebuilt = ((each - low) / (high - low) for each in (x, y))
        parts: dict[str, tuple[float, Tensor]] = {}
        if self.l1_weight:
            parts["l1"] = self.l1_weight, (x - y).abs().mean()
        if self.l2_weight:
            parts["l2"] = self.l2_weight, (x - y).square().mean()
        if self.log_l2_weight:
            parts["log_l2"] = self.log_l2_weight, log_mse(x, y).mean()
        if self.ssim_weight:
            parts["dissimilarity"] = self.ssim_weight, dissimilarity(pixels, rebuilt).mean()
        if self.lpips is not None and self.lpips_weight:
            parts["lpips"] = self.lpips_weight, self.lpips(pixels, rebuilt).mean()
        if self.perceptual is not None and self.perceptual_weight:
            parts["perceptual"] = self.perceptual_weight, self.perceptual(pixels, rebuilt).mean()
        terms = {name: value for name, (_, value) in parts.items()}
        # As the decoded picture would be measured: cut to the range of pixels.
        terms["psnr"] = decibels(squared_error(pixels, rebuilt.detach().clamp(0, 1))).mean()
        return torch.stack([weight * value for weight, value in parts.values()]).sum(), terms


# --- helpers ---------------------------------------------------------------------------------------------------------


def _check_channels(config: ImageObjective.Config, channels: int) -> None:
    """Raises ConfigError if a part takes images of other channels than the tokenizer's."""
    if config.adversary is not None and config.adversary.network.channels != channels:
        raise ConfigError(
            f"adversary.network.channels is {config.adversary.network.channels}, the tokenizer's images have {channels}"
        )
    if config.lpips is not None and channels != 3:
        raise ConfigError(f"lpips compares images of 3 channels, the tokenizer's have {channels}")
