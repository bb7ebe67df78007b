"""FVQ's bridge against its definition written again, its ablations, and what remains of it after training."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smalti.errors import ConfigError
from smalti.quantize import (
    Bridged,
    Codebook,
    Commitment,
    LinearBridge,
    Mapped,
    ModulatedBridge,
    Quantize,
    Table,
    Trained,
    VQBridge,
    create,
    materialise,
)
from smalti.quantize.bridge import picture, sine_positions


def shaken(network: nn.Module, seed: int = 0) -> nn.Module:
    """Weights that start at zero hide mistakes."""
    torch.manual_seed(seed)
    for parameter in network.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.2)
    return network


def reference(bridge: VQBridge, rows: Tensor) -> Tensor:
    """The paper's form for one head, patch by patch, token by token, in float64."""
    p, w, dim = bridge.patch, bridge.width, rows.shape[1]
    state = {key: value.double() for key, value in bridge.state_dict().items()}
    grid = rows.double().view(bridge.height, w, dim)
    tokens, places = [], []
    for top in range(0, bridge.height, p):
        for left in range(0, w, p):
            patch = grid[top : top + p, left : left + p]
            weight = state["to_tokens.weight"]
            tokens.append(torch.einsum("yxd,hdyx->h", patch, weight) + state["to_tokens.bias"])
            places.append((top, left))
    x = torch.stack(tokens)

    def norm(t: Tensor) -> Tensor:
        return (t - t.mean(1, keepdim=True)) / (t.var(1, unbiased=False, keepdim=True) + 1e-6).sqrt()

    for i in range(len(bridge.blocks)):
        own = {k.removeprefix(f"blocks.{i}."): v for k, v in state.items() if k.startswith(f"blocks.{i}.")}
        q, k, v = (norm(x) @ own["attention.qkv.weight"].t() + own["attention.qkv.bias"]).chunk(3, 1)
        attended = torch.softmax(q @ k.t() / math.sqrt(q.shape[1]), 1) @ v
        x = x + attended @ own["attention.proj.weight"].t() + own["attention.proj.bias"]
        inner = F.gelu(norm(x) @ own["mlp.0.weight"].t() + own["mlp.0.bias"], approximate="tanh")
        x = x + inner @ own["mlp.2.weight"].t() + own["mlp.2.bias"]
    patches = norm(x) @ state["to_patches.weight"].t() + state["to_patches.bias"]
    out = torch.zeros_like(grid)
    for (top, left), patch in zip(places, patches, strict=True):
        out[top : top + p, left : left + p] = patch.view(p, p, dim)
    return out.view(-1, dim)


@pytest.mark.parametrize(("codes", "patch"), [(64, 2), (96, 2), (36, 3), (30, 1)])
def test_the_bridge_is_its_definition(codes: int, patch: int) -> None:
    bridge = shaken(VQBridge(codes, 5, patch=patch, head_dim=12, heads=1))
    assert isinstance(bridge, VQBridge)
    rows = torch.randn(codes, 5)
    assert torch.allclose(bridge(rows).double(), reference(bridge, rows), atol=1e-5)


def test_a_condition_that_does_nothing_leaves_the_paper_s_form() -> None:
    plain = shaken(VQBridge(64, 5, patch=2, head_dim=8))
    modulated = ModulatedBridge(64, 5, patch=2, head_dim=8)
    assert not modulated.load_state_dict(plain.state_dict(), strict=False).unexpected_keys
    modulated.positions.zero_()
    with torch.no_grad():
        for block in modulated.blocks:
            block.modulation.bias.view(6, -1)[[2, 5]] = 1.0  # the two gates
    rows = torch.randn(64, 5)
    assert torch.allclose(modulated(rows), plain(rows), atol=1e-6)


def test_positions_are_those_of_masked_autoencoders() -> None:
    grid = sine_positions(3, 5, 16)
    for line in range(3):
        for column in range(5):
            for half, place in ((0, column), (1, line)):
                for i in range(4):
                    angle = place / 10000 ** (i / 4)
                    own = grid[line * 5 + column, 8 * half + i], grid[line * 5 + column, 8 * half + 4 + i]
                    assert own[0] == pytest.approx(math.sin(angle), abs=1e-6)
                    assert own[1] == pytest.approx(math.cos(angle), abs=1e-6)


@pytest.mark.parametrize(("codes", "patch", "expected"), [(64, 4, (8, 8)), (128, 4, (8, 16)), (2**18, 8, (512, 512))])
def test_pictures_are_the_rectangles_nearest_to_a_square(codes: int, patch: int, expected: tuple[int, int]) -> None:
    assert picture(codes, patch) == expected


@pytest.mark.parametrize(("codes", "patch"), [(50, 4), (24, 4), (7, 0)])
def test_other_numbers_of_codes_are_refused(codes: int, patch: int) -> None:
    with pytest.raises(ConfigError, match="rectangle"):
        VQBridge(codes, 4, patch=patch)


def test_the_codebook_starts_at_the_origin() -> None:
    quantizer = create("fvq", dim=6, codes=64)
    assert not bool(quantizer.codebooks()[0].any())
    assert not bool(quantizer.encode(torch.randn(2, 9, 6)).any())


def test_every_row_of_the_base_learns_from_one_latent_and_plain_rows_do_not() -> None:
    z = torch.randn(1, 1, 6)
    rows, network = Trained(64, 6), shaken(VQBridge(64, 6, patch=2, head_dim=8))
    bridged = Quantize(Table(Bridged(rows, network)), terms=[Codebook()])
    bridged(z).loss.backward()
    assert bool((rows.weight.grad.norm(dim=1) > 0).all())
    plain = create("vq", dim=6, codes=64)
    plain(z).loss.backward()
    assert int((next(plain.parameters()).grad.norm(dim=1) > 0).sum()) == 1


def test_a_bridge_of_one_linear_layer_over_frozen_rows_is_simvq() -> None:
    torch.manual_seed(0)
    base, bridge = torch.randn(40, 6), LinearBridge(6)
    assert torch.equal(Mapped(base, bridge, 6)(), F.linear(base, bridge[0].weight, bridge[0].bias))
    deep = LinearBridge(6, 5)
    assert [type(part) for part in deep] == [nn.Linear, *[nn.ReLU, nn.Linear] * 4]


def test_what_is_materialised_is_an_ordinary_codebook_with_the_same_codes() -> None:
    torch.manual_seed(1)
    bridged = create("fvq", dim=6, codes=64, head_dim=8)
    shaken(bridged)
    plain = materialise(bridged)
    assert list(plain.state_dict()) == ["alphabet.vectors.weight"]
    z = torch.randn(3, 20, 6)
    assert torch.equal(plain.encode(z), bridged.encode(z))
    codes = torch.arange(64)[:, None]
    assert torch.equal(plain.decode(codes), bridged.decode(codes))
    ordinary = create("vq", dim=6, codes=64)
    ordinary.load_state_dict(plain.state_dict())
    assert torch.equal(ordinary.encode(z), bridged.encode(z))
    again = bridged.state_dict()
    assert any("network" in key for key in again)  # the original is left as it was


def test_materialising_keeps_levels_that_share_a_table() -> None:
    shared = create("shared-residual", dim=4, codes=9, levels=3)
    plain = materialise(shared)
    assert len(plain.state_dict()) == 3 and len(list(plain.parameters())) == 1
    z = torch.randn(2, 5, 4)
    assert torch.equal(plain.encode(z), shared.encode(z))


@pytest.mark.slow
def test_a_quarter_of_a_million_codes_train_in_eight_gigabytes() -> None:
    def peak() -> int:
        return int(next(x for x in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in x).split()[1])

    torch.manual_seed(0)
    quantizer = Quantize(
        Table(Bridged(Trained(2**18, 8), shaken(VQBridge(2**18, 8, patch=8)))), terms=[Codebook(), Commitment()]
    )
    z = torch.randn(1, 256, 8, requires_grad=True)
    out = quantizer(z)
    out.loss.backward()
    assert peak() < 8 * 2**20  # KiB
    costs = torch.cdist(z[0].double(), quantizer.codebooks()[0].detach().double())
    assert torch.equal(costs.argmin(1), out.codes[0, :, 0])
