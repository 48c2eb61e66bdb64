# SPDX-License-Identifier: Apache-2.0
"""The walk through a source: an endless, shuffled order of rows, entered anywhere.

A lane is a stretch of a length index (all of it, or some bands of difficulty) that is
walked epoch after epoch. An epoch shuffles the blocks, and the rows inside each block.
With sums over blocks, "where are we after W trained tokens?" costs one search over the
blocks and one inside a block, however far away that is.

Orders come from a hash of numbers, not from a library's generator: they are the same on
every machine and in every version of numpy.
"""

import dataclasses
import functools
from typing import Any

import numpy as np

from ring_jax.data.length_index import LengthIndex

NUM_CACHED_BLOCKS = 64
NUM_CACHED_EPOCHS = 4


@dataclasses.dataclass(frozen=True, slots=True, order=True)
class Place:
    """How far a walk has come."""

    rows: int = 0
    trained: int = 0
    """Trained tokens of these rows."""
    packed: int = 0
    """All tokens of these rows, trained or not: what they take in a packed row."""


@dataclasses.dataclass(frozen=True, slots=True)
class Rows:
    """A stretch of a walk."""

    places_C: np.ndarray
    """i64[C], places in the length index."""
    lengths_C: np.ndarray
    """i64[C], tokens of each row."""
    enters_C: np.ndarray
    """i64[C], the trained token of the walk at which each row comes."""


@dataclasses.dataclass(frozen=True, slots=True)
class _Epoch:
    """One order of the blocks; sums are of what stands before each block."""

    blocks_J: np.ndarray
    rows_J: np.ndarray
    trained_J: np.ndarray
    packed_J: np.ndarray


@dataclasses.dataclass(frozen=True, slots=True)
class _Block:
    """One order of the rows that count in a block; sums as in `_Epoch`."""

    places_C: np.ndarray
    lengths_C: np.ndarray
    enters_C: np.ndarray
    trained_C: np.ndarray
    packed_C: np.ndarray


class Lane:
    """Some bands of a source, walked for ever."""

    def __init__(
        self,
        index: LengthIndex,
        *,
        bands: tuple[int, int],
        is_trained_U: np.ndarray,
        seed: int,
        phase: float,
    ):
        """Prepares the walk; costs one pass over the sums of blocks.

        Args:
          index: of the source.
          bands: first band and the one after the last.
          is_trained_U: bool[U], which token classes are trained.
          seed: of the order of rows.
          phase: from 0 to 1; a row comes when this part of its trained tokens is due,
            so that rows of several lanes do not all come at one moment.
        """
        self._index = index
        self._first, self._last = (int(index.bands[band]) for band in bands)
        self._is_trained_U = is_trained_U.astype(np.int64)
        self._seed = seed
        self._phase = int(phase * 65536)
        chosen = slice(self._first, self._last)
        sums_JU = np.asarray(index.sums_JU[chosen], np.int64)
        self._rows_J = np.asarray(index.used_J[chosen], np.int64)
        self._trained_J = (sums_JU * self._is_trained_U).sum(axis=1)
        # A row has one token more than are predicted of it.
        self._packed_J = sums_JU.sum(axis=1) + self._rows_J
        starts_J = np.asarray(index.starts_J[self._first : self._last + 1])
        self._has_single_rows = bool((np.diff(starts_J) <= 1).all())
        self.epoch = Place(
            int(self._rows_J.sum()),
            int(self._trained_J.sum()),
            int(self._packed_J.sum()),
        )
        """What one epoch holds."""
        self._make_caches()

    def _make_caches(self) -> None:
        self._epoch = functools.lru_cache(NUM_CACHED_EPOCHS)(self._shuffled_blocks)
        self._block = functools.lru_cache(NUM_CACHED_BLOCKS)(self._shuffled_rows)

    def __getstate__(self) -> dict[str, Any]:
        # A worker process fills caches of its own.
        return {k: v for k, v in vars(self).items() if k not in ("_epoch", "_block")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._make_caches()

    def place(self, trained: int) -> Place:
        """Finds how many rows have come when this many trained tokens are due."""
        number, rest = divmod(trained, self.epoch.trained)
        epoch = self._epoch(number)
        rank = int(np.searchsorted(epoch.trained_J, rest, side="right")) - 1
        block = self._block(number, rank)
        rest -= int(epoch.trained_J[rank])
        num_rows = int(np.searchsorted(block.enters_C, rest, side="left"))
        return Place(
            number * self.epoch.rows + int(epoch.rows_J[rank]) + num_rows,
            number * self.epoch.trained
            + int(epoch.trained_J[rank] + block.trained_C[num_rows]),
            number * self.epoch.packed
            + int(epoch.packed_J[rank] + block.packed_C[num_rows]),
        )

    def rows(self, first: int, last: int) -> Rows:
        """Lists the rows of the walk from `first` to before `last`."""
        parts = []
        while first < last:
            number, offset = divmod(first, self.epoch.rows)
            count = min(last - first, self.epoch.rows - offset)
            parts.append(self._rows_of_epoch(number, offset, count))
            first += count
        return _joined(parts)

    def _rows_of_epoch(self, number: int, offset: int, count: int) -> Rows:
        if self._has_single_rows:
            return self._single_rows(number, offset, count)
        epoch, parts = self._epoch(number), []
        start = number * self.epoch.trained
        rank = int(np.searchsorted(epoch.rows_J, offset, side="right")) - 1
        while count:
            block = self._block(number, rank)
            here = slice(offset - int(epoch.rows_J[rank]), None)
            taken = slice(here.start, here.start + count)
            part = Rows(
                block.places_C[taken],
                block.lengths_C[taken],
                block.enters_C[taken] + (start + int(epoch.trained_J[rank])),
            )
            parts.append(part)
            offset += len(part.places_C)
            count -= len(part.places_C)
            rank += 1
        return _joined(parts)

    def _single_rows(self, number: int, offset: int, count: int) -> Rows:
        # Blocks of one row, or of one that does not count: an epoch is a list of rows.
        epoch = self._epoch(number)
        first = int(np.searchsorted(epoch.rows_J, offset, side="right")) - 1
        last = int(np.searchsorted(epoch.rows_J, offset + count, side="left"))
        blocks_J = epoch.blocks_J[first:last] - self._first
        is_used_J = self._rows_J[blocks_J] > 0
        trained_J = self._trained_J[blocks_J]
        enters_J = epoch.trained_J[first:last] + (trained_J * self._phase >> 16)
        return Rows(
            np.asarray(self._index.starts_J)[blocks_J + self._first][is_used_J],
            self._packed_J[blocks_J][is_used_J],
            (enters_J + number * self.epoch.trained)[is_used_J],
        )

    def _shuffled_blocks(self, number: int) -> _Epoch:
        order_J = shuffled(len(self._rows_J), key=(self._seed, number))
        return _Epoch(
            blocks_J=order_J + self._first,
            rows_J=_before(self._rows_J[order_J])[:-1],
            trained_J=_before(self._trained_J[order_J])[:-1],
            packed_J=_before(self._packed_J[order_J])[:-1],
        )

    def _shuffled_rows(self, number: int, rank: int) -> _Block:
        block = int(self._epoch(number).blocks_J[rank])
        first, last = (int(self._index.starts_J[block + i]) for i in (0, 1))
        order_C = shuffled(last - first, key=(self._seed, number, block))
        counts_CU = self._index.counts_of(np.arange(first, last))[order_C]
        is_used_C = counts_CU.any(axis=1)
        counts_CU, order_C = counts_CU[is_used_C], order_C[is_used_C]
        trained_C = (counts_CU * self._is_trained_U).sum(axis=1)
        lengths_C = counts_CU.sum(axis=1) + 1
        before_C = _before(trained_C)
        return _Block(
            places_C=order_C + first,
            lengths_C=lengths_C,
            enters_C=before_C[:-1] + (trained_C * self._phase >> 16),
            trained_C=before_C,
            packed_C=_before(lengths_C),
        )


def shuffled(num_items: int, *, key: tuple[int, ...]) -> np.ndarray:
    """Orders items by a hash of their numbers and a key: i64[num_items]."""
    state = 0
    for number in key:
        state = int(_mixed(np.asarray([state ^ (number & _MASK)], np.uint64))[0])
    hashes = _mixed(np.arange(num_items, dtype=np.uint64) ^ np.uint64(state))
    return np.argsort(hashes, kind="stable")


_MASK = (1 << 64) - 1


def _mixed(x: np.ndarray) -> np.ndarray:
    # splitmix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number generators",
    # OOPSLA 2014); arrays of unsigned integers wrap round without a warning.
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _before(values: np.ndarray) -> np.ndarray:
    """Sums what stands before each value, and all of them at the end."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(values, dtype=np.int64)])


def _joined(parts: list[Rows]) -> Rows:
    if len(parts) == 1:
        return parts[0]
    empty = np.zeros(0, np.int64)
    return Rows(
        *(
            np.concatenate([empty, *(getattr(part, name) for part in parts)])
            for name in Rows.__slots__
        )
    )
