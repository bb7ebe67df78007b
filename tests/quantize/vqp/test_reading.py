"""from_vqp's strictness, and what it does otherwise than the package on purpose; nothing here needs the package."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from smalti.errors import CheckpointError, ConfigError
from smalti.quantize import Quantize, Residual, Table, from_vqp
from smalti.quantize.vqp import residual, scalars, vectors
from smalti.testing import check_quantizer

PAGE = Path(__file__).parents[3] / "docs" / "from-vector-quantize-pytorch.md"
DIM, CODES = 6, 10


def codebook(prefix: str = "", heads: int = 1, dim: int = DIM, codes: int = CODES) -> dict[str, Tensor]:
    embed = torch.randn(heads, codes, dim)
    return {
        f"{prefix}_codebook.initted": torch.tensor(True),
        f"{prefix}_codebook.cluster_size": torch.ones(heads, codes),
        f"{prefix}_codebook.embed_avg": embed.clone(),
        f"{prefix}_codebook.embed": embed,
    }


def levels(count: int = 3) -> dict[str, Tensor]:
    return {key: value for index in range(count) for key, value in codebook(f"layers.{index}.").items()}


def read(state: Mapping[str, Tensor] | None = None, *, legacy: bool = False, **options: Any) -> Quantize:
    given = {"dim": DIM, "codebook_size": CODES, **options}
    quantizer = from_vqp("VectorQuantize", given, state or codebook(), legacy_training=legacy)
    assert isinstance(quantizer, Quantize)
    return quantizer


def test_unknown_options_and_classes_are_named() -> None:
    with pytest.raises(ConfigError, match="'no_such_option'"):
        read(no_such_option=1)
    with pytest.raises(ConfigError, match="NoSuchClass"):
        from_vqp("NoSuchClass", {}, {})
    with pytest.raises(ConfigError, match="'dim'"):
        from_vqp("VectorQuantize", {"codebook_size": 3}, codebook())


def test_keys_that_are_missing_or_left_over_are_named() -> None:
    with pytest.raises(CheckpointError, match="project_in"):
        read({**codebook(), "project_in.weight": torch.zeros(2, 2)})
    lacking = codebook()
    del lacking["_codebook.embed"]
    with pytest.raises(CheckpointError, match="lacks _codebook"):
        read(lacking)
    with pytest.raises(CheckpointError, match="embed is"):
        read(codebook_size=11)
    with pytest.raises(CheckpointError, match="rand_projs"):
        from_vqp("RandomProjectionQuantizer", {"dim": 6, "codebook_size": 4, "codebook_dim": 2}, {})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"learnable_codebook": True}, "ema_update"),
        ({"learnable_codebook": True, "ema_update": False, "use_cosine_sim": True}, "learnable"),
        ({"straight_through": True, "rotation_trick": True}, "excludes"),
        ({"sync_update_v": 0.1}, "learnable"),
        ({"in_place_codebook_optimizer": torch.optim.SGD}, "learnable"),
    ],
)
def test_options_that_exclude_each_other_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read(**options)


def test_residual_options_that_can_not_be_are_refused() -> None:
    for options, message in (
        ({"num_quantizers": 3, "heads": 2}, "heads"),
        ({"num_quantizers": 2, "codebook_size": (4, 4, 4)}, "num_quantizers"),
        ({"codebook_size": (4, 5), "shared_codebook": True}, "codebook_size"),
        ({"num_quantizers": 3, "eval_beam_size": 2}, "eval_beam_size"),
        ({}, "num_quantizers"),
    ):
        with pytest.raises(ConfigError, match=message):
            from_vqp("ResidualVQ", {"dim": DIM, "codebook_size": CODES, **options}, levels())


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_cosine_sim": True},
        {"affine_param": True},
        {"directional_reparam": True, "threshold_ema_dead_code": 1},
        {"stochastic_sample_codes": True},
        {"learnable_codebook": True, "ema_update": False, "sync_update_v": 0.3},
        {"kmeans_init": True},
        {"learnable_codebook": True, "ema_update": False, "kmeans_init": True},
        {
            "learnable_codebook": True,
            "ema_update": False,
            "in_place_codebook_optimizer": partial(torch.optim.SGD, lr=0.1),
        },
    ],
)
def test_what_is_read_keeps_the_contract(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    check_quantizer(read(**options))


def test_every_code_means_itself() -> None:
    torch.manual_seed(0)
    vq = read()
    codes = torch.arange(CODES)[None, :, None]
    assert torch.equal(vq.encode(vq.decode(codes)), codes)


def test_a_bridge_is_filled_from_the_state_and_the_users_module_stays_as_it_is() -> None:
    bridge = nn.Linear(DIM, DIM)
    weight = torch.randn(DIM, DIM)
    before = bridge.weight.detach().clone()
    state = {
        **codebook(),
        "_codebook.vq_bridge.weight": weight,
        "_codebook.vq_bridge.bias": torch.zeros(DIM),
    }
    vq = read(state, vq_bridge=bridge)
    assert torch.allclose(vq.codebooks()[0], state["_codebook.embed"][0] @ weight.t(), atol=1e-6)
    assert torch.equal(bridge.weight, before)
    with pytest.raises(CheckpointError, match="extra"):
        read({**state, "_codebook.vq_bridge.extra": weight}, vq_bridge=bridge)


def test_gumbel_gradients_reach_the_latents_unless_training_is_as_theirs() -> None:
    state, z = codebook(), torch.randn(1, 5, DIM, requires_grad=True)
    options = {"straight_through": True, "rotation_trick": False, "commitment_weight": 0.0}
    gradients = []
    for legacy in (False, True):
        (found,) = torch.autograd.grad(read(state, legacy=legacy, **options)(z).z.sum(), z)
        gradients.append(found)
    assert torch.equal(gradients[1], torch.ones(1, 5, DIM))
    assert not torch.allclose(gradients[0], gradients[1])


def test_synchronous_updates_reach_the_table_unless_training_is_as_theirs() -> None:
    state, z = codebook(), torch.randn(1, 5, DIM, requires_grad=True)
    options = {"sync_update_v": 0.5, "rotation_trick": False, "commitment_weight": 0.0}
    for legacy, to_latents in ((False, 1.0), (True, 1.5)):
        vq = read(state, legacy=legacy, learnable_codebook=True, ema_update=False, **options)
        vq(z).z.sum().backward()
        assert z.grad is not None
        assert torch.allclose(z.grad, torch.full_like(z, to_latents))
        assert isinstance(vq.alphabet, Table)
        weight = vq.alphabet.stored_rows().grad
        assert legacy == (weight is None or not weight.any())
        z.grad = None


def test_a_shared_codebook_is_one_table() -> None:
    one = codebook()
    state = {f"layers.{index}.{key}": value for index in range(3) for key, value in one.items()}
    options = {"dim": DIM, "codebook_size": CODES, "num_quantizers": 3, "shared_codebook": True}
    rvq = from_vqp("ResidualVQ", options, state)
    assert isinstance(rvq, Residual)
    assert len({id(level) for level in rvq.levels}) == 1


def test_moments_of_an_affine_codebook_are_read() -> None:
    mean, variance = torch.randn(1, 1, DIM), torch.rand(1, 1, DIM) + 0.5
    state = codebook()
    for whose in ("batch", "codebook"):
        state |= {f"_codebook.{whose}_mean": mean + 1, f"_codebook.{whose}_variance": variance}
        state |= {f"_codebook.{whose}_mean_needs_init": torch.tensor(False)}
    state["_codebook.batch_mean"] = mean
    vq = read(state, affine_param=True).eval()
    expected = state["_codebook.embed"][0] - 1
    assert torch.allclose(vq.codebooks()[0], expected, atol=1e-5)


def options_of_all_classes() -> dict[str, Mapping[str, Any]]:
    from smalti.quantize.vqp import bits, hierarchical

    return {
        "VectorQuantize": vectors.VECTOR_QUANTIZE,
        "SimVQ": vectors.SIM_VQ,
        "RandomProjectionQuantizer": vectors.RANDOM_PROJECTION,
        "GroupedResidualVQ": residual.GROUPED_RESIDUAL_VQ,
        "ResidualSimVQ": residual.RESIDUAL_SIM_VQ,
        "FSQ": scalars.FSQ,
        "ResidualFSQ": scalars.RESIDUAL_FSQ,
        "FSP": scalars.FSP,
        "ResidualLFQ": bits.RESIDUAL_LFQ,
        "LatentQuantize": scalars.LATENT_QUANTIZE,
        "BinaryMapper": bits.BINARY_MAPPER,
        "HierarchicalVQ": {**hierarchical.OWN, **hierarchical.INNER},
    }


@pytest.mark.parametrize("name", sorted(options_of_all_classes()))
def test_the_page_names_every_option(name: str) -> None:
    page = PAGE.read_text()
    silent = {"is_channel_first", "dim"}
    missing = [option for option in options_of_all_classes()[name] if f"`{option}" not in page and option not in silent]
    assert not missing, missing
    assert name in page


def test_the_pages_examples_run() -> None:
    pytest.importorskip("vector_quantize_pytorch")
    code = [block.split("```")[0] for block in PAGE.read_text().split("```python\n")[1:]]
    exec("\n".join(code), {})
