"""Tokens and Latents: what encoders give, what stores keep, what models read.

    Tokens
      streams   name -> Stream, coarse to fine; most systems have one, called "codes"
        codes   (batch, *positions, slots), int64: image (H, W), audio (T,), video (T, H, W), set (N,)
        vocab   how many values each slot has
        lengths (batch,), optional: how many raster positions of each row are real
      side      what decoding needs beside codes, per sample (size, sample rate, true length, prompt ...)

    flat / unflat       one id per step, for a language model             (batch, steps)
    layout / unlayout   slots as parallel tracks, aligned or delayed      (batch, slots, steps) and a mask
    ragged / unragged   rows without padding, in the smallest unsigned type
    pack / unpack       ceil(log2 V) bits per code

Every pair inverts exactly, for any extents, vocabularies up to 2^63, lengths and streams.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from smalti.bits import ByteArray, IntArray, pack_rows, unpack_rows
from smalti.errors import InputError

Side = Tensor | tuple[str | bytes | int | float, ...]
Order = Literal["position", "slot"]
Offset = Literal["stacked", "shared"] | Sequence[int]
Pattern = Literal["parallel", "delay"]
CodeArray = np.ndarray[tuple[int, ...], np.dtype[np.unsignedinteger]]

MAX_VOCAB = 2**63  # a code is an int64; larger vocabularies are several slots
DEFAULT_STREAM = "codes"


@dataclass(frozen=True)
class StreamSpec:
    """The shape of a stream without its batch: what is needed to put codes back in place."""

    positions: tuple[int, ...]
    vocab: tuple[int, ...]
    slot_names: tuple[str, ...] | None = None

    @property
    def slots(self) -> int:
        return len(self.vocab)

    @property
    def size(self) -> int:
        """Number of positions."""
        return prod(self.positions)

    @property
    def bits(self) -> tuple[int, ...]:
        """Bits that a code of each slot takes when packed: ceil(log2 V)."""
        return tuple((size - 1).bit_length() for size in self.vocab)


TokenSpec = Mapping[str, StreamSpec]


@dataclass(frozen=True, eq=False)
class Stream:
    """Codes on one grid of positions.

    Args:
        codes: (batch, *positions, slots), int64.
        vocab: how many values each slot has, at most 2^63.
        lengths: (batch,), int64: real positions of each row in raster order. Codes beyond are set to 0.
        slot_names: names of the slots ("semantic", "acoustic" ...), if they have any.

    Raises:
        InputError: if the shapes or types do not fit together.
    """

    codes: Tensor
    vocab: tuple[int, ...]
    lengths: Tensor | None = None
    slot_names: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        codes, vocab = self.codes, tuple(int(size) for size in self.vocab)
        object.__setattr__(self, "vocab", vocab)
        if codes.dtype != torch.int64 or codes.ndim < 2:
            raise InputError(
                f"codes must be int64 of shape (batch, *positions, slots), got {codes.dtype} {tuple(codes.shape)}"
            )
        if codes.shape[-1] != len(vocab):
            raise InputError(f"codes have {codes.shape[-1]} slots, but vocab names {len(vocab)}")
        if not vocab or any(not 1 <= size <= MAX_VOCAB for size in vocab):
            raise InputError(f"every vocabulary must be in 1..2^63 (more bits are several slots), got {vocab}")
        if self.slot_names is not None and len(self.slot_names) != len(vocab):
            raise InputError(f"{len(self.slot_names)} slot names for {len(vocab)} slots")
        if self.lengths is not None:
            self._apply_lengths(self.lengths)

    def _apply_lengths(self, lengths: Tensor) -> None:
        lengths = lengths.to(device=self.codes.device, dtype=torch.int64)
        if lengths.shape != self.codes.shape[:1]:
            raise InputError(f"lengths must be of shape ({len(self)},), got {tuple(lengths.shape)}")
        if bool(((lengths < 0) | (lengths > self.spec.size)).any()):
            raise InputError(f"lengths must be in 0..{self.spec.size}, got {lengths.tolist()}")
        object.__setattr__(self, "lengths", lengths)
        rows = self.rows()
        beyond = ~_valid(lengths, rows.shape[1])
        if bool((rows[beyond] != 0).any()):
            object.__setattr__(self, "codes", rows.masked_fill(beyond[..., None], 0).reshape(self.codes.shape))

    def __len__(self) -> int:
        return self.codes.shape[0]

    @property
    def spec(self) -> StreamSpec:
        return StreamSpec(tuple(self.codes.shape[1:-1]), self.vocab, self.slot_names)

    def rows(self) -> Tensor:
        """Codes with positions in raster order: (batch, positions, slots)."""
        return self.codes.reshape(len(self), self.spec.size, len(self.vocab))

    def valid(self) -> Tensor:
        """Which raster positions are real: (batch, positions), bool."""
        if self.lengths is None:
            return torch.ones(len(self), self.spec.size, dtype=torch.bool, device=self.codes.device)
        return _valid(self.lengths, self.spec.size)

    def map(self, codes: Tensor, lengths: Tensor | None) -> Stream:
        return Stream(codes, self.vocab, lengths, self.slot_names)


@dataclass(frozen=True)
class Packed:
    """Codes at ceil(log2 V) bits each, rows one after another, each row of each stream starting on a byte.

    Inside a row codes follow in raster order, slot by slot; bits fill each byte from its least significant end.

    Args:
        data: stream name -> bytes.
        offsets: stream name -> (batch + 1,) where each row's bytes begin.
    """

    data: Mapping[str, ByteArray]
    offsets: Mapping[str, IntArray]
    spec: TokenSpec
    lengths: Mapping[str, Tensor]
    side: Mapping[str, Side]

    @property
    def nbytes(self) -> int:
        return sum(data.nbytes for data in self.data.values())


@dataclass(frozen=True, eq=False)
class Tokens:
    """Codes and what they mean: see the module's docstring. `Tokens.of` builds the common one-stream case."""

    streams: Mapping[str, Stream]
    side: Mapping[str, Side] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.streams:
            raise InputError("Tokens need at least one stream")
        sizes = {name: len(stream) for name, stream in self.streams.items()}
        if len(set(sizes.values())) != 1:
            raise InputError(f"all streams must have the same batch, got {sizes}")
        for name, value in self.side.items():
            if len(value) != len(self):
                raise InputError(f"side {name!r} has {len(value)} entries for a batch of {len(self)}")

    @classmethod
    def of(
        cls,
        codes: Tensor,
        vocab: Sequence[int],
        *,
        lengths: Tensor | None = None,
        side: Mapping[str, Side] | None = None,
        slot_names: Sequence[str] | None = None,
    ) -> Tokens:
        """Tokens of one stream named "codes". Arguments as in `Stream`."""
        names = tuple(slot_names) if slot_names is not None else None
        return cls({DEFAULT_STREAM: Stream(codes, tuple(vocab), lengths, names)}, side or {})

    # --- what is in it ---------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(next(iter(self.streams.values())))

    def __getitem__(self, index: int | slice) -> Tokens:
        """Some samples, as Tokens (one sample is a batch of one)."""
        if isinstance(index, int):
            if not -len(self) <= index < len(self):
                raise IndexError(f"sample {index} of {len(self)}")
            index = slice(index % len(self), index % len(self) + 1)
        streams = {
            name: stream.map(stream.codes[index], None if stream.lengths is None else stream.lengths[index])
            for name, stream in self.streams.items()
        }
        return Tokens(streams, {name: value[index] for name, value in self.side.items()})

    def __iter__(self) -> Iterator[Tokens]:
        return (self[i] for i in range(len(self)))

    def __repr__(self) -> str:
        parts = ", ".join(
            f"{name} {'x'.join(map(str, spec.positions)) or '1'} of {'x'.join(map(str, spec.vocab))}"
            for name, spec in self.spec.items()
        )
        return f"Tokens(batch {len(self)}: {parts})"

    @property
    def only(self) -> Stream:
        """The stream, where there is exactly one.

        Raises:
            InputError: if there are several.
        """
        if len(self.streams) != 1:
            raise InputError(f"these Tokens have several streams, choose one of {list(self.streams)}")
        return next(iter(self.streams.values()))

    @property
    def codes(self) -> Tensor:
        """Codes of the only stream: (batch, *positions, slots)."""
        return self.only.codes

    @property
    def vocab(self) -> tuple[int, ...]:
        """Vocabulary of the only stream, per slot."""
        return self.only.vocab

    @property
    def lengths(self) -> Tensor | None:
        """Lengths of the only stream."""
        return self.only.lengths

    @property
    def spec(self) -> dict[str, StreamSpec]:
        return {name: stream.spec for name, stream in self.streams.items()}

    @property
    def bits(self) -> int:
        """Bits of the whole batch when packed, without the rounding of rows to bytes."""
        return sum(int(stream.valid().sum()) * sum(stream.spec.bits) for stream in self.streams.values())

    def equal(self, other: Tokens) -> bool:
        """Whether streams, vocabularies, codes, lengths and side are all the same."""
        if self.spec != other.spec or len(self) != len(other) or self.side.keys() != other.side.keys():
            return False
        for name, stream in self.streams.items():
            twin = other.streams[name]
            if not torch.equal(stream.codes, twin.codes) or not torch.equal(stream.valid(), twin.valid()):
                return False
        return all(_same_side(value, other.side[name]) for name, value in self.side.items())

    def to(self, device: torch.device | str) -> Tokens:
        streams = {
            name: stream.map(stream.codes.to(device), None if stream.lengths is None else stream.lengths.to(device))
            for name, stream in self.streams.items()
        }
        side = {name: value.to(device) if isinstance(value, Tensor) else value for name, value in self.side.items()}
        return Tokens(streams, side)

    def check(self) -> None:
        """Raises InputError if a code is outside its slot's vocabulary, naming the first such place."""
        for name, stream in self.streams.items():
            top = torch.tensor([size - 1 for size in stream.vocab], device=stream.codes.device)
            wrong = (stream.codes < 0) | (stream.codes > top)
            if bool(wrong.any()):
                place = tuple(int(i) for i in wrong.nonzero()[0])
                raise InputError(
                    f"code {int(stream.codes[place])} of stream {name!r} at (batch, *positions, slot) = {place} "
                    f"is outside 0..{stream.vocab[place[-1]] - 1}"
                )

    # --- cutting and joining ---------------------------------------------------------------------------------------

    @classmethod
    def cat(cls, items: Sequence[Tokens]) -> Tokens:
        """Joins batches. Rows of different lengths become one padded batch with `lengths`, where positions are 1-D.

        Raises:
            InputError: if there is nothing to join, or vocabularies, names, sides or 2-D extents differ.
        """
        if not items:
            raise InputError("nothing to join: give at least one Tokens")
        first = items[0]
        if any(item.streams.keys() != first.streams.keys() or item.side.keys() != first.side.keys() for item in items):
            raise InputError("only Tokens with the same streams and the same side can be joined")
        streams = {name: _cat_streams(name, [item.streams[name] for item in items]) for name in first.streams}
        return cls(streams, {name: _cat_side(name, [item.side[name] for item in items]) for name in first.side})

    def prefix(self, *, positions: int | None = None, slots: int | None = None, streams: int | None = None) -> Tokens:
        """The first streams, the first slots of each and the first positions of each (along 1-D positions only)."""
        chosen: dict[str, Stream] = {}
        for name, stream in list(self.streams.items())[:streams]:
            codes, lengths, names = stream.codes[..., :slots], stream.lengths, stream.slot_names
            if positions is not None:
                if len(stream.spec.positions) != 1:
                    raise InputError(f"stream {name!r} has positions {stream.spec.positions}: only 1-D ones can be cut")
                codes = codes[:, :positions]
                lengths = None if lengths is None else lengths.clamp(max=codes.shape[1])
            chosen[name] = Stream(codes, stream.vocab[:slots], lengths, None if names is None else names[:slots])
        return Tokens(chosen, self.side)

    # --- one id per step -------------------------------------------------------------------------------------------

    def flat(self, order: Order = "position", offset: Offset = "stacked") -> Tensor:
        """One id per step, streams one after another.

        Args:
            order: "position" gives all slots of a position before the next; "slot" all positions of a slot.
            offset: "stacked" gives each slot of each stream its own range of ids, "shared" leaves codes as they are,
                a sequence names the first id of every slot (streams in order).

        Returns:
            (batch, steps), int64. Steps beyond `lengths` hold the id of code 0; `flat_mask` tells them.
        """
        parts = []
        for stream, firsts in zip(self.streams.values(), slot_offsets(self.spec, offset), strict=True):
            rows = stream.rows() + torch.tensor(firsts, device=stream.codes.device)
            parts.append((rows if order == "position" else rows.transpose(1, 2)).flatten(1))
        return torch.cat(parts, dim=1)

    def flat_mask(self, order: Order = "position") -> Tensor:
        """Which steps of `flat` are real: (batch, steps), bool."""
        parts = []
        for stream in self.streams.values():
            valid = stream.valid()[..., None].expand(-1, -1, len(stream.vocab))
            parts.append((valid if order == "position" else valid.transpose(1, 2)).flatten(1))
        return torch.cat(parts, dim=1)

    @classmethod
    def unflat(
        cls,
        ids: Tensor,
        spec: TokenSpec,
        order: Order = "position",
        offset: Offset = "stacked",
        *,
        lengths: Mapping[str, Tensor] | None = None,
        side: Mapping[str, Side] | None = None,
    ) -> Tokens:
        """The inverse of `flat`.

        Args:
            ids: (batch, steps), int64.
            spec: the extents and vocabularies to restore (`Tokens.spec`).

        Raises:
            InputError: if the number of steps does not fit, or an id is outside its slot's range.
        """
        steps = sum(stream.size * stream.slots for stream in spec.values())
        if ids.ndim != 2 or ids.shape[1] != steps:
            raise InputError(f"expected ids of shape (batch, {steps}), got {tuple(ids.shape)}")
        streams, start = {}, 0
        for (name, part), firsts in zip(spec.items(), slot_offsets(spec, offset), strict=True):
            size = part.size * part.slots
            chunk = ids[:, start : start + size]
            start += size
            if order == "position":
                rows = chunk.reshape(len(ids), part.size, part.slots)
            else:
                rows = chunk.reshape(len(ids), part.slots, part.size).transpose(1, 2)
            streams[name] = _restore(rows - torch.tensor(firsts, device=ids.device), part, (lengths or {}).get(name))
        tokens = cls(streams, side or {})
        tokens.check()
        return tokens

    # --- parallel tracks -------------------------------------------------------------------------------------------

    def layout(self, pattern: Pattern = "parallel", fill: int = 0) -> tuple[Tensor, Tensor]:
        """Slots as tracks over time.

        Args:
            pattern: "parallel" aligns all tracks; "delay" starts track k k steps later, as MusicGen does.
            fill: what stands where no code stands.

        Returns:
            (batch, slots, steps) int64, tracks of all streams in order, and the mask of real codes, same shape.
        """
        delays, steps = _delays(self.spec, pattern)
        tracks = len(delays)
        device = next(iter(self.streams.values())).codes.device
        values = torch.full((len(self), tracks, steps), fill, dtype=torch.int64, device=device)
        mask = torch.zeros(len(self), tracks, steps, dtype=torch.bool, device=device)
        track = 0
        for stream in self.streams.values():
            rows, valid = stream.rows(), stream.valid()
            for slot in range(len(stream.vocab)):
                span = slice(delays[track], delays[track] + rows.shape[1])
                mask[:, track, span] = valid
                values[:, track, span] = torch.where(valid, rows[..., slot], fill)
                track += 1
        return values, mask

    @classmethod
    def unlayout(
        cls,
        values: Tensor,
        spec: TokenSpec,
        pattern: Pattern = "parallel",
        *,
        lengths: Mapping[str, Tensor] | None = None,
        side: Mapping[str, Side] | None = None,
    ) -> Tokens:
        """The inverse of `layout`.

        Raises:
            InputError: if the shape does not fit, or a code is outside its slot's vocabulary.
        """
        delays, steps = _delays(spec, pattern)
        if values.ndim != 3 or values.shape[1:] != (len(delays), steps):
            raise InputError(f"expected (batch, {len(delays)}, {steps}), got {tuple(values.shape)}")
        streams, track = {}, 0
        for name, part in spec.items():
            columns = []
            for _ in range(part.slots):
                columns.append(values[:, track, delays[track] : delays[track] + part.size])
                track += 1
            streams[name] = _restore(torch.stack(columns, dim=-1), part, (lengths or {}).get(name))
        tokens = cls(streams, side or {})
        tokens.check()
        return tokens

    # --- rows without padding --------------------------------------------------------------------------------------

    def ragged(
        self, stream: str | None = None
    ) -> tuple[np.ndarray[tuple[int, ...], np.dtype[np.unsignedinteger]], IntArray]:
        """The real codes of one stream, row after row, in raster order and slot by slot.

        Args:
            stream: its name; may be left out where there is only one.

        Returns:
            values in the smallest unsigned type that holds the vocabulary, and offsets (batch + 1,) into them.
        """
        chosen = self.only if stream is None else self.streams[stream]
        values = chosen.rows()[chosen.valid()].reshape(-1).cpu().numpy()
        counts = chosen.valid().sum(1).cpu().numpy() * len(chosen.vocab)
        return values.astype(code_dtype(chosen.vocab)), np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)

    @classmethod
    def unragged(
        cls,
        values: np.ndarray[tuple[int, ...], np.dtype[np.integer]],
        offsets: IntArray,
        spec: StreamSpec,
        *,
        side: Mapping[str, Side] | None = None,
        stream: str = DEFAULT_STREAM,
    ) -> Tokens:
        """The inverse of `ragged`, on one stream with the extents of `spec`; shorter rows get `lengths`."""
        counts = np.diff(offsets)
        if (counts % spec.slots).any() or (counts < 0).any() or (counts > spec.size * spec.slots).any():
            raise InputError(
                f"rows of {counts.tolist()} values do not fit positions {spec.positions} x {spec.slots} slots"
            )
        lengths = torch.from_numpy(counts // spec.slots)
        rows = torch.zeros(len(counts), spec.size, spec.slots, dtype=torch.int64)
        rows[_valid(lengths, spec.size)] = torch.from_numpy(values.astype(np.int64)).reshape(-1, spec.slots)
        full = bool((lengths == spec.size).all())
        return cls({stream: _restore(rows, spec, None if full else lengths)}, side or {})

    # --- bits ------------------------------------------------------------------------------------------------------

    def pack(self) -> Packed:
        """Codes at ceil(log2 V) bits each.

        Raises:
            InputError: if a code is outside its vocabulary (-1, "dropped", has no bits).
        """
        self.check()
        data, offsets, lengths = {}, {}, {}
        for name, stream in self.streams.items():
            widths = stream.spec.bits
            rows = pack_rows(stream.rows().cpu().numpy(), widths)
            counts = stream.valid().sum(1).cpu().numpy()
            sizes = (counts * sum(widths) + 7) // 8
            keep = np.arange(rows.shape[1])[None, :] < sizes[:, None]
            data[name] = rows[keep]
            offsets[name] = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
            if stream.lengths is not None:
                lengths[name] = stream.lengths
        return Packed(data, offsets, self.spec, lengths, self.side)

    @classmethod
    def unpack(cls, packed: Packed) -> Tokens:
        """The inverse of `pack`.

        Raises:
            InputError: if the bytes are fewer or more than the shape needs, or a code is outside its vocabulary.
        """
        streams = {}
        for name, spec in packed.spec.items():
            offsets, data, lengths = packed.offsets[name], packed.data[name], packed.lengths.get(name)
            sizes = np.diff(offsets)
            counts = np.full(len(sizes), spec.size) if lengths is None else lengths.cpu().numpy()
            if len(data) != offsets[-1] or (sizes != (counts * sum(spec.bits) + 7) // 8).any():
                raise InputError(
                    f"packed stream {name!r} has {len(data)} bytes, which does not fit {spec} and its rows"
                )
            full = (spec.size * sum(spec.bits) + 7) // 8
            rows = np.zeros((len(sizes), full), dtype=np.uint8)
            rows[np.arange(full)[None, :] < sizes[:, None]] = data
            codes = torch.from_numpy(unpack_rows(rows, spec.size, spec.bits))
            streams[name] = _restore(codes, spec, lengths)
        tokens = cls(streams, packed.side)
        tokens.check()
        return tokens


@dataclass(frozen=True, eq=False)
class Latents:
    """What a continuous tokenizer gives: values (batch, *positions, dim), optional log variance, side as in Tokens."""

    values: Tensor
    logvar: Tensor | None = None
    side: Mapping[str, Side] = field(default_factory=dict)

    def __len__(self) -> int:
        return self.values.shape[0]


# --- helpers ---------------------------------------------------------------------------------------------------------


def code_dtype(vocab: Sequence[int]) -> type[np.unsignedinteger]:
    """The smallest unsigned type that holds every code of these vocabularies."""
    top = max(vocab) - 1
    types: tuple[type[np.unsignedinteger], ...] = (np.uint8, np.uint16, np.uint32, np.uint64)
    return next(dtype for dtype in types if top <= int(np.iinfo(dtype).max))


def slot_offsets(spec: TokenSpec, offset: Offset = "stacked") -> list[list[int]]:
    """The first id of every slot of every stream under an `offset` rule of `Tokens.flat`.

    Raises:
        InputError: if the ids would not fit int64, or the number of offsets is not the number of slots.
    """
    vocabs = [size for stream in spec.values() for size in stream.vocab]
    if offset == "shared":
        firsts = [0] * len(vocabs)
    elif offset == "stacked":
        firsts = [sum(vocabs[:index]) for index in range(len(vocabs))]
    elif isinstance(offset, str):
        raise InputError(f"offset must be 'stacked', 'shared' or a sequence of ints, got {offset!r}")
    else:
        firsts = [int(first) for first in offset]
        if len(firsts) != len(vocabs):
            raise InputError(f"{len(firsts)} offsets for {len(vocabs)} slots")
    if any(first < 0 or first + size > MAX_VOCAB for first, size in zip(firsts, vocabs, strict=True)):
        raise InputError(f"ids of vocabularies {vocabs} at offsets {firsts} do not fit 63 bits: use offset='shared'")
    parts, start = [], 0
    for stream in spec.values():
        parts.append(firsts[start : start + stream.slots])
        start += stream.slots
    return parts


def _valid(lengths: Tensor, size: int) -> Tensor:
    return torch.arange(size, device=lengths.device)[None, :] < lengths[:, None]


def _restore(rows: Tensor, spec: StreamSpec, lengths: Tensor | None) -> Stream:
    return Stream(rows.reshape(len(rows), *spec.positions, spec.slots), spec.vocab, lengths, spec.slot_names)


def _delays(spec: TokenSpec, pattern: Pattern) -> tuple[list[int], int]:
    """Where each track starts, and how many steps hold them all."""
    if pattern not in ("parallel", "delay"):
        raise InputError(f"pattern must be 'parallel' or 'delay', got {pattern!r}")
    sizes = [stream.size for stream in spec.values() for _ in stream.vocab]
    delays = [track if pattern == "delay" else 0 for track in range(len(sizes))]
    return delays, max(delay + size for delay, size in zip(delays, sizes, strict=True))


def _cat_streams(name: str, items: Sequence[Stream]) -> Stream:
    first = items[0]
    if any((item.vocab, item.slot_names) != (first.vocab, first.slot_names) for item in items):
        raise InputError(f"stream {name!r} has different vocabularies or slot names")
    extents = [item.spec.positions for item in items]
    if len(set(extents)) == 1 and all(item.lengths is None for item in items):
        return first.map(torch.cat([item.codes for item in items]), None)
    if len(set(extents)) > 1 and any(len(extent) != 1 for extent in extents):
        raise InputError(
            f"stream {name!r} has different extents {sorted(set(extents))}: only 1-D positions can be padded"
        )
    size = max(item.spec.size for item in items)
    shape = first.spec.positions if len(set(extents)) == 1 else (size,)
    codes = torch.cat([torch.nn.functional.pad(item.rows(), (0, 0, 0, size - item.spec.size)) for item in items])
    lengths = torch.cat([item.valid().sum(1) for item in items])
    return first.map(codes.reshape(len(codes), *shape, len(first.vocab)), lengths)


def _cat_side(name: str, values: Sequence[Side]) -> Side:
    if all(isinstance(value, Tensor) for value in values):
        return torch.cat([value for value in values if isinstance(value, Tensor)])
    if any(isinstance(value, Tensor) for value in values):
        raise InputError(f"side {name!r} is a tensor in some Tokens and not in others")
    return tuple(entry for value in values for entry in value)


def _same_side(value: Side, other: Side) -> bool:
    if isinstance(value, Tensor) and isinstance(other, Tensor):
        return torch.equal(value, other)
    return type(value) is type(other) and value == other
