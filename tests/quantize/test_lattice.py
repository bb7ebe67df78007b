"""The Leech lattice's minimal vectors against their published counts, lengths and angles."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from smalti.quantize import create
from smalti.quantize.lattice import golay_words, leech_codebook, leech_vectors


def test_golay_words_have_the_published_weights_and_distances() -> None:
    words = golay_words()
    assert words.shape == (4096, 24)
    assert torch.bincount(words.sum(1)).nonzero().flatten().tolist() == [0, 8, 12, 16, 24]
    assert torch.bincount(words.sum(1))[[0, 8, 12, 16, 24]].tolist() == [1, 759, 2576, 759, 1]
    total = (words[17] + words) % 2  # linear: sums are words again
    assert {tuple(row) for row in total.tolist()} == {tuple(row) for row in words.tolist()}


def test_minimal_vectors_are_those_of_the_three_shapes() -> None:
    vectors = leech_vectors().long()
    assert len(vectors) == 196_560 and len(vectors.unique(dim=0)) == 196_560
    assert bool((vectors.square().sum(1) == 32).all())
    largest = vectors.abs().amax(1)
    assert torch.bincount(largest)[[2, 3, 4]].tolist() == [97_152, 98_304, 1_104]
    # Conway and Sloane's congruences: all coordinates have the parity of the vector, and sum to 4 times it modulo 8.
    parity = vectors[:, 0] % 2
    assert bool((vectors % 2 == parity[:, None]).all())
    assert bool((vectors.sum(1) % 8 == 4 * parity).all())


def test_inner_products_take_the_published_values_and_counts() -> None:
    vectors = leech_vectors().float()
    for row in (0, 97_152 + 5, 196_559):
        products = (vectors @ vectors[row]).long()
        counts = {int(value): int((products == value).sum()) for value in products.unique()}
        assert counts == {-32: 1, -16: 4600, -8: 47_104, 0: 93_150, 8: 47_104, 16: 4600, 32: 1}


def test_the_codebook_lies_on_the_sphere() -> None:
    rows = leech_codebook()
    assert torch.allclose(rows.norm(dim=1), torch.ones(len(rows)), atol=1e-6)


def test_codes_are_the_directions_next_to_latents() -> None:
    vq = create("leech")
    z = torch.randn(1, 40, 24)
    table = leech_codebook().double()
    cosines = F.normalize(z[0].double(), dim=1) @ table.t()
    best, expected = cosines.max(1)
    codes = vq.encode(z)[0, :, 0]
    assert torch.allclose(cosines.gather(1, codes[:, None])[:, 0], best, atol=1e-6)
    assert float((codes == expected).float().mean()) == 1.0
    every = torch.randint(196_560, (1, 500, 1))
    assert torch.equal(vq.encode(vq.decode(every)), every)
