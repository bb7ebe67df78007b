"""Grids of scalars, their indices and bounds: identities over vocabularies, published constants, brute force."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from smalti.errors import ConfigError, InputError
from smalti.quantize import Parallel, Quantize, Quantizer, Scalars, create, join_codes, reverse_digits, split_codes
from smalti.quantize.bounds import (
    DISTRIBUTIONS,
    BoundFSQ,
    Cumulative,
    HardClamp,
    Rescale,
    SoftClamp,
    Turn,
    UnitSphere,
    random_rotation,
)
from smalti.quantize.constants import RUN
from smalti.quantize.scalars import GRIDS

SAMPLES = 100_000


def some_codes(vocab: tuple[int, ...]) -> Tensor:
    """Every code of small vocabularies, many of large ones, and the last: (rows, slots)."""
    if max(vocab) <= 2**20:
        return torch.stack([torch.arange(max(vocab)) % size for size in vocab], -1)
    drawn = [torch.randint(min(size, 2**63 - 1), (SAMPLES,)) for size in vocab]
    return torch.cat([torch.stack(drawn, -1), torch.tensor([[size - 1 for size in vocab]])])


IDENTITIES: dict[str, Quantizer] = {
    "fsq, 64000 codes": create("fsq", levels=(8, 8, 8, 5, 5, 5)),
    "fsq, two groups": create("fsq", levels=(8, 5, 5, 5), groups=2),
    "ifsq, 17 levels": create("ifsq", levels=(17, 17, 17, 17)),
    "lfq, 18 bits": create("lookup-free", bits=18),
    "lfq, 18 bits, big-endian": create("lookup-free", bits=18, order="big"),
    "lfq, 20 bits": create("lookup-free", bits=20),
    "bsq, 36 bits": create("bsq", bits=36),
    "bsq, 63 bits": create("bsq", bits=63),
    "wetok, 64 bits": create("group-wise", bits=8, groups=8),
    "wide levels, above 2^53": Quantize(Scalars((1000,) * 6)),
}


@pytest.mark.parametrize("name", IDENTITIES)
def test_vectors_of_codes_have_these_codes(name: str) -> None:
    alphabet = IDENTITIES[name].alphabet
    assert isinstance(alphabet, Scalars)
    codes = some_codes(alphabet.vocab)
    vectors = alphabet.lookup(codes)
    assert torch.equal(alphabet.nearest(vectors), codes)
    found, again = alphabet.choose(vectors)
    assert torch.equal(found, codes) and torch.equal(again, vectors)


def test_bits_beyond_a_slot_are_several_slots() -> None:
    with pytest.raises(ConfigError, match="63 bits"):
        create("bsq", bits=64)
    halves = Parallel([Quantize(Scalars((2,) * 32, order="big", scale=64**-0.5)) for _ in range(2)])
    codes = torch.randint(2**32, (5000, 2))
    vectors = halves.decode(codes)
    assert torch.equal(halves.encode(vectors), codes)
    assert torch.allclose(vectors.norm(dim=-1), torch.ones(5000))


@pytest.mark.parametrize("bits", [9, 18, 36, 63])
def test_every_spherical_code_has_length_one(bits: int) -> None:
    vq = create("bsq", bits=bits)
    vectors = vq.decode(torch.randint(2**bits - 1, (1000, 1)))
    assert torch.allclose(vectors.norm(dim=-1), torch.ones(1000))


@pytest.mark.parametrize("grid", sorted(GRIDS))
@pytest.mark.parametrize("scale", [1.0, 0.3, (0.5, 2.0, 1.0)])
def test_nearest_levels_are_those_of_float64_brute_force(grid: str, scale: float | tuple[float, ...]) -> None:
    scalars = Scalars((7, 4, 5), grid=grid, scale=scale)  # type: ignore[arg-type]
    x = torch.randn(3 * RUN + 17, 3)
    codes, vectors = scalars.choose(x)
    table = scalars.codebooks()[0]
    assert torch.equal(codes[:, 0], torch.cdist(x.double(), table.double()).argmin(1))
    assert torch.equal(vectors, table[codes[:, 0]])


def test_grids_are_the_published_ones() -> None:
    assert Scalars((4,), grid="fsq").codebooks()[0].flatten().tolist() == [-1.0, -0.5, 0.0, 0.5]
    assert Scalars((5,), grid="fsq").codebooks()[0].flatten().tolist() == [-1.0, -0.5, 0.0, 0.5, 1.0]
    assert torch.allclose(Scalars((4,)).codebooks()[0].flatten(), torch.tensor([-1, -1 / 3, 1 / 3, 1]))
    assert Scalars((4,), grid="centres").codebooks()[0].flatten().tolist() == [0.125, 0.375, 0.625, 0.875]


def test_a_long_batch_gets_the_codes_of_its_rows() -> None:
    vq = create("fsq", levels=(8, 5, 5))
    z = torch.randn(1, 2 * RUN + 1, 3)
    alone = torch.cat([vq.encode(row[None, None]) for row in z[0]], 1)
    assert torch.equal(vq.encode(z), alone)


def test_casting_a_module_moves_no_level() -> None:
    vq = create("fsq", levels=(8, 8, 8, 5, 5, 5))
    z = torch.randn(2, 500, 6)
    codes = vq.encode(z)
    for cast in (vq.half, vq.bfloat16, vq.double, vq.float):
        assert torch.equal(cast().encode(z), codes)


# --- indices ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [10, 18])
def test_the_two_bit_orders_are_each_other_reversed(bits: int) -> None:
    levels = (2,) * bits
    little, big = Scalars(levels), Scalars(levels, order="big")
    codes = torch.arange(2**bits)[:, None]
    other = reverse_digits(codes[:, 0], levels, "little")
    assert torch.equal(little.lookup(codes), big.lookup(other[:, None]))
    assert torch.equal(reverse_digits(other, levels, "big"), codes[:, 0])
    some = int(codes[5, 0])
    assert int(other[5]) == int(f"{some:0{bits}b}"[::-1], 2)


def test_joined_codes_are_mixed_radix_numbers() -> None:
    vocab = (289, 45)
    codes = torch.stack([torch.arange(289 * 45) % 289, torch.arange(289 * 45) // 289], -1)
    assert torch.equal(join_codes(codes, vocab), torch.arange(289 * 45))
    assert torch.equal(split_codes(torch.arange(289 * 45), vocab), codes)
    assert torch.equal(split_codes(join_codes(codes, vocab, "big"), vocab, "big"), codes)
    assert int(join_codes(torch.tensor([1, 2]), vocab, "big")) == 45 + 2


def test_dropped_codes_stay_dropped_when_they_are_joined() -> None:
    codes = torch.tensor([[1, 2], [-1, 2], [-1, -1]])
    joined = join_codes(codes, (4, 4))
    assert joined.tolist() == [9, -1, -1]
    assert split_codes(joined, (4, 4)).tolist() == [[1, 2], [-1, -1], [-1, -1]]
    with pytest.raises(InputError, match="outside"):
        split_codes(torch.tensor([16]), (4, 4))


def test_unequal_groups_of_bits_round_trip() -> None:
    parts = Parallel([Quantize(Scalars((2,) * bits)) for bits in (6, 12)])
    whole = Quantize(Scalars((2,) * 18))
    z = torch.randn(2, 300, 18)
    codes = parts.encode(z)
    assert torch.equal(join_codes(codes, parts.vocab), whole.encode(z)[..., 0])
    assert torch.equal(parts.decode(codes), whole.decode(whole.encode(z)))


# --- bounds ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bound", [BoundFSQ((8, 5, 4)), SoftClamp(), SoftClamp(slope=0.8), SoftClamp((2.0, 1.5, 1.0))])
def test_the_gradient_of_a_bound_is_finite_far_out(bound: torch.nn.Module) -> None:
    z = torch.tensor([[20.0] * 3, [-20.0] * 3, [0.0] * 3], requires_grad=True)
    bound(z).sum().backward()
    assert z.grad is not None and bool(torch.isfinite(z.grad).all()) and bool((z.grad[2] > 0).all())


def test_fsq_follows_its_published_formula() -> None:
    levels = torch.tensor([8.0, 5.0, 4.0, 3.0])
    half, offset = (levels - 1) * (1 + 1e-3) / 2, torch.where(levels % 2 == 0, 0.5, 0.0)
    z = torch.randn(400, 4)
    expected = torch.round(torch.tanh(z + torch.atanh(offset / half)) * half - offset) / (levels // 2)
    vq = create("fsq", levels=[8, 5, 4, 3])
    out = vq(z[None])
    assert torch.allclose(out.z[0], expected)
    digits = expected * (levels // 2) + levels // 2
    assert torch.equal(out.codes[0, :, 0], (digits * torch.tensor([1, 8, 40, 160])).sum(-1).long())


def test_ifsq_uses_inner_levels_within_a_fifth_of_evenly() -> None:
    torch.manual_seed(0)
    z = torch.randn(1, 400_000, 1)

    def shares(name: str) -> Tensor:
        return torch.bincount(create(name, levels=(17,)).encode(z).flatten(), minlength=17) / z.shape[1] * 17

    inner = shares("ifsq")[1:-1]
    assert float(inner.min()) > 0.8 and float(inner.max()) < 1.2
    assert float((shares("symmetric-fsq")[1:-1] - 1).abs().max()) > 0.4


def test_ifsq_is_the_scaled_sigmoid() -> None:
    z = torch.randn(100, 3)
    assert torch.allclose(create("ifsq", levels=(5, 5, 5)).before(z), 2 * torch.sigmoid(1.6 * z) - 1, atol=1e-6)  # type: ignore[operator]


@pytest.mark.parametrize("name", sorted(DISTRIBUTIONS))
def test_cumulative_functions_and_their_inverses_agree(name: str) -> None:
    p = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
    bound = Cumulative(name)  # type: ignore[arg-type]
    assert torch.allclose(bound(bound.inverse(p)), p, atol=1e-9)


def test_spheres_turns_and_intervals() -> None:
    z = torch.randn(50, 12)
    assert torch.allclose(UnitSphere(3, 2.0)(z).unflatten(-1, (3, 4)).norm(dim=-1), torch.full((50, 3), 2.0))
    turn = Turn(random_rotation(4), groups=3)
    assert torch.allclose(turn.back()(turn(z)), z, atol=1e-5)
    assert torch.allclose(turn(z).norm(dim=-1), z.norm(dim=-1), atol=1e-5)
    scale = Rescale(-5, 3, 3)
    assert scale(torch.tensor([-5.0, -1.0, 3.0])).tolist() == [-3.0, 0.0, 3.0]
    assert torch.allclose(scale.back()(scale(z)), z, atol=1e-5)
    assert HardClamp((1.0, 2.0))(torch.tensor([[3.0, 3.0], [-3.0, -3.0]])).tolist() == [[1.0, 2.0], [-1.0, -2.0]]


def test_residual_fsq_error_is_that_of_one_fine_grid() -> None:
    """Stages of L levels, each L times smaller, make one grid of L^stages levels."""
    vq = create("residual-fsq", levels=(5, 3), stages=4)
    bounded = vq.before(torch.randn(1, 2000, 2))  # type: ignore[operator]
    codes = vq.encode(
        torch.atanh((bounded / torch.tensor([1.25, 1.5])).clamp(-0.999, 0.999)) * torch.tensor([1.25, 1.5])
    )
    error = (vq.decode(codes) - bounded).abs()
    inside = (bounded.abs() < 1).all(-1)
    for dimension, level in enumerate((5, 3)):
        assert float(error[inside][:, dimension].max()) <= 1 / (level - 1) / level**3 + 1e-4


def test_residual_bits_halve() -> None:
    vq = create("residual-lookup-free", bits=4, stages=3)
    values = {float(value) for value in vq.decode(torch.randint(16, (200, 3))).flatten()}
    assert values == {sum(s * 2.0**-i for i, s in enumerate(signs)) for signs in _signs(3)}


def _signs(count: int) -> list[tuple[int, ...]]:
    return [tuple(1 if number >> bit & 1 else -1 for bit in range(count)) for number in range(2**count)]


def test_spherical_gradients_pass_the_signs_and_then_the_scale() -> None:
    bits = 16
    vq = create("bsq", bits=bits, entropy_weight=0.0)
    u = torch.nn.functional.normalize(torch.randn(1, 20, bits), dim=-1).requires_grad_()
    plain = Quantize(vq.alphabet, estimator=vq.estimator)  # type: ignore[arg-type]
    upstream = torch.randn(1, 20, bits)
    plain(u).z.backward(upstream)
    assert u.grad is not None and torch.allclose(u.grad, upstream / math.sqrt(bits))
