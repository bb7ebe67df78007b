"""Reading a token store: Tokens by number or id, and a torch Dataset over it for models."""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from torch.utils.data import Dataset

from smalti.errors import InputError, StoreError
from smalti.store.format import ROWS_IN_PARTS, SHARDS, Column, read_store_header
from smalti.store.shard import file_hash, group_sizes, read_group, read_shard
from smalti.store.table import CodeRows, from_row, row_codes
from smalti.tokens import Tokens

CACHE = 2**28  # bytes of tables that are kept: shuffled training jumps between them
ONE_PASS = 2**25  # of a reader that goes from front to back


class TokenStore(Sequence[Tokens]):
    """A token store: `store[7]` is a row, `store["holiday/cat.jpg"]` a sample, `for tokens in store` goes over rows.

    Rows stand in shard order. A sample is one row, but for text and executables of more tokens than a row takes: their
    rows stand one after another, `parts` gives them one by one. A store that is still being written shows the samples
    that its header lists.

    Args:
        folder: of the store.
        cache: bytes of row groups that are kept in memory, besides the last one.

    Raises:
        StoreError: if the folder is no store; on access, if a shard is missing or damaged.
    """

    def __init__(self, folder: str | Path, *, cache: int = CACHE) -> None:
        self.folder, self._cache = Path(folder), cache
        self.header: Mapping[str, Any] = read_store_header(self.folder)
        try:
            self.columns = [Column.from_json(column) for column in self.header["columns"]]
            self._files = [str(entry["file"]) for entry in self.header["shards"]]
            rows = [int(entry.get("rows", entry["samples"])) for entry in self.header["shards"]]
        except (KeyError, TypeError, ValueError) as error:
            raise StoreError(f"{self.folder}: the header is damaged: {error!r}") from None
        if any(Path(file).name != file for file in self._files):
            raise StoreError(f"{self.folder}: the header names a shard outside the store")
        self._starts = [0, *accumulate(rows)]
        self._groups: dict[int, list[int]] = {}  # of shards that were checked: where their row groups start and end
        self._tables: OrderedDict[tuple[int, int], pa.Table] = OrderedDict()  # the most recently used last
        self._samples: dict[str, range] | None = None

    def __len__(self) -> int:
        """How many rows there are."""
        return self._starts[-1]

    def __getitem__(self, key: int | str) -> Tokens:  # type: ignore[override]  # no slices: they would be lists of Tokens
        """Tokens of batch 1: a row by its number, or all of a sample by its id."""
        if isinstance(key, str):
            return joined(list(self.parts(key)))
        table, row = self._find(key)
        return from_row(table, row, self.columns)

    def __iter__(self) -> Iterator[Tokens]:
        return (self[number] for number in range(len(self)))

    def parts(self, name: str) -> Iterator[Tokens]:
        """The rows of a sample, in order.

        Raises:
            KeyError: if there is no such sample.
        """
        return (self[number] for number in self.rows(name))

    def codes(self, name: str) -> Iterator[CodeRows]:
        """The codes of a sample, row by row: (positions, slots), in the type that they are stored in.

        Raises:
            KeyError: if there is no such sample.
            InputError: if the codes of this store stand in several columns.
        """
        if len(self.columns) != 1:
            raise InputError(f"codes of {self.folder} stand in the columns {[column.name for column in self.columns]}")
        return (row_codes(*self._find(number), self.columns[0]) for number in self.rows(name))

    def rows(self, name: str) -> range:
        """The numbers of a sample's rows.

        Raises:
            KeyError: if there is no such sample.
        """
        samples = self._index()
        if name not in samples:
            raise KeyError(f"{self.folder} has no sample {name!r}")
        return samples[name]

    def id(self, number: int) -> str:
        """The id of a row."""
        table, row = self._find(number)
        return str(table.column("id")[row].as_py())

    @property
    def ids(self) -> list[str]:
        """The ids of all samples, in order."""
        return list(self._index())

    @property
    def vocab(self) -> int:
        """How many ids `Tokens.flat` uses with stacked slots."""
        return sum(size for column in self.columns for size in column.vocab)

    # --- inside ----------------------------------------------------------------------------------------------------

    def _index(self) -> dict[str, range]:
        """The rows of each sample."""
        if self._samples is None:
            samples: dict[str, range] = {}
            number = 0
            for shard in range(len(self._files)):
                for name, part in self._names(shard):
                    own = samples.get(name, range(number, number))
                    if own.stop != number or len(own) != part:
                        raise StoreError(f"shard {self._files[shard]}: row {part} of {name!r} is out of order")
                    number += 1
                    samples[name] = range(own.start, number)
            self._samples = samples
        return self._samples

    def _names(self, shard: int) -> Iterator[tuple[str, int]]:
        """(id, part) of a shard's rows."""
        self._check(shard)
        parted = self.header["format"] >= ROWS_IN_PARTS
        table = read_shard(self.folder / SHARDS / self._files[shard], ["id", "part"] if parted else ["id"])
        names = table.column("id").to_pylist()
        return zip(names, table.column("part").to_pylist() if parted else [0] * len(names), strict=True)

    def _find(self, number: int) -> tuple[pa.Table, int]:
        if not -len(self) <= number < len(self):
            raise IndexError(f"row {number} of {len(self)}")
        number %= len(self)
        shard = bisect_right(self._starts, number) - 1  # the last of those that start there: others have no rows
        row = number - self._starts[shard]
        self._check(shard)
        group = bisect_right(self._groups[shard], row) - 1
        return self._table(shard, group), row - self._groups[shard][group]

    def _table(self, shard: int, group: int) -> pa.Table:
        table = self._tables.pop((shard, group), None)
        if table is None:
            table = read_group(self.folder / SHARDS / self._files[shard], group)
            missing = [column.name for column in self.columns if column.name not in table.column_names]
            if missing:
                raise StoreError(f"shard {self._files[shard]} lacks the columns {missing}")
            while self._tables and sum(each.nbytes for each in self._tables.values()) + table.nbytes > self._cache:
                self._tables.popitem(last=False)
        self._tables[shard, group] = table
        return table

    def _check(self, shard: int) -> None:
        """Once a process is enough: whether a shard is the file that was written."""
        if shard in self._groups:
            return
        path, entry = self.folder / SHARDS / self._files[shard], self.header["shards"][shard]
        # Page checksums do not cover page headers: a flipped bit there can change codes unseen. The hash covers all.
        if path.is_file() and file_hash(path) != entry["sha256"]:
            raise StoreError(f"shard {path.name} is not the file that was written: it was damaged or replaced")
        starts = [0, *accumulate(group_sizes(path))]
        expected = self._starts[shard + 1] - self._starts[shard]
        if starts[-1] != expected:
            raise StoreError(f"shard {path.name} has {starts[-1]} rows, the header says {expected}")
        self._groups[shard] = starts

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "cache": self._cache}  # worker processes open their own

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["folder"], cache=state["cache"])  # type: ignore[misc]


def joined(parts: Sequence[Tokens]) -> Tokens:
    """The rows of one sample as one Tokens.

    Args:
        parts: of batch 1 each, in order; if there are several, on 1-D positions.
    """
    if len(parts) == 1:
        return parts[0]
    streams = {
        name: stream.map(torch.cat([part.streams[name].codes for part in parts], dim=1), None)
        for name, stream in parts[0].streams.items()
    }
    return Tokens(streams, parts[0].side)


class TokenDataset(Dataset[Tokens]):
    """A torch Dataset over a store, for training generators.

        loader = DataLoader(TokenDataset("STORE"), batch_size=8, shuffle=True, collate_fn=Tokens.cat)
        for tokens in loader:
            generator(tokens).loss.backward()          # or tokens.flat() for any other language model

    Args:
        store: a TokenStore or its folder. Each row is an item, so a long text is several.
        transform: applied to each Tokens (prefix, crop), or None. Samples of a batch need one extent, unless positions
            are 1-D: those are padded, with lengths.
    """

    def __init__(self, store: TokenStore | str | Path, transform: Callable[[Tokens], Tokens] | None = None) -> None:
        self.store = store if isinstance(store, TokenStore) else TokenStore(store)
        self.transform = transform

    def __len__(self) -> int:
        return len(self.store)

    def __getitem__(self, index: int) -> Tokens:
        """Tokens of batch 1."""
        tokens = self.store[index]
        return tokens if self.transform is None else self.transform(tokens)
