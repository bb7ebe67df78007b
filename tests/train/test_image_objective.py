"""Training of image tokenizers: the papers' losses against plain spellings, and who gets gradients from what."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from smalti.audio.wavtokenizer import WavTokenizer
from smalti.errors import ConfigError
from smalti.image.llamagen import LlamaGen
from smalti.image.losses import dissimilarity, log_mse
from smalti.image.lpips import LPIPS
from smalti.image.metrics import PSNR, SSIM, WINDOWS, Variant
from smalti.image.photo import PhotoTokenizer
from smalti.image.simvq import SimVQImage
from smalti.image.taming import VQGAN
from smalti.tokenizer import NeuralTokenizer, Reconstruction
from smalti.train.image_objective import Adversary, ImageObjective, LPIPSTerm, PerceptualTerm
from smalti.train.objective import Losses
from smalti.train.patchgan import PatchGAN

LAST = "decoder.conv_out.weight"
SMALL = PatchGAN.Config(width=8, layers=1)


def inputs(side: int = 32, batch: int = 2) -> Tensor:
    return torch.rand(batch, 3, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1


def vqgan() -> VQGAN:
    torch.manual_seed(0)
    return VQGAN.Config.tiny().build().train()


def gradients(module: nn.Module) -> dict[str, Tensor]:
    return {name: each.grad.clone() for name, each in module.named_parameters() if each.grad is not None}


def backward(losses: dict[str, Losses]) -> None:
    for each in losses.values():
        each.loss.backward()


@pytest.fixture
def lpips_files(tmp_path: Path) -> tuple[str, str]:
    """Both files of LPIPS with random weights."""
    torch.manual_seed(1)
    state = LPIPS().state_dict()
    heads = {
        f"lin{key.split('.')[1]}.model.1.weight": value.abs() for key, value in state.items() if key.startswith("heads")
    }
    torch.save({key: value for key, value in state.items() if key.startswith("features")}, tmp_path / "vgg16.pth")
    torch.save(heads, tmp_path / "vgg.pth")
    return str(tmp_path / "vgg16.pth"), str(tmp_path / "vgg.pth")


# --- the papers ------------------------------------------------------------------------------------------------------


def test_vqgan_is_trained_by_its_formula(lpips_files: tuple[str, str]) -> None:
    model, x = vqgan(), inputs()
    twin = copy.deepcopy(model)
    objective = ImageObjective.Config(
        lpips=LPIPSTerm(backbone=lpips_files[0], heads=lpips_files[1]),
        adversary=Adversary.Config(network=SMALL, weight=0.75, start=10, last_layer=LAST),
    ).build(model)
    judge = copy.deepcopy(objective.adversary.discriminator)  # type: ignore[union-attr]
    losses = objective.losses(model, {"x": x}, 10)
    backward(losses)

    # By hand, from section 4 of the sheet; the tokenizer gives reconstruction and codebook loss.
    out = twin(x, raw=True)
    perceptual = LPIPS.from_files(*lpips_files)((x + 1) / 2, (out.x + 1) / 2)
    nll = ((x - out.x).abs() + perceptual[:, None, None, None]).mean()
    g = -judge(out.x).mean()
    last = twin.decoder.conv_out.weight
    pull, push = (torch.autograd.grad(each, last, retain_graph=True)[0].norm() for each in (nll, g))
    weight = (pull / (push + 1e-4)).clamp(0, 1e4).detach() * 0.75
    total = nll + weight * g + out.loss
    total.backward()
    wanted = gradients(twin)
    judge.zero_grad()
    told = 0.5 * (F.relu(1 - judge(x)).mean() + F.relu(1 + judge(out.x.detach())).mean())
    told.backward()

    assert losses["model"].loss.item() == pytest.approx(total.item(), rel=1e-5)
    assert losses["discriminator"].loss.item() == pytest.approx(told.item(), rel=1e-5)
    assert losses["model"].terms["d_weight"].item() == pytest.approx(weight.item(), rel=1e-4)
    got = gradients(model)
    assert got.keys() == wanted.keys()
    for name, gradient in wanted.items():
        assert torch.allclose(got[name], gradient, rtol=1e-3, atol=1e-6 + 1e-4 * float(gradient.abs().max())), name
    own = gradients(objective.adversary.discriminator)  # type: ignore[union-attr]
    for name, gradient in gradients(judge).items():
        assert torch.allclose(own[name], gradient, rtol=1e-4, atol=1e-6), name


def test_llamagen_is_trained_by_its_formula() -> None:
    torch.manual_seed(0)
    model, x = LlamaGen.Config.tiny().build().train(), inputs()
    config = Adversary.Config(network=SMALL, weight=0.5, discriminator_weight=0.5, start=20000)
    objective = ImageObjective.Config(l1_weight=0, l2_weight=1, adversary=config).build(model)
    judge = copy.deepcopy(objective.adversary.discriminator)  # type: ignore[union-attr]
    out = copy.deepcopy(model)(x, raw=True)
    losses = objective.losses(model, {"x": x}, 20000)
    total = F.mse_loss(out.x, x) + 0.5 * -judge(out.x).mean() + out.loss
    told = 0.5 * 0.5 * (F.relu(1 - judge(x)).mean() + F.relu(1 + judge(out.x)).mean())
    assert losses["model"].loss.item() == pytest.approx(total.item(), rel=1e-5)
    assert losses["discriminator"].loss.item() == pytest.approx(told.item(), rel=1e-5)


def test_simvq_is_trained_by_its_formula() -> None:
    torch.manual_seed(0)
    model, x = SimVQImage.Config.tiny().build().train(), inputs()
    config = Adversary.Config(network=SMALL, weight=0.1, generator_loss="non_saturating", per_image=True)
    objective = ImageObjective.Config(adversary=config).build(model)
    judge = copy.deepcopy(objective.adversary.discriminator)  # type: ignore[union-attr]
    out = copy.deepcopy(model)(x, raw=True)
    losses = objective.losses(model, {"x": x}, 0)
    g = F.softplus(-judge(out.x).mean((1, 2, 3))).mean()
    total = (x - out.x).abs().mean() + 0.1 * g + out.loss
    assert losses["model"].loss.item() == pytest.approx(total.item(), rel=1e-5)
    told = 0.5 * (F.relu(1 - judge(x)).mean() + F.relu(1 + judge(out.x)).mean())
    assert losses["discriminator"].loss.item() == pytest.approx(told.item(), rel=1e-5)


# --- gradients and the calendar --------------------------------------------------------------------------------------


def test_no_loss_gives_gradients_to_another_optimizers_parameters() -> None:
    model = vqgan()
    objective = ImageObjective.Config(adversary=Adversary.Config(network=SMALL, last_layer=LAST)).build(model)
    discriminator = objective.trained()["discriminator"]
    losses = objective.losses(model, {"x": inputs()}, 0)
    losses["discriminator"].loss.backward(retain_graph=True)
    assert not gradients(model) and len(gradients(discriminator)) == len(list(discriminator.parameters()))
    discriminator.zero_grad()
    losses["model"].loss.backward()
    assert gradients(model) and not gradients(discriminator)
    assert all(each.requires_grad for each in discriminator.parameters())


def test_the_objective_owns_no_parameter_of_the_tokenizer() -> None:
    model = vqgan()
    objective = ImageObjective.Config(adversary=Adversary.Config(network=SMALL, last_layer=LAST)).build(model)
    assert not {id(each) for each in model.parameters()} & {id(each) for each in objective.parameters()}
    assert all(key.startswith("adversary.discriminator.main.") for key in objective.state_dict())


def test_the_discriminator_waits_for_its_start_and_learns_at_its_interval() -> None:
    model, x = vqgan(), inputs()
    config = Adversary.Config(network=SMALL, start=3, interval=2)
    objective = ImageObjective.Config(adversary=config).build(model)
    plain = ImageObjective.Config().build(model)
    state = copy.deepcopy(objective.state_dict())
    learning = []
    for step in range(7):
        losses = objective.losses(model, {"x": x}, step)
        learning.append("discriminator" in losses)
        if step < 3:
            assert torch.equal(losses["model"].loss, plain.losses(model, {"x": x}, step)["model"].loss)
            assert all(torch.equal(value, state[key]) for key, value in objective.state_dict().items())
        else:
            assert "generator" in losses["model"].terms
    assert learning == [False, False, False, True, False, True, False]


def test_the_model_runs_once_a_step() -> None:
    model, calls = vqgan(), []

    def counted(x: Tensor, **conditions: Any) -> Reconstruction:
        calls.append(x)
        return model(x, **conditions)

    objective = ImageObjective.Config(adversary=Adversary.Config(network=SMALL, last_layer=LAST)).build(model)
    objective.losses(counted, {"x": inputs()}, 0)
    assert len(calls) == 1


class NoSync(TorchDispatchMode):
    """Fails where Python asks for a tensor's value, which makes a GPU's queue run dry."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func not in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default), func
        return func(*args, **(kwargs or {}))


@contextmanager
def unwatched(mode: TorchDispatchMode) -> Iterator[None]:
    mode.__exit__(None, None, None)
    try:
        yield
    finally:
        mode.__enter__()


def test_losses_never_wait_for_a_device(lpips_files: tuple[str, str]) -> None:
    model, x = vqgan(), inputs()
    objective = ImageObjective.Config(
        l2_weight=1,
        log_l2_weight=1,
        ssim_weight=1,
        lpips=LPIPSTerm(backbone=lpips_files[0], heads=lpips_files[1]),
        perceptual=PerceptualTerm(),
        adversary=Adversary.Config(network=SMALL, last_layer=LAST),
    ).build(model)
    mode = NoSync()

    def unwatched_model(x: Tensor, **conditions: Any) -> Reconstruction:
        with unwatched(mode):  # what the tokenizer itself does is not the objective's affair
            return model(x, **conditions)

    with mode:
        losses = objective.losses(unwatched_model, {"x": x}, 0)
    terms = losses["model"].terms | losses["discriminator"].terms
    assert all(value.ndim == 0 and not value.requires_grad for value in terms.values())
    assert {
        "l1", "l2", "log_l2", "dissimilarity", "lpips", "perceptual", "psnr", "quantizer", "commitment", "codebook",
        "perplexity", "utilisation", "generator", "d_weight", "real", "fake",
    } == terms.keys()  # fmt: skip


# --- parts -----------------------------------------------------------------------------------------------------------


class Fixed(nn.Module):
    """A model whose reconstruction is given."""

    def __init__(self, y: Tensor) -> None:
        super().__init__()
        self.y = nn.Parameter(y)

    def forward(self, x: Tensor, **conditions: Any) -> Reconstruction:
        return Reconstruction(self.y, None, torch.tensor(2.0), {})


def test_each_part_is_the_metric_of_its_name() -> None:
    x = inputs(40, 3)
    y = (x + 0.3 * torch.randn(x.shape, generator=torch.Generator().manual_seed(3))).clamp(-1, 1)
    weights = {"l1_weight": 0.5, "l2_weight": 2.0, "log_l2_weight": 3.0, "ssim_weight": 5.0, "quantizer_weight": 7.0}
    objective = ImageObjective.Config(**weights).build(PhotoTokenizer.Config.tiny().build())
    out = objective.losses(Fixed(y), {"x": x}, 0)["model"]
    pixels = [(each + 1) / 2 for each in (x, y)]
    psnr, ssim = PSNR("float"), SSIM("skimage-gauss", "float")
    for metric in (psnr, ssim):
        metric.update(*pixels)
    errors = (x - y).square().mean((1, 2, 3))
    expected = {
        "l1": (x - y).abs().mean().item(),
        "l2": errors.mean().item(),
        "log_l2": (errors + 1e-4).log().mean().item(),
        "dissimilarity": 1 - ssim.compute(),
        "quantizer": 2.0,
    }
    for name, value in expected.items():
        assert out.terms[name].item() == pytest.approx(value, rel=1e-4), name
    assert out.terms["psnr"].item() == pytest.approx(psnr.compute(), rel=1e-5)
    assert out.loss.item() == pytest.approx(
        sum(w * v for w, v in zip(weights.values(), expected.values(), strict=True)), rel=1e-4
    )


def test_a_reconstruction_cut_to_the_batch_and_outside_the_range_is_judged_as_it_will_be_seen() -> None:
    x = inputs(16).clamp(-0.9, 0.9)
    x[:, :, 0, 0] = 1.0
    y = x.clone()
    y[:, :, 0, 0] = 1.5  # decoding clamps it to 1: nothing is wrong with the picture
    padded = F.pad(y, (0, 3, 0, 5), value=9.0)
    objective = ImageObjective.Config().build(PhotoTokenizer.Config.tiny().build())
    terms = objective.losses(Fixed(padded), {"x": x}, 0)["model"].terms
    assert terms["psnr"].item() == pytest.approx(100, abs=0.1)
    assert terms["l1"].item() == pytest.approx(0.5 / 256, rel=1e-3)


@pytest.mark.parametrize("variant", sorted(WINDOWS))
def test_gradients_of_the_structural_loss_are_those_of_finite_differences(variant: Variant) -> None:
    draw = torch.Generator().manual_seed(0)
    x, y = (torch.rand(1, 1, 13, 12, generator=draw, dtype=torch.float64, requires_grad=True) for _ in range(2))
    loss = partial(dissimilarity, variant=variant)
    assert torch.autograd.gradcheck(loss, (x, y))
    assert torch.autograd.gradgradcheck(loss, (x.detach(), y))
    gradient, slope = torch.autograd.grad(loss(x, y).sum(), y)[0], torch.ones_like(y)
    assert torch.equal(torch.func.grad(lambda each: loss(x.detach(), each).sum())(y.detach()), gradient)
    forward = torch.func.jvp(lambda each: loss(x.detach(), each).sum(), (y.detach(),), (slope,))[1]
    torch.testing.assert_close(forward, gradient.sum())


def test_gradients_of_the_logarithm_are_those_of_finite_differences() -> None:
    draw = torch.Generator().manual_seed(0)
    x, y = (torch.rand(2, 2, 5, 4, generator=draw, dtype=torch.float64) for _ in range(2))
    assert torch.autograd.gradcheck(lambda each: log_mse(x, each), y.requires_grad_())


def test_schedules_reach_the_weights() -> None:
    model, x = vqgan(), inputs()
    objective = ImageObjective.Config(l2_weight=1, adversary=Adversary.Config(network=SMALL, weight=1)).build(model)
    objective.l1_weight, objective.adversary.weight = 0.0, 0.0  # type: ignore[union-attr]
    terms = objective.losses(model, {"x": x}, 0)["model"]
    assert "l1" not in terms.terms
    assert terms.loss.item() == pytest.approx((terms.terms["l2"] + terms.terms["quantizer"]).item(), rel=1e-6)


@pytest.mark.parametrize("build", [vqgan, lambda: PhotoTokenizer.Config.tiny().build().train()])
def test_a_few_steps_bring_the_reconstruction_closer(build: Any) -> None:
    torch.manual_seed(0)
    model: NeuralTokenizer = build()
    x = F.interpolate(inputs(4), size=32, mode="bilinear")
    config = Adversary.Config(network=SMALL, weight=0.1, start=5)
    objective = ImageObjective.Config(log_l2_weight=0.1, adversary=config).build(model)
    networks: dict[str, nn.Module] = {"model": model, **objective.trained()}
    optimizers = {name: torch.optim.Adam(each.parameters(), 2e-3) for name, each in networks.items()}
    history = []
    for step in range(30):
        losses = objective.losses(model, {"x": x}, step)
        for name, each in losses.items():
            optimizers[name].zero_grad()
            each.loss.backward()
            optimizers[name].step()
        model.quantizer.update()
        history.append(losses["model"].terms["psnr"].item())
    assert history[-1] > history[0] + 2
    assert not set(model.state_dict()) & set(objective.state_dict())


# --- what does not fit -----------------------------------------------------------------------------------------------


def test_missing_lpips_files_are_named_with_what_is_needed(lpips_files: tuple[str, str]) -> None:
    for backbone, heads in (("nowhere.pth", lpips_files[1]), (lpips_files[0], "nowhere.pth")):
        with pytest.raises(ConfigError, match=r"no file nowhere\.pth.*vgg16.*v0\.1/vgg\.pth"):
            ImageObjective.Config(lpips=LPIPSTerm(backbone=backbone, heads=heads)).build(vqgan())


def test_what_does_not_fit_is_named() -> None:
    with pytest.raises(ConfigError, match="image tokenizers, not WavTokenizer"):
        ImageObjective.Config().build(WavTokenizer.Config.tiny().build())
    with pytest.raises(ConfigError, match=r"^adversary\.last_layer: .*no parameter 'decoder\.nowhere'"):
        ImageObjective.Config(adversary=Adversary.Config(last_layer="decoder.nowhere")).build(vqgan())
    with pytest.raises(ConfigError, match="channels is 1"):
        ImageObjective.Config(adversary=Adversary.Config(network=PatchGAN.Config(channels=1))).build(vqgan())
    with pytest.raises(ConfigError, match="at least one distance"):
        ImageObjective.Config(l1_weight=0)
    with pytest.raises(ConfigError, match="generator_loss"):
        Adversary.Config(generator_loss="nobody")
    model = vqgan()
    objective = ImageObjective.Config(adversary=Adversary.Config(network=SMALL, last_layer=LAST)).build(model)
    model.decoder.requires_grad_(False)
    with pytest.raises(ConfigError, match=r"^adversary\.last_layer: 'decoder\.conv_out\.weight' is frozen"):
        objective.losses(model, {"x": inputs()}, 0)
