"""from_vqp of scalar and multi-scale classes beside the package that it reads, option by option.

Needs vector-quantize-pytorch, which nothing else of Smalti does.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from smalti.errors import CheckpointError, ConfigError
from smalti.quantize import MultiScale, Quantizer
from smalti.quantize.vqp import from_vqp
from tests.parity.adapters.zoo_scalars import RUNS, ramp
from tests.parity.golden import compare

vqp = pytest.importorskip("vector_quantize_pytorch")

RULE = {"atol": 1e-4, "rtol": 1e-3}
SEED = 7
Case = tuple[str, dict[str, Any], tuple[int, ...]]

CASES: list[Case] = [
    ("FSQ", {"levels": [8, 5, 5]}, (3, 3, 4, 4)),
    ("FSQ", {"levels": [8, 5, 5]}, (3, 3, 2, 4, 4)),
    ("FSQ", {"levels": [8, 5, 5], "channel_first": True}, (3, 3, 7)),
    ("FSQ", {"levels": [8, 5, 5], "dim": 7, "num_codebooks": 3}, (2, 7, 4, 4)),
    ("FSQ", {"levels": [8, 5, 5], "dim": 7, "projection_has_bias": False, "keep_num_codebooks_dim": True}, (2, 9, 7)),
    ("FSQ", {"levels": [8, 6, 5], "bound_hard_clamp": True}, (2, 9, 3)),
    ("FSQ", {"levels": [2, 2, 4, 7], "preserve_symmetry": True}, (2, 9, 4)),
    ("FSQ", {"levels": [4, 4, 4], "orthogonal_rotation": True, "preserve_symmetry": True}, (2, 9, 3)),
    (
        "FSQ",
        {
            "levels": [4, 4, 4],
            "orthogonal_rotation": True,
            "preserve_symmetry": True,
            "num_codebooks": 2,
            "dim": 5,
            "bound_hard_clamp": True,
        },
        (2, 9, 5),
    ),
    ("ResidualFSQ", {"levels": [5, 5, 3], "num_quantizers": 4}, (2, 9, 3)),
    ("ResidualFSQ", {"levels": [5, 4, 2], "num_quantizers": 3, "dim": 5, "bound_hard_clamp": False}, (2, 9, 5)),
    (
        "ResidualFSQ",
        {
            "levels": [4, 4, 4],
            "num_quantizers": 3,
            "bound_hard_clamp": False,
            "soft_clamp_input_value": [2.0, 1.5, 3.0],
        },
        (2, 9, 3),
    ),
    ("ResidualFSQ", {"levels": [4, 4, 4], "num_quantizers": 3, "orthogonal_rotation": True}, (2, 9, 3)),
    (
        "ResidualFSQ",
        {
            "levels": [5, 5, 3],
            "num_quantizers": 5,
            "quantize_dropout": True,
            "quantize_dropout_cutoff_index": 1,
            "quantize_dropout_multiple_of": 2,
        },
        (2, 9, 3),
    ),
    ("GroupedResidualFSQ", {"levels": [5, 5, 3], "num_quantizers": 3, "dim": 12, "groups": 2}, (2, 9, 12)),
    *(
        (
            "FSP",
            {"levels": [8, 5, 5], "act_name": name, "need_inv_act": inverse, "quantize_rate": 1.0, "vector_norm": norm},
            (2, 20, 3),
        )
        for name, norm in (
            ("tanh", "var_tanh"),
            ("sigmoid", "var_sigmoid"),
            ("normal", "kurt"),
            ("laplace", "var_laplace"),
            ("cauchy", "none"),
        )
        for inverse in (False, True)
    ),
    ("FSP", {"levels": [8, 5], "dim": 6, "quantize_rate": 1.0, "projection_has_bias": False}, (2, 20, 6)),
    ("LFQ", {"codebook_size": 64}, (2, 15, 6)),
    ("LFQ", {"dim": 6}, (2, 6, 4, 5)),
    ("LFQ", {"codebook_size": 4096, "commitment_loss_weight": 0.25}, (2, 15, 12)),
    ("LFQ", {"codebook_size": 16, "num_codebooks": 3, "dim": 7, "projection_has_bias": False}, (2, 15, 7)),
    ("LFQ", {"codebook_size": 64, "spherical": True, "num_codebooks": 2, "codebook_scale": 0.5}, (2, 15, 12)),
    ("LFQ", {"codebook_size": 64, "experimental_softplus_entropy_loss": True, "entropy_loss_offset": 3.0}, (2, 15, 6)),
    (
        "LFQ",
        {"codebook_size": 64, "dim": 9, "cosine_sim_project_in": True, "cosine_sim_project_in_scale": 2.0},
        (2, 15, 9),
    ),
    (
        "LFQ",
        {
            "codebook_size": 64,
            "dim": 9,
            "cosine_sim_project_in": True,
            "codebook_scale": 1.5,
            "soft_clamp_input_value": 2.0,
        },
        (2, 15, 9),
    ),
    ("LFQ", {"codebook_size": 64, "orthogonal_rotation": True, "commitment_loss_weight": 0.2}, (2, 15, 6)),
    ("LFQ", {"codebook_size": 64, "has_projections": True, "diversity_gamma": 2.5}, (2, 15, 6)),
    ("ResidualLFQ", {"dim": 6, "codebook_size": 64, "num_quantizers": 4}, (2, 15, 6)),
    (
        "ResidualLFQ",
        {"dim": 9, "codebook_size": 64, "num_quantizers": 3, "soft_clamp_input_value": 2.0, "quantize_dropout": True},
        (2, 15, 9),
    ),
    ("ResidualLFQ", {"dim": 6, "codebook_size": 64, "num_quantizers": 3, "spherical": True}, (2, 15, 6)),
    ("GroupedResidualLFQ", {"dim": 10, "groups": 2, "codebook_size": 64, "num_quantizers": 3}, (2, 9, 10)),
    ("LatentQuantize", {"levels": [5, 4, 8], "dim": 6}, (2, 6, 4, 4)),
    ("LatentQuantize", {"levels": 4, "codebook_dim": 3, "dim": 6, "num_codebooks": 2}, (2, 6, 7)),
    (
        "LatentQuantize",
        {"levels": [6, 6], "dim": 2, "commitment_loss_weight": 0.3, "optimize_values": False},
        (2, 2, 7),
    ),
]


@pytest.mark.parametrize("case", CASES, ids=[f"{number} {case[0]}" for number, case in enumerate(CASES)])
def test_evaluation_and_a_training_step_are_theirs(case: Case) -> None:
    name, options, shape = case
    torch.manual_seed(0)
    theirs = getattr(vqp, name)(**options)
    x = torch.randn(shape) * 0.4
    inputs = {"x": x, "rand_quantize_dropout_fixed_seed": torch.tensor(SEED)}
    expected = outputs(name, theirs, x, options)
    given = RUNS[name](options, theirs.state_dict(), inputs, list(expected))
    lines = [compare(key, given[key], tensor, rule(tensor)) for key, tensor in expected.items()]
    wrong = [str(line) for line in lines if not line.passed]
    assert not wrong, "\n".join(wrong)


def rule(tensor: Tensor) -> dict[str, float]:
    return RULE if tensor.is_floating_point() else {}


def outputs(name: str, theirs: nn.Module, x: Tensor, options: dict[str, Any]) -> dict[str, Tensor]:
    seed = {"rand_quantize_dropout_fixed_seed": SEED} if options.get("quantize_dropout") else {}
    with torch.no_grad():
        quant, indices = theirs.eval()(x)[:2]
    x = x.clone().requires_grad_()
    trained, train_indices, *rest = theirs.train()(x, **seed)
    loss = rest[0] if rest else torch.zeros(())
    ((trained * ramp(trained)).sum() + loss.sum()).backward()
    assert x.grad is not None
    found = {
        "eval_quant": quant,
        "eval_indices": indices.long(),
        "train_quant": trained.detach(),
        "train_indices": train_indices.long(),
        "train_loss": loss.detach(),
        "grad_x": x.grad,
    }
    if name != "LatentQuantize" and theirs.__dict__.get("channel_first") is not True:
        decode = getattr(theirs, "get_output_from_indices", None) or theirs.indices_to_codes
        found["output_from_indices"] = decode(indices).detach()
    return found


# --- HierarchicalVQ --------------------------------------------------------------------------------------------------

BASE = {"dim": 6, "codebook_size": 20, "scales": [1, 2, 3, 4], "kmeans_init": False, "threshold_ema_dead_code": 0}
MAPS = {"accept_image_fmap": True}
HIERARCHIES: list[tuple[dict[str, Any], tuple[int, ...]]] = [
    (MAPS, (2, 6, 4, 4)),
    (MAPS, (2, 6, 7, 5)),
    ({}, (2, 6, 9)),
    ({"share_quant_resi": 0, **MAPS}, (2, 6, 4, 4)),
    ({"share_quant_resi": 2}, (2, 6, 4)),
    ({"quant_resi": 0.0, **MAPS}, (2, 6, 4, 4)),
    ({"shared_codebook": False, "quant_resi": 0.3, **MAPS}, (2, 6, 5, 4)),
    ({"accept_3d_fmap": True, "channel_first": False}, (2, 4, 5, 3, 6)),
]


def hierarchy(options: dict[str, Any], shape: tuple[int, ...]) -> tuple[nn.Module, MultiScale, Tensor]:
    torch.manual_seed(0)
    theirs = vqp.HierarchicalVQ(**options)
    for name, buffer in theirs.named_buffers():
        if name.endswith("_codebook.embed"):
            buffer.normal_(std=0.7)
    ours = from_vqp("HierarchicalVQ", options, theirs.state_dict())
    assert isinstance(ours, MultiScale)
    return theirs, ours, torch.randn(shape)


@pytest.mark.parametrize("options, shape", HIERARCHIES)
def test_hierarchies_give_their_codes_and_vectors(options: dict[str, Any], shape: tuple[int, ...]) -> None:
    options = {**BASE, **options}
    theirs, ours, x = hierarchy(options, shape)
    axis = 1 if options.get("channel_first", True) else -1
    with torch.no_grad():
        quant, indices, _ = theirs.eval()(x)
        out = ours.eval()(x.movedim(axis, -1))
    assert torch.allclose(out.z.movedim(-1, axis), quant, atol=1e-5)
    maps = ours.split(out.codes, tuple(out.z.shape[1:-1]))
    assert all(torch.equal(one[..., 0], other) for one, other in zip(maps, indices, strict=True))


def test_hierarchies_with_their_own_codebooks_train_like_theirs() -> None:
    # A shared one is overwritten between the scales of a step there.
    theirs, ours, x = hierarchy({**BASE, "shared_codebook": False, **MAPS}, (2, 6, 4, 4))
    one, other = x.clone().requires_grad_(), x.clone().requires_grad_()
    quant, _, loss = theirs.train()(one)
    (quant.square().sum() + loss).backward()
    out = ours.train()(other.movedim(1, -1))
    (out.z.square().sum() + out.loss).backward()
    assert torch.allclose(out.loss, loss, atol=1e-5)
    assert one.grad is not None and other.grad is not None and torch.allclose(other.grad, one.grad, atol=1e-5)


def test_hierarchies_mask_like_theirs() -> None:
    theirs, ours, x = hierarchy({**BASE, "scales": [1, 2, 4, 8]}, (2, 6, 8))
    mask = torch.ones(2, 8, dtype=torch.bool)
    mask[0, 5:] = False
    with torch.no_grad():
        quant, indices, _ = theirs.eval()(x, mask=mask)
        out = ours.eval()(x.movedim(1, -1), mask=mask)
    assert torch.allclose(out.z.movedim(-1, 1), quant, atol=1e-5)
    assert torch.equal(out.codes[..., 0], torch.cat(indices, 1))


# --- strictness ------------------------------------------------------------------------------------------------------


def read(name: str, options: dict[str, Any], **changed: Tensor) -> Quantizer:
    known = {key: value for key, value in options.items() if key != "wings"}
    return from_vqp(name, options, {**getattr(vqp, name)(**known).state_dict(), **changed})


@pytest.mark.parametrize("name, options, _", CASES[::4])
def test_unknown_options_and_left_over_keys_are_named(name: str, options: dict[str, Any], _: object) -> None:
    with pytest.raises(ConfigError, match="wings"):
        read(name, {**options, "wings": 2})
    with pytest.raises(CheckpointError, match="tail"):
        read(name, options, tail=torch.zeros(1))


def test_missing_keys_and_unsupported_options_are_named() -> None:
    with pytest.raises(CheckpointError, match="project_in"):
        from_vqp("FSQ", {"levels": [4, 4], "dim": 5}, {})
    with pytest.raises(ConfigError, match="straight_through_activation"):
        from_vqp("LFQ", {"dim": 4, "straight_through_activation": nn.Tanh()}, {})
    with pytest.raises(ConfigError, match="in_place_codebook_optimizer"):
        from_vqp("LatentQuantize", {"levels": [4], "dim": 1, "in_place_codebook_optimizer": torch.optim.SGD}, {})
    with pytest.raises(ConfigError, match="preserve_symmetry"):
        from_vqp("FSQ", {"levels": [2, 4]}, {})


def test_trained_latent_values_get_their_own_codes() -> None:
    """Theirs computes indices from the values, which is wrong once they are trained."""
    state = {"values_per_latent.0": torch.tensor([-0.9, 0.1, 0.8]), "values_per_latent.1": torch.tensor([0.2, -0.4])}
    ours = from_vqp("LatentQuantize", {"levels": [3, 2], "dim": 2}, state)
    codes = torch.arange(6)[None, :, None]
    assert torch.equal(ours.encode(ours.decode(codes)), codes)
    ours(torch.randn(1, 5, 2)).loss.backward()
    assert all(parameter.grad is not None and bool(parameter.grad.any()) for parameter in ours.parameters())
