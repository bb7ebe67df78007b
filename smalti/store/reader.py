"""Reading a token store: Tokens by number or id, and a torch Dataset over it for models."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
from torch.utils.data import Dataset

from smalti.errors import StoreError
from smalti.store.format import SHARDS, Column, file_hash, from_row, read_shard, read_store_header
from smalti.tokens import Tokens

SHARDS_IN_MEMORY = 128  # tables of about a megabyte; shuffled training jumps between shards


class TokenStore(Sequence[Tokens]):
    """A token store: `store[7]`, `store["holiday/cat.jpg"]`, `for tokens in store`.

    Rows stand in shard order. A store that is still being written shows the shards that its header lists.

    Args:
        folder: of the store.

    Raises:
        StoreError: if the folder is no store; on access, if a shard is missing or damaged.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.header: Mapping[str, Any] = read_store_header(self.folder)
        try:
            self.columns = [Column.from_json(column) for column in self.header["columns"]]
            self._files = [str(entry["file"]) for entry in self.header["shards"]]
            self._starts = [0]
            for entry in self.header["shards"]:
                self._starts.append(self._starts[-1] + int(entry["samples"]))
        except (KeyError, TypeError, ValueError) as error:
            raise StoreError(f"{self.folder}: the header is damaged: {error!r}") from None
        if any(Path(file).name != file for file in self._files):
            raise StoreError(f"{self.folder}: the header names a shard outside the store")
        self._table = lru_cache(SHARDS_IN_MEMORY)(self._read)
        self._sound: set[str] = set()  # shards whose hash was checked: once a process is enough
        self._numbers: dict[str, int] | None = None

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, key: int | str) -> Tokens:  # type: ignore[override]  # no slices: they would be lists of Tokens
        """Tokens of batch 1, by number or id."""
        table, row = self._find(self._number(key))
        return from_row(table, row, self.columns)

    def __iter__(self) -> Iterator[Tokens]:
        return (self[number] for number in range(len(self)))

    def id(self, number: int) -> str:
        """The id of a row."""
        table, row = self._find(self._number(number))
        return str(table.column("id")[row].as_py())

    @property
    def ids(self) -> list[str]:
        """All ids, in order."""
        return [name for index in range(len(self._files)) for name in self._table(index).column("id").to_pylist()]

    @property
    def vocab(self) -> int:
        """How many ids `Tokens.flat` uses with stacked slots."""
        return sum(size for column in self.columns for size in column.vocab)

    def _number(self, key: int | str) -> int:
        if isinstance(key, str):
            if self._numbers is None:
                self._numbers = {name: number for number, name in enumerate(self.ids)}
            if key not in self._numbers:
                raise KeyError(f"{self.folder} has no sample {key!r}")
            return self._numbers[key]
        if not -len(self) <= key < len(self):
            raise IndexError(f"sample {key} of {len(self)}")
        return key % len(self)

    def _find(self, number: int) -> tuple[pa.Table, int]:
        low, high = 0, len(self._files)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self._starts[middle] <= number else (low, middle)
        while self._starts[low + 1] <= number:  # shards without samples
            low += 1
        return self._table(low), number - self._starts[low]

    def _read(self, index: int) -> pa.Table:
        path, entry = self.folder / SHARDS / self._files[index], self.header["shards"][index]
        # Page checksums do not cover page headers: a flipped bit there can change codes unseen. The hash covers all.
        if path.name not in self._sound and path.is_file() and file_hash(path) != entry["sha256"]:
            raise StoreError(f"shard {path.name} is not the file that was written: it was damaged or replaced")
        table = read_shard(path)
        self._sound.add(path.name)
        expected = self._starts[index + 1] - self._starts[index]
        if table.num_rows != expected:
            raise StoreError(f"shard {self._files[index]} has {table.num_rows} samples, the header says {expected}")
        missing = [column.name for column in self.columns if column.name not in table.column_names]
        if expected and missing:
            raise StoreError(f"shard {self._files[index]} lacks the columns {missing}")
        return table

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder}  # worker processes open their own

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["folder"])  # type: ignore[misc]


class TokenDataset(Dataset[Tokens]):
    """A torch Dataset over a store, for training generators.

        loader = DataLoader(TokenDataset("STORE"), batch_size=8, shuffle=True, collate_fn=Tokens.cat)
        for tokens in loader:
            generator(tokens).loss.backward()          # or tokens.flat() for any other language model

    Args:
        store: a TokenStore or its folder.
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
