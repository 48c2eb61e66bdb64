# SPDX-License-Identifier: Apache-2.0
"""Windows: the rows dealt to some steps, packed together; any step without the others.

A window has a fixed number of bins, so step N always lies in window N // window_steps.
Its own rows go in first, which depends on nothing else. A row that finds no room goes
on to later windows, into what their own rows leave free, and there the youngest go
first: so where it ends depends only on the windows that it passes, and a window on the
`MAX_DELAY` before it. A row that finds no room in all of these is left out and
counted, or ends the run, as `data.packing.no_room` says. Bins are dealt to the window's
steps, in a shuffled order.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from ring_jax.config import TOKEN_CLASSES, ConfigError
from ring_jax.data import packing
from ring_jax.data.ledger import Ledger
from ring_jax.data.mixture_course import WindowRows
from ring_jax.data.walk import Place, shuffled

MAX_DELAY = 4
"""Windows that a row may be late."""
NUM_CACHED = 2 * MAX_DELAY


@dataclasses.dataclass(frozen=True, slots=True)
class BinRows:
    """The rows of one packed row, in order."""

    sources_C: np.ndarray
    """i64[C], number of each row's source in the run."""
    places_C: np.ndarray
    """i64[C], place in the source's length index."""
    rows_C: np.ndarray
    """i64[C], number of the row in its source."""


@dataclasses.dataclass(frozen=True, slots=True)
class _Packed:
    rows: WindowRows
    bins_C: np.ndarray
    """i64[C], -1 where a row found no room."""


@dataclasses.dataclass(frozen=True, slots=True)
class _Whole:
    """A window with the rows of earlier ones in it."""

    packed: _Packed
    waiting: list[WindowRows]
    """Rows for later windows, of each window that they come from."""
    left_out: WindowRows


@dataclasses.dataclass(frozen=True, slots=True)
class Share:
    """What some steps hold of one source."""

    rows: int
    tokens: int
    trained: int
    by_class: dict[str, int]
    """Predicted tokens of each class."""


class Windows:
    """Steps of a ledger as lists of rows."""

    def __init__(self, ledger: Ledger):
        """Takes a ledger; nothing is packed yet."""
        self.ledger = ledger
        self._make_caches()

    def _make_caches(self) -> None:
        self._own = functools.lru_cache(NUM_CACHED)(self._pack_own)
        self._whole = functools.lru_cache(2)(self._pack_whole)

    def __getstate__(self) -> dict[str, Any]:
        return {"ledger": self.ledger}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.ledger = state["ledger"]
        self._make_caches()

    def bins(self, step: int) -> list[BinRows]:
        """Lists the packed rows of a step of the stage.

        Raises:
          ConfigError: a row has found no room for `MAX_DELAY` windows, and such rows
            are refused.
        """
        geometry = self.ledger.geometry
        window, offset = divmod(step, geometry.window_steps)
        packed = self._whole(window).packed
        seed = _seed(geometry.seed)
        # Neighbouring bins hold rows that are alike (as long as each other, or as new);
        # dealt out like cards, they give each step its part of every kind.
        first = shuffled(geometry.window_steps, key=(seed, window))[offset]
        lines = shuffled(geometry.batch_size, key=(seed, window, offset))
        chosen = first + geometry.window_steps * lines
        return [self._bin(packed, int(bin_)) for bin_ in chosen]

    def left_out(self, window: int) -> WindowRows:
        """Lists the rows for which this window was the last that could hold them."""
        return self._whole(window).left_out

    def composition(self, step: int) -> dict[str, Share]:
        """Counts what a step holds of each source, without reading a row."""
        return self._counted(self.bins(step))

    def totals(self, step: int) -> dict[str, Place]:
        """Counts what all steps of the stage before this one fed, by source.

        Rows that were left out (`left_out`) are in these sums: which they were is
        known window by window only.
        """
        window, offset = divmod(step, self.ledger.geometry.window_steps)
        totals = self.ledger.places(window)
        late = self._whole(window - 1).waiting if window else []
        fed = [
            self._counted(self.bins(window * self.ledger.geometry.window_steps + i))
            for i in range(offset)
        ]
        names = list(self.ledger.indexes)
        for waiting in late:
            for source, place, length in zip(
                *(getattr(waiting, name) for name in WindowRows.__slots__), strict=True
            ):
                trained = self._trained(names[source], np.asarray([place]))
                totals[names[source]] = _plus(
                    totals[names[source]], -1, -trained, -int(length)
                )
        for shares in fed:
            for name, share in shares.items():
                totals[name] = _plus(
                    totals[name], share.rows, share.trained, share.tokens
                )
        return totals

    def _counted(self, bins: Sequence[BinRows]) -> dict[str, Share]:
        sources_C = np.concatenate([bin_.sources_C for bin_ in bins])
        places_C = np.concatenate([bin_.places_C for bin_ in bins])
        shares = {}
        for number, name in enumerate(self.ledger.indexes):
            here_C = places_C[sources_C == number]
            counts_U = self.ledger.indexes[name].counts_of(here_C).sum(axis=0)
            shares[name] = Share(
                rows=len(here_C),
                tokens=int(counts_U.sum()) + len(here_C),
                trained=self._trained(name, here_C),
                by_class=dict(zip(TOKEN_CLASSES[1:], counts_U.tolist(), strict=True)),
            )
        return shares

    def _trained(self, name: str, places_C: np.ndarray) -> int:
        counts_CU = self.ledger.indexes[name].counts_of(places_C)
        return int(counts_CU[:, self.ledger.geometry.trained_classes].sum())

    def _bin(self, packed: _Packed, bin_: int) -> BinRows:
        (chosen,) = np.nonzero(packed.bins_C == bin_)
        sources_C = packed.rows.sources_C[chosen]
        places_C = packed.rows.places_C[chosen]
        rows_C = np.zeros_like(places_C)
        for number, index in enumerate(self.ledger.indexes.values()):
            is_here = sources_C == number
            if is_here.any():
                rows_C[is_here] = index.rows_C[places_C[is_here]]
        return BinRows(sources_C, places_C, rows_C)

    def _pack_own(self, window: int) -> _Packed:
        geometry, rows = self.ledger.geometry, self.ledger.rows(window)
        sizes = {"num_bins": geometry.num_bins, "seq_len": geometry.seq_len}
        bins_C = packing.assign(rows.lengths_C, **sizes, algorithm=geometry.algorithm)
        if geometry.algorithm == "first_fit" and (bins_C < 0).any():
            # Long rows that come last are hard to place later on, too.
            bins_C = packing.assign(rows.lengths_C, **sizes, algorithm="best_fit")
        return _Packed(rows, bins_C)

    def _pack_whole(self, window: int) -> _Whole:
        """Packs a window with the rows of earlier ones."""
        waiting: list[tuple[int, WindowRows]] = []
        packed = None
        for number in range(max(0, window - MAX_DELAY), window + 1):
            packed, waiting = self._with_late(number, waiting)
        assert packed is not None
        left_out = _chosen(packed.rows, np.zeros(len(packed.bins_C), bool))
        if waiting and waiting[-1][0] <= window - MAX_DELAY:
            left_out = waiting.pop()[1]
            self._check_room(window)
        return _Whole(packed, [rows for _, rows in waiting], left_out)

    def _check_room(self, window: int) -> None:
        if self.ledger.geometry.no_room == "refuse":
            fill = self.ledger.table[self.ledger.entry_number(window)].fill
            raise ConfigError(
                f"data.packing: rows of window {window - MAX_DELAY} find no room in "
                f"{MAX_DELAY} windows; set data.packing.fill below {fill}, or "
                'data.packing.no_room="drop" to leave such rows out.'
            )

    def _with_late(
        self, number: int, waiting: list[tuple[int, WindowRows]]
    ) -> tuple[_Packed, list[tuple[int, WindowRows]]]:
        geometry, own = self.ledger.geometry, self._own(number)
        is_in = own.bins_C >= 0
        rows, bins_C, left = _chosen(own.rows, is_in), own.bins_C[is_in], []
        for origin, late in waiting:
            used = np.bincount(
                bins_C, weights=rows.lengths_C, minlength=geometry.num_bins
            )
            free = (geometry.seq_len - used.astype(np.int64)).tolist()
            late_bins_C = packing.place_best(late.lengths_C, free)
            is_placed = late_bins_C >= 0
            rows = _joined(rows, _chosen(late, is_placed))
            bins_C = np.concatenate([bins_C, late_bins_C[is_placed]])
            if not is_placed.all():
                left.append((origin, _chosen(late, ~is_placed)))
        if not is_in.all():
            left.insert(0, (number, _chosen(own.rows, ~is_in)))
        return _Packed(rows, bins_C), left


def _seed(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest())


def _chosen(rows: WindowRows, is_chosen: np.ndarray) -> WindowRows:
    return WindowRows(*(getattr(rows, n)[is_chosen] for n in WindowRows.__slots__))


def _joined(left: WindowRows, right: WindowRows) -> WindowRows:
    return WindowRows(
        *(
            np.concatenate([getattr(left, name), getattr(right, name)])
            for name in WindowRows.__slots__
        )
    )


def _plus(place: Place, rows: int, trained: int, packed: int) -> Place:
    return Place(place.rows + rows, place.trained + trained, place.packed + packed)
