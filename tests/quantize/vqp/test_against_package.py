"""from_vqp beside the package that it reads, option by option: one evaluation, one training step, all buffers after it.

Needs vector-quantize-pytorch, which nothing else of Smalti does.
"""

from __future__ import annotations

import random
from importlib.metadata import version
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.parity.adapters.zoo_vectors import RUNS

vqp = pytest.importorskip("vector_quantize_pytorch")

# 1.31 is what the golden cases were made with; 1.32 corrected what these two cases compare.
CORRECTED = {"beam, cosine", "projected, masked"}
VERSION = tuple(int(part) for part in version("vector-quantize-pytorch").split(".")[:2])

DIM, CODES = 12, 24
LEARNABLE = {"learnable_codebook": True, "ema_update": False}
# Their moving average overwrites the codebook before the backward pass has read it, so gradients of scores are compared
# without one; and a table that has one gets a gradient of the orthogonal term, which the next step overwrites.
STILL = {"ema_update": False}
HEADS = {"heads": 3, "codebook_dim": 4}
OWN_HEADS = {**HEADS, "separate_codebook_per_head": True}
VECTOR: dict[str, dict[str, Any]] = {
    "default": {},
    "straight-through": {"rotation_trick": False},
    "cosine": {"use_cosine_sim": True, "decay": 0.95},
    "projected": {"codebook_dim": 5},
    "layer norm": {"codebook_dim": 5, "layernorm_after_project_in": True},
    "layer norm without projection": {"layernorm_after_project_in": True},
    "heads": HEADS,
    "heads of their own": OWN_HEADS,
    "heads, projected": {"heads": 2, "codebook_dim": 5},
    "heads of their own, projected": {"heads": 2, "codebook_dim": 7, "separate_codebook_per_head": True},
    "cosine heads": {**HEADS, "use_cosine_sim": True},
    "frozen": {"freeze_codebook": True},
    "no ema": {**STILL},
    "learnable": LEARNABLE,
    "learnable, straight-through": {**LEARNABLE, "rotation_trick": False},
    "learnable heads": {**LEARNABLE, **OWN_HEADS},
    "cross entropy": {"commitment_use_cross_entropy_loss": True, **STILL},
    "cross entropy, cosine": {
        "commitment_use_cross_entropy_loss": True,
        "use_cosine_sim": True,
        **STILL,
    },
    "cross entropy, learnable": {"commitment_use_cross_entropy_loss": True, **LEARNABLE},
    "cross entropy, heads": {"commitment_use_cross_entropy_loss": True, **STILL, **OWN_HEADS},
    "orthogonal": {"orthogonal_reg_weight": 3.0, **LEARNABLE},
    "orthogonal, ema": {"orthogonal_reg_weight": 3.0},
    "orthogonal, active": {"orthogonal_reg_weight": 3.0, "orthogonal_reg_active_codes_only": True, **LEARNABLE},
    "orthogonal heads": {"orthogonal_reg_weight": 3.0, **LEARNABLE, **OWN_HEADS},
    "diversity": {"codebook_diversity_loss_weight": 0.3, "codebook_diversity_temperature": 5.0, **LEARNABLE},
    "diversity heads": {"codebook_diversity_loss_weight": 0.3, "codebook_diversity_temperature": 5.0, **STILL, **HEADS},
    "diversity, own heads": {
        "codebook_diversity_loss_weight": 0.3,
        "codebook_diversity_temperature": 5.0,
        **STILL,
        **OWN_HEADS,
    },
    "Gumbel": {"straight_through": True, "rotation_trick": False},
    "affine": {"affine_param": True},
    "affine decays": {"affine_param": True, "affine_param_batch_decay": 0.5, "affine_param_codebook_decay": 0.2},
    "affine heads": {"affine_param": True, **OWN_HEADS},
    "synchronous": {"sync_update_v": 0.4, **LEARNABLE},
    "synchronous, straight-through": {"sync_update_v": 0.4, "rotation_trick": False, **LEARNABLE},
    "no route": {"route_gradients_to_input": False},
    "no route, learnable": {"route_gradients_to_input": False, **LEARNABLE},
    "diveq": {"directional_reparam": True, "threshold_ema_dead_code": 1e-3},
    "diveq variance": {
        "directional_reparam": True,
        "directional_reparam_variance": 0.1,
        "threshold_ema_dead_code": 1e-3,
    },
    "diveq ema": {
        "directional_reparam": True,
        "threshold_ema_dead_code": 1e-3,
        "learnable_codebook": False,
        "ema_update": True,
    },
    "no commitment": {"commitment_weight": 0.0},
    "eps": {"eps": 0.5, "decay": 0.3},
    "channels first": {"channel_last": False},
    "image": {"accept_image_fmap": True, "codebook_dim": 3},
    "image heads": {"accept_image_fmap": True, **HEADS},
    "volume": {"accept_3d_fmap": True},
    "bridge": {"vq_bridge": torch.nn.Linear(DIM, DIM)},
}
RESIDUAL: dict[str, dict[str, Any]] = {
    "default": {},
    "sizes": {"num_quantizers": None, "codebook_size": (8, 16, 4)},
    "projected": {"codebook_dim": 5},
    "cosine": {"use_cosine_sim": True},
    "shared": {"shared_codebook": True},
    "shared, projected": {"shared_codebook": True, "codebook_dim": 5, "rotation_trick": False},
    "learnable": LEARNABLE,
    "shared, learnable": {"shared_codebook": True, **LEARNABLE},
    "straight-through": {"rotation_trick": False},
    "passed gradient": {"quant_grad_frac": 0.3},
    "dropout": {"quantize_dropout": True},
    "dropout of some": {
        "quantize_dropout": True,
        "quantize_dropout_cutoff_index": 1,
        "quantize_dropout_multiple_of": 3,
    },
    "dropout, shared": {"quantize_dropout": True, "shared_codebook": True},
    "implicit": {"implicit_neural_codebook": True, "mlp_kwargs": {"depth": 2, "dim_hidden": 7}},
    "implicit, defaults": {"implicit_neural_codebook": True},
    "implicit, shared": {"implicit_neural_codebook": True, "shared_codebook": True},
    "implicit, projected": {"implicit_neural_codebook": True, "codebook_dim": 5, "rotation_trick": False},
    "beam": {"beam_size": 3},
    "beam weights": {"beam_size": 3, "beam_score_quantizer_weights": [1.0, 0.5, 0.25, 3.0]},
    "beam, dropout": {"beam_size": 2, "quantize_dropout": True},
    "beam, implicit": {"beam_size": 2, "implicit_neural_codebook": True},
    "beam, cosine": {"beam_size": 2, "use_cosine_sim": True},
    "diveq": {"diveq": True},
    "diveq, projected": {"diveq": True, "codebook_dim": 5},
    "affine": {"affine_param": True},
    "diversity": {"codebook_diversity_loss_weight": 0.3, "codebook_diversity_temperature": 5.0, **STILL},
    "cross entropy": {"commitment_use_cross_entropy_loss": True, **STILL},
}
SIM: dict[str, dict[str, Any]] = {
    "default": {},
    "straight-through": {"rotation_trick": False, "commitment_weight": 2.0},
    "base dimension": {"frozen_codebook_dim": 5, "input_to_quantize_commit_loss_weight": 0.5},
    "channels first": {"channel_first": True},
    "network": {
        "codebook_transform": torch.nn.Sequential(torch.nn.Linear(DIM, 9), torch.nn.ReLU(), torch.nn.Linear(9, DIM))
    },
}


def latents(options: dict[str, Any], seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    if options.get("accept_3d_fmap"):
        return torch.randn(2, DIM, 2, 3, 2, generator=generator)
    if options.get("accept_image_fmap"):
        return torch.randn(3, DIM, 4, 2, generator=generator)
    if options.get("channel_last") is False or options.get("channel_first"):
        return torch.randn(3, DIM, 7, generator=generator)
    # Their beam search keeps its statistics along the wrong axis unless there is one sample.
    return torch.randn(1 if "beam_size" in options else 3, 11, DIM, generator=generator)


def randomized(module: torch.nn.Module, seed: int, unit: bool) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if not tensor.is_floating_point() or "frozen" in name:
                continue
            drawn = torch.randn(tensor.shape, generator=generator)
            if name.endswith("cluster_size"):
                tensor.copy_(drawn.abs() + 0.5)
            elif "codebook_" not in name and "batch_" not in name:
                tensor.copy_(drawn * (0.5 if "_codebook" in name else 0.3))
        each: Any  # of a package without types
        for each in module.modules():
            if getattr(each, "embed_avg", None) is not None and each.embed_avg.ndim == 3:
                if unit:
                    each.embed.copy_(F.normalize(each.embed, dim=-1))
                each.embed_avg.copy_(each.embed * each.cluster_size[..., None])
    return module


def compare(cls: str, options: dict[str, Any], seed: int, monkeypatch: pytest.MonkeyPatch, **more: Any) -> None:
    torch.manual_seed(seed)
    options = {"dim": DIM, "codebook_size": CODES, **options}
    theirs = randomized(getattr(vqp, cls)(**options), seed, bool(options.get("use_cosine_sim")))
    state = {name: tensor.clone() for name, tensor in theirs.state_dict().items()}
    x = latents(options, seed + 1)
    monkeypatch.setattr(torch, "randn_like", lambda x: torch.arange(x.numel()).sin().view_as(x))
    inputs, arguments = {"x": x}, {}
    if options.get("quantize_dropout"):
        inputs["rand_quantize_dropout_fixed_seed"] = torch.tensor(seed)
        arguments["rand_quantize_dropout_fixed_seed"] = seed
    if "mask" in more:
        inputs["mask"] = arguments["mask"] = more["mask"]
    skipped = {"beam_size", "affine_param", "diveq"} & options.keys()  # see `expected`
    wanted = expected(theirs, x, arguments, bool(options.get("beam_size")), not skipped)
    ours = RUNS[cls](options, state, inputs, wanted.keys())
    for name, value in wanted.items():
        assert name in ours, name
        if value.is_floating_point():
            assert torch.allclose(ours[name], value, rtol=1e-3, atol=1e-4), (name, (ours[name] - value).abs().max())
        else:
            assert torch.equal(ours[name], value), name


def expected(
    theirs: torch.nn.Module, x: Tensor, arguments: dict[str, Any], beam: bool, evaluate: bool
) -> dict[str, Tensor]:
    before = {name: tensor.clone() for name, tensor in theirs.state_dict().items()}
    wanted = {}
    theirs.eval()
    masked = {name: value for name, value in arguments.items() if name == "mask"}
    # In evaluation their beam search crashes, their affine moments move, and residual DiVeQ still adds noise.
    if evaluate:
        wanted["eval_quant"], wanted["eval_indices"], *_ = (each.detach() for each in theirs(x, **masked))
    theirs.train()
    leaf = x.clone().requires_grad_()
    quant, indices, loss = theirs(leaf, **arguments)
    ramp = torch.arange(quant.numel()).view_as(quant) / quant.numel()
    ((quant * ramp).sum() + loss.sum()).backward()
    single = type(theirs).__name__ in ("VectorQuantize", "SimVQ")
    wanted |= {"train_quant": quant.detach(), "train_indices": indices}
    wanted["train_loss" if single else "train_losses"] = loss.detach()
    if leaf.grad is not None:
        wanted["grad_x"] = leaf.grad
    wanted |= changed(theirs, before, beam)
    return wanted


def changed(theirs: torch.nn.Module, before: dict[str, Tensor], beam: bool) -> dict[str, Tensor]:
    found = {}
    for name, tensor in theirs.state_dict().items():
        kept = not beam and ("embed" in name or "cluster_size" in name or "codebook_" in name or "batch_" in name)
        kept = kept and ("embed_avg" not in name or owner(theirs, name).ema_update)
        if kept and "bridge" not in name and (name not in before or not torch.equal(tensor, before[name])):
            found[f"after/{name}"] = tensor.clone()
    for name, parameter in theirs.named_parameters():
        if "_codebook.embed" in name and owner(theirs, name).ema_update:
            continue
        if name.endswith(("embed", "code_transform.weight")) and parameter.grad is not None:
            found[f"grad/{name}"] = parameter.grad
    return found


def skip_if_corrected(name: str) -> None:
    if name in CORRECTED and VERSION > (1, 31):
        pytest.skip("the package does this as ours does since 1.32")


def owner(theirs: torch.nn.Module, name: str) -> Any:
    """Their codebook that a tensor belongs to."""
    return theirs.get_submodule(name.rpartition(".")[0])


@pytest.mark.parametrize("name", sorted(VECTOR))
def test_vector_quantize(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in range(2):
        compare("VectorQuantize", VECTOR[name], seed, monkeypatch)


@pytest.mark.parametrize("name", ["default", "cosine", "learnable", "cross entropy", "no route"])
def test_masked_vector_quantize(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mask = torch.rand(3, 11, generator=torch.Generator().manual_seed(0)) > 0.4
    compare("VectorQuantize", VECTOR[name], 0, monkeypatch, mask=mask)


@pytest.mark.parametrize("name", sorted(RESIDUAL))
def test_residual(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    skip_if_corrected(name)
    for seed in range(3):
        compare("ResidualVQ", {"num_quantizers": 4, **RESIDUAL[name]}, seed, monkeypatch)


@pytest.mark.parametrize("name", ["default", "projected", "shared", "cosine"])
def test_masked_residual(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    skip_if_corrected(f"{name}, masked")
    mask = torch.rand(3, 11, generator=torch.Generator().manual_seed(0)) > 0.4
    compare("ResidualVQ", {"num_quantizers": 3, **RESIDUAL[name]}, 0, monkeypatch, mask=mask)


@pytest.mark.parametrize("name", ["default", "projected", "shared", "cosine", "implicit", "learnable"])
def test_grouped_residual(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"num_quantizers": 3, "groups": 3, **RESIDUAL[name]}
    if name == "projected":
        options["codebook_dim"] = 3
    compare("GroupedResidualVQ", options, 0, monkeypatch)


@pytest.mark.parametrize("name", sorted(SIM))
def test_sim_vq(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    compare("SimVQ", SIM[name], 0, monkeypatch)


@pytest.mark.parametrize("name", ["default", "straight-through", "base dimension", "channels first", "dropout"])
def test_residual_sim_vq(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"quantize_dropout": True} if name == "dropout" else SIM[name]
    compare("ResidualSimVQ", {"num_quantizers": 4, **options}, 1, monkeypatch)


def test_random_projection() -> None:
    torch.manual_seed(0)
    options = {"dim": DIM, "codebook_size": CODES, "codebook_dim": 6, "num_codebooks": 3}
    for changes in ({}, {"norm": False}, {"num_codebooks": 1}):
        theirs = vqp.RandomProjectionQuantizer(**options) if not changes else None
        theirs = theirs or vqp.RandomProjectionQuantizer(**{**options, **changes})
        x = torch.randn(3, 11, DIM)
        indices = theirs(x)
        state = theirs.state_dict()
        ours = RUNS["RandomProjectionQuantizer"]({**options, **changes}, state, {"x": x}, ())
        assert torch.equal(ours["indices"], indices)
        assert torch.allclose(ours["ce_of_own_indices"], theirs(x, indices=indices), atol=1e-5)


def test_the_levels_that_a_seed_keeps_are_those_of_the_package() -> None:
    from smalti.quantize import Dropout

    for seed in range(50):
        dropout = Dropout(at_least=2)
        assert int(dropout.from_seed(seed, 8)) == random.Random(seed).randrange(1, 8) + 1
