"""Tokens: every pair of conversions inverts exactly, and what is impossible is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from smalti.bits import pack_rows, unpack_rows
from smalti.errors import InputError
from smalti.tokens import Latents, Stream, Tokens

VOCABS = st.one_of(st.integers(1, 70), st.integers(2**31, 2**33), st.just(2**63), st.integers(2**40, 2**63))


@st.composite
def streams(draw: st.DrawFn, batch: int, vocabs: st.SearchStrategy[int] = VOCABS) -> Stream:
    positions = tuple(draw(st.lists(st.integers(0, 5), min_size=0, max_size=3)))
    vocab = tuple(draw(st.lists(vocabs, min_size=1, max_size=4)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    columns = [rng.integers(0, size, (batch, *positions), dtype=np.uint64) for size in vocab]
    codes = torch.from_numpy(np.stack(columns, -1).astype(np.int64))
    for slot, size in enumerate(vocab):  # the extremes are where bits go wrong
        if codes[..., slot].numel():
            codes[..., slot].view(-1)[:1] = size - 1
    size = int(np.prod(positions))
    lengths = draw(st.none() | st.lists(st.integers(0, size), min_size=batch, max_size=batch))
    names = draw(st.sampled_from([None, tuple(f"level{i}" for i in range(len(vocab)))]))
    return Stream(codes, vocab, None if lengths is None else torch.tensor(lengths, dtype=torch.int64), names)


@st.composite
def any_tokens(draw: st.DrawFn, vocabs: st.SearchStrategy[int] = VOCABS) -> Tokens:
    batch = draw(st.integers(0, 3))
    names = draw(st.lists(st.sampled_from(["codes", "coarse", "fine", "scale3"]), min_size=1, max_size=3, unique=True))
    side = {"size": torch.arange(batch * 2).reshape(batch, 2), "caption": tuple("x" * i for i in range(batch))}
    return Tokens({name: draw(streams(batch, vocabs)) for name in names}, side)


def lengths_of(tokens: Tokens) -> dict[str, torch.Tensor]:
    return {name: stream.lengths for name, stream in tokens.streams.items() if stream.lengths is not None}


@settings(max_examples=200, deadline=None)
@given(any_tokens(st.integers(1, 2**33)), st.sampled_from(["position", "slot"]), st.sampled_from(["stacked", "shared"]))
def test_unflat_inverts_flat(tokens: Tokens, order: str, offset: str) -> None:
    ids = tokens.flat(order, offset)
    again = Tokens.unflat(ids, tokens.spec, order, offset, lengths=lengths_of(tokens), side=tokens.side)
    assert again.equal(tokens)
    assert tokens.flat_mask(order).shape == ids.shape


@settings(max_examples=200, deadline=None)
@given(any_tokens(), st.sampled_from(["parallel", "delay"]))
def test_unlayout_inverts_layout(tokens: Tokens, pattern: str) -> None:
    values, mask = tokens.layout(pattern)
    again = Tokens.unlayout(values, tokens.spec, pattern, lengths=lengths_of(tokens), side=tokens.side)
    assert again.equal(tokens)
    assert int(mask.sum()) == sum(int(s.valid().sum()) * len(s.vocab) for s in tokens.streams.values())


@settings(max_examples=200, deadline=None)
@given(any_tokens())
def test_unpack_inverts_pack_at_the_stated_bits(tokens: Tokens) -> None:
    packed = tokens.pack()
    assert Tokens.unpack(packed).equal(tokens)
    for name, stream in tokens.streams.items():
        bits = stream.valid().sum(1) * sum(stream.spec.bits)
        assert len(packed.data[name]) == int(((bits + 7) // 8).sum())


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 3).flatmap(lambda batch: streams(batch)))
def test_unragged_inverts_ragged_in_the_smallest_type(stream: Stream) -> None:
    tokens = Tokens({"codes": stream})
    values, offsets = tokens.ragged()
    again = Tokens.unragged(values, offsets, stream.spec)
    assert torch.equal(again.codes, tokens.codes)
    assert torch.equal(again.only.valid(), stream.valid())
    assert values.dtype.itemsize * 8 >= max(stream.spec.bits)
    assert values.dtype == np.uint8 or values.dtype.itemsize * 4 < max(stream.spec.bits)


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 40), st.lists(st.integers(0, 63), min_size=1, max_size=4), st.integers(0, 2**32))
def test_packed_bits_are_those_of_a_bit_by_bit_reference(positions: int, widths: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    codes = np.stack([rng.integers(0, 2**width, (1, positions), dtype=np.uint64) for width in widths], -1).astype(
        np.int64
    )
    bits = [
        (int(code) >> bit) & 1
        for row in codes[0]
        for code, width in zip(row, widths, strict=True)
        for bit in range(width)
    ]
    packed = pack_rows(codes, widths)
    assert packed[0].tolist() == np.packbits(np.array(bits, np.uint8), bitorder="little").tolist()
    assert (unpack_rows(packed, positions, widths) == codes).all()


def test_the_delay_pattern_is_musicgens() -> None:
    tokens = Tokens.of(torch.tensor([[[1, 2, 3], [4, 5, 6]]]), (8, 8, 8))
    values, mask = tokens.layout("delay", fill=9)
    assert values[0].tolist() == [[1, 4, 9, 9], [9, 2, 5, 9], [9, 9, 3, 6]]
    assert (values[0] != 9).tolist() == mask[0].tolist()


def test_flat_orders_are_as_documented() -> None:
    tokens = Tokens.of(torch.tensor([[[1, 2], [3, 4]]]), (8, 16))
    assert tokens.flat("position", "shared").tolist() == [[1, 2, 3, 4]]
    assert tokens.flat("slot", "shared").tolist() == [[1, 3, 2, 4]]
    assert tokens.flat("position", "stacked").tolist() == [[1, 10, 3, 12]]
    assert tokens.flat("position", [100, 200]).tolist() == [[101, 202, 103, 204]]


def test_codes_beyond_the_length_become_zero() -> None:
    tokens = Tokens.of(torch.tensor([[[3], [4], [5]]]), (8,), lengths=torch.tensor([2]))
    assert tokens.codes.flatten().tolist() == [3, 4, 0]


def test_cat_pads_one_dimensional_positions_and_split_undoes_it() -> None:
    short, long = (Tokens.of(torch.ones(1, n, 1, dtype=torch.int64), (4,), side={"n": (n,)}) for n in (2, 5))
    both = Tokens.cat([short, long])
    assert both.lengths is not None and both.lengths.tolist() == [2, 5]
    assert both.side["n"] == (2, 5)
    assert both[0].prefix(positions=2).codes.shape == (1, 2, 1)


def test_cat_refuses_grids_of_different_extents() -> None:
    one, other = (Tokens.of(torch.zeros(1, n, 2, 1, dtype=torch.int64), (4,)) for n in (2, 3))
    with pytest.raises(InputError, match="only 1-D"):
        Tokens.cat([one, other])


def test_prefix_cuts_slots_and_streams() -> None:
    coarse = Stream(torch.zeros(1, 2, 1, dtype=torch.int64), (4,))
    fine = Stream(torch.zeros(1, 4, 3, dtype=torch.int64), (4, 5, 6), None, ("a", "b", "c"))
    tokens = Tokens({"coarse": coarse, "fine": fine})
    assert list(tokens.prefix(streams=1).streams) == ["coarse"]
    assert tokens.prefix(slots=2).streams["fine"].spec.slot_names == ("a", "b")


@pytest.mark.parametrize(
    ("codes", "vocab"),
    [
        (torch.zeros(1, 2, 1), (4,)),
        (torch.zeros(1, 2, 2, dtype=torch.int64), (4,)),
        (torch.zeros(3, dtype=torch.int64), (4,)),
        (torch.zeros(1, 1, dtype=torch.int64), (0,)),
        (torch.zeros(1, 1, dtype=torch.int64), (2**63 + 1,)),
    ],
)
def test_what_is_no_stream_is_refused(codes: torch.Tensor, vocab: tuple[int, ...]) -> None:
    with pytest.raises(InputError):
        Stream(codes, vocab)


@pytest.mark.parametrize("code", [-1, 4])
def test_pack_refuses_codes_out_of_range_and_says_where(code: int) -> None:
    tokens = Tokens.of(torch.tensor([[[0], [code]]]), (4,))
    with pytest.raises(InputError, match=r"\(0, 1, 0\)"):
        tokens.pack()


def test_stacked_ids_that_would_overflow_are_refused() -> None:
    tokens = Tokens.of(torch.zeros(1, 1, 2, dtype=torch.int64), (2**63, 2**63))
    with pytest.raises(InputError, match="shared"):
        tokens.flat()


def test_unflat_refuses_ids_of_another_slot() -> None:
    tokens = Tokens.of(torch.zeros(1, 2, 2, dtype=torch.int64), (4, 4))
    ids = tokens.flat()
    ids[0, 0] = 5
    with pytest.raises(InputError, match="outside"):
        Tokens.unflat(ids, tokens.spec)


def test_side_must_have_an_entry_per_sample() -> None:
    with pytest.raises(InputError, match="side"):
        Tokens.of(torch.zeros(2, 1, 1, dtype=torch.int64), (4,), side={"caption": ("one",)})
    assert len(Latents(torch.zeros(2, 3, 4))) == 2
