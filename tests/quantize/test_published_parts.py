"""Parts against golden cases of whole systems that hold the quantizer's inputs and outputs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from smalti.quantize import (
    EMA,
    Codebook,
    Commitment,
    Halves,
    IntervalRestart,
    Joint,
    MultiScale,
    Quantize,
    Quantizer,
    Residual,
    SmoothedEMA,
    Table,
    Trained,
    create,
)
from tests.parity.golden import Case, read_case


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Path:
    return Path(request.config.getoption("--golden"))


def case(golden: Path, name: str) -> Case:
    file = golden / f"{name}.json"
    if not file.exists():
        pytest.skip(f"no golden case at {file}")
    return read_case(file)


def trained(rows: Tensor) -> Trained:
    return Trained(len(rows), rows.shape[1], init=lambda weight: weight.copy_(rows))


@pytest.mark.parametrize("name", ["tokenflow/clip_small", "tokenflow/siglip_small"])
def test_tokenflow_s_joint_index(golden: Path, name: str) -> None:
    given = case(golden, name)
    tables = [
        Table(trained(given.state[f"quantize.embedding_{part}.weight"]), space="unit") for part in ("vqkd", "vqgan")
    ]
    # The quantizer alone ran with a single scale: latents as they are.
    quantizer = Quantize(Joint(tables), terms=[Codebook(), Commitment()])
    out = quantizer(given.inputs["quantizer_z"].permute(0, 2, 3, 1))
    assert torch.equal(out.codes.flatten(), given.outputs["quantizer_codes"])
    assert torch.allclose(out.z.permute(0, 3, 1, 2), given.outputs["quantizer_zq"], atol=1e-6)


@pytest.mark.parametrize("name", ["put/pvqvae_cvpr", "put/pvqvae_tpami"])
def test_put_s_halves_and_one_step_of_its_ema(golden: Path, name: str) -> None:
    given = case(golden, name)
    options = given.config["quantizer_config"]["params"]
    table = Table(trained(given.state["quantize.embedding"]), learn=EMA(decay=0.99, eps=1e-5))
    table.ema_count.copy_(given.state["quantize.cluster_size"])
    table.ema_sum.copy_(given.state["quantize.embedding_avg"])
    quantizer = Quantize(Halves(table, options["masked_embed_start"]), terms=[Commitment(1.0)]).train()
    z = given.outputs["feature"].permute(0, 2, 3, 1)
    known = torch.ones(*z.shape[:-1], 1)
    assert torch.equal(quantizer.encode(z, context=known)[..., 0], given.outputs["tokens_full"])
    z = given.outputs["feature_masked"].permute(0, 2, 3, 1)
    known = (given.outputs["token_type"] == 1).permute(0, 2, 3, 1).float()
    out = quantizer(z, context=known)
    assert torch.equal(out.codes[..., 0], given.outputs["tokens_masked"])
    assert torch.allclose(out.loss, given.outputs["ema_loss"], atol=1e-5)
    quantizer.update()
    assert torch.allclose(table.stored_rows(), given.outputs["ema_embedding"], atol=5e-4)
    assert torch.allclose(table.ema_count, given.outputs["ema_cluster_size"], atol=5e-4)
    assert torch.allclose(table.ema_sum, given.outputs["ema_embedding_avg"], atol=5e-4)


def test_glm_s_ema_and_restart(golden: Path) -> None:
    given = case(golden, "speech-text-interleave/glm4voice")
    options = given.config["tokenizer"]
    decay, every = options["quantize_ema_decay"], options["quantize_restart_interval"]
    table = Table(
        trained(given.state["tokenizer/codebook.weight"]),
        learn=SmoothedEMA(decay=decay),
        revive=IntervalRestart(every=every, decay=decay),
    )
    table.ema_count.copy_(given.state["tokenizer/ema_count"])
    table.ema_sum.copy_(given.state["tokenizer/ema_weight"])
    weight = options["quantize_commit_coefficient"] * options["quantize_loss_scale"]
    quantizer = Quantize(table, terms=[Commitment(weight)]).train()
    z, length = given.outputs["tokenizer/pre_quant"], given.outputs["tokenizer/code_len"]
    mask = torch.arange(z.shape[1]) < length[:, None]
    # Dead codes took the first rows in order. Which are dead is for the rule to say; other numbers are not used.
    dead = given.outputs["train/ema_count"] == 1
    assert 0 < int(dead.sum()) < len(dead)
    out = quantizer(z, mask=mask, noise={"replacement_rows": (dead.cumsum(0) - 1).clamp(min=0)})
    assert torch.equal(out.codes[mask][:, 0], given.outputs["tokenizer/codes"][mask])
    assert torch.allclose(out.loss, given.outputs["train/quantize_loss"][0], rtol=1e-4)
    quantizer.update()
    assert torch.allclose(table.ema_count, given.outputs["train/ema_count"], atol=1e-5)
    assert torch.allclose(table.ema_sum, given.outputs["train/ema_weight"], atol=5e-4)
    assert torch.allclose(table.stored_rows(), given.outputs["train/codebook"], atol=5e-4)


def unfolded(state: dict[str, Tensor], name: str) -> Tensor:
    """The weight of a weight-normalised layer, under either of torch's two layouts, as a matrix."""
    new = f"{name}.parametrizations.weight.original"
    size, direction = (
        (state[f"{new}0"], state[f"{new}1"])
        if f"{new}0" in state
        else (state[f"{name}.weight_g"], state[f"{name}.weight_v"])
    )
    return (size.flatten(1) * torch.nn.functional.normalize(direction.flatten(1), dim=1)).contiguous()


def load_factorised(level: Quantizer, state: dict[str, Tensor], prefix: str, codebook: str) -> None:
    level.load_state_dict(
        {
            "before.weight": unfolded(state, f"{prefix}.in_proj"),
            "before.bias": state[f"{prefix}.in_proj.bias"],
            "after.weight": unfolded(state, f"{prefix}.out_proj"),
            "after.bias": state[f"{prefix}.out_proj.bias"],
            "alphabet.table.vectors.weight": state[f"{prefix}.{codebook}.weight"],
        }
    )


def test_bigcodec_s_factorised_codes(golden: Path) -> None:
    given = case(golden, "audio-codec-anchors/bigcodec_small")
    options = given.config["decoder"]
    quantizer = create(
        "factorised", dim=options["vq_dim"], codes=options["codebook_size"], code_dim=options["codebook_dim"]
    )
    load_factorised(quantizer, given.state, "generator/quantizer.layers.0", "_codebook")
    out = quantizer(given.outputs["latents"].transpose(1, 2))
    assert torch.equal(out.codes[..., 0], given.outputs["codes"][0])
    assert torch.allclose(out.z.transpose(1, 2), given.outputs["z_q"], atol=3e-4)


def test_snac_s_multi_rate_codes(golden: Path) -> None:
    given = case(golden, "audio-codec-anchors/snac_small")
    z = given.outputs["latents"].transpose(1, 2)
    quantizer = create(
        "multi-rate",
        dim=z.shape[-1],
        codes=given.config["codebook_size"],
        strides=given.config["vq_strides"],
        code_dim=given.config["codebook_dim"],
    )
    assert isinstance(quantizer, MultiScale)
    for index, level in enumerate(quantizer.levels):
        load_factorised(level, given.state, f"quantizer.quantizers.{index}", "codebook")
    out = quantizer(z)
    for index, codes in enumerate(quantizer.split(out.codes)):
        assert torch.equal(codes[..., 0], given.outputs[f"codes_{index}"])
    assert torch.allclose(out.z.transpose(1, 2), given.outputs["z_q"], atol=3e-4)


def test_neurorvq_s_levels_normalise_what_the_levels_before_left(golden: Path) -> None:
    given, loss = case(golden, "neurorvq/tokenizer"), torch.zeros(())
    for branch in range(4):
        weights = [given.state[f"encode_task_layer_{branch + 1}.{place}.weight"] for place in (0, 2)]
        biases = [given.state[f"encode_task_layer_{branch + 1}.{place}.bias"] for place in (0, 2)]
        hidden = F.linear(given.outputs["encoder_features"][branch], weights[0], biases[0]).tanh()
        latents = F.linear(hidden, weights[1], biases[1])
        rows = [given.state[f"quantize_{branch + 1}.layers.{level}.embedding.weight"] for level in range(8)]
        quantizer = create("neurorvq", dim=rows[0].shape[1], codes=len(rows[0])).eval()
        assert isinstance(quantizer, Residual)
        for level, table in zip(quantizer.levels, rows, strict=True):
            level.alphabet.stored_rows().copy_(table)  # type: ignore[operator, union-attr]
        out = quantizer(latents)
        assert torch.equal(out.codes.movedim(-1, 0), given.outputs["tokens"][branch])
        ours = out.z.movedim(-1, 1).reshape(given.outputs["quantized"][branch].shape)
        assert torch.allclose(ours, given.outputs["quantized"][branch], atol=1e-5)
        loss = loss + out.loss
    assert torch.allclose(loss, given.outputs["loss_code"], rtol=1e-5)


@pytest.mark.parametrize("name", ["conv_plain", "conv_pe"])
def test_vq_vla_s_levels(golden: Path, name: str) -> None:
    given = case(golden, f"vq-vla/{name}")
    books = [given.state[f"vqvae.vq_layer.layers.{level}._codebook.embed"][0] for level in range(4)]
    quantizer = create("vq-vla", dim=books[0].shape[1]).eval()
    assert isinstance(quantizer, Residual)
    for level, rows in zip(quantizer.levels, books, strict=True):
        level.alphabet.stored_rows().copy_(rows)  # type: ignore[operator, union-attr]
    assert torch.equal(quantizer.encode(given.outputs["latents"]), given.outputs["codes"])
    assert torch.allclose(quantizer.decode(given.outputs["codes"]), given.outputs["z_from_codes"], atol=1e-6)
