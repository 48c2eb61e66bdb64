# SPDX-License-Identifier: Apache-2.0
"""An entry of a mixture's table at work: from times to rows, from windows to times."""

import dataclasses
import functools
import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ring_jax.config import ConfigError
from ring_jax.data.length_index import NUM_BANDS, LengthIndex
from ring_jax.data.mixture_table import Entry, Geometry, LaneStart, normalized
from ring_jax.data.walk import Lane, Place

NUM_KNOTS = 33
"""Points of a gradual change; shares move along straight lines between them."""


@dataclasses.dataclass(frozen=True, slots=True)
class WindowRows:
    """The rows that are dealt to a window, as they come."""

    sources_C: np.ndarray
    """i64[C], position of the source among the ledger's indexes."""
    places_C: np.ndarray
    """i64[C], places in the source's length index."""
    lengths_C: np.ndarray
    """i64[C], tokens."""


class Course:
    """An entry at work: from times to rows, and from windows to times."""

    def __init__(
        self,
        entry: Entry,
        indexes: Mapping[str, LengthIndex],
        geometry: Geometry,
    ):
        self.entry = entry
        self._sources = list(indexes)
        self._budget = geometry.num_bins * geometry.seq_len * entry.fill
        self._step_tokens = geometry.batch_size * geometry.seq_len * entry.fill
        self._lanes = [
            _open_lane(lane, indexes[lane.source], geometry) for lane in entry.lanes
        ]
        self._starts = [lane.place for lane in entry.lanes]
        self._times, self._shares = _knots(entry, self._lanes)
        self._due = _integrals(self._times, self._shares)
        self._cached = functools.lru_cache(64)(self._search)

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in vars(self).items() if k != "_cached"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._cached = functools.lru_cache(64)(self._search)

    def boundary(self, window: int) -> int:
        """Finds the time at which a window of this entry begins."""
        return self._cached(window) if window else 0

    def due(self, time: int) -> np.ndarray:
        """Computes the trained tokens that each lane is due since the entry began."""
        last = int(np.searchsorted(self._times, time, side="right")) - 1
        since = float(time - self._times[last])
        due = self._due[last] + self._shares[last] * since
        if last + 1 < len(self._times):
            span = float(self._times[last + 1] - self._times[last])
            slope = (self._shares[last + 1] - self._shares[last]) / span
            due = due + slope * (since * since * 0.5)
        return np.floor(due).astype(np.int64)

    def places(self, time: int) -> list[Place]:
        """Tells where each walk stands at a time."""
        return [
            # A walk that goes on with new neighbours never steps back.
            max(start, lane.place(start.trained + int(due))) if due > 0 else start
            for lane, start, due in zip(
                self._lanes, self._starts, self.due(time), strict=True
            )
        ]

    def packed(self, time: int) -> int:
        """Counts the tokens of all rows that came before a time."""
        return sum(
            now.packed - start.packed
            for now, start in zip(self.places(time), self._starts, strict=True)
        )

    def between(self, start: int, end: int) -> WindowRows:
        """Lists the rows that come between two times, in order."""
        parts, moments = [], []
        due_start, due_end = self.due(start), self.due(end)
        for number, (lane, first, last) in enumerate(
            zip(self._lanes, self.places(start), self.places(end), strict=True)
        ):
            rows = lane.rows(first.rows, last.rows)
            source = self._sources.index(self.entry.lanes[number].source)
            parts.append((np.full(len(rows.places_C), source), rows))
            since = rows.enters_C - self._starts[number].trained - due_start[number]
            moments.append(since / max(1, due_end[number] - due_start[number]))
        order_C = np.argsort(np.concatenate(moments), kind="stable")
        return WindowRows(
            np.concatenate([sources_C for sources_C, _ in parts])[order_C],
            np.concatenate([rows.places_C for _, rows in parts])[order_C],
            np.concatenate([rows.lengths_C for _, rows in parts])[order_C],
        )

    def shares(self, time: int) -> dict[str, float]:
        """Sums the shares of lanes by source at a time."""
        shares = dict.fromkeys((lane.source for lane in self.entry.lanes), 0.0)
        for number, lane in enumerate(self.entry.lanes):
            at = np.interp(time, self._times, self._shares[:, number])
            shares[lane.source] += float(at)
        return {name: share for name, share in shares.items() if share > 0}

    def expected_tokens(self, num_steps: int) -> int:
        """Computes the trained tokens of some steps, halfway from shares to shares."""
        after = normalized(self.entry.change.mixture)
        packed_per_trained = 0.0
        for source in {lane.source: None for lane in self.entry.lanes}:
            epochs = [
                lane.epoch
                for start, lane in zip(self.entry.lanes, self._lanes, strict=True)
                if start.source == source
            ]
            share = (self.entry.before.get(source, 0.0) + after.get(source, 0.0)) / 2
            if self.entry.change.schedule == "step":
                share = after[source]
            packed = sum(epoch.packed for epoch in epochs)
            packed_per_trained += share * packed / sum(e.trained for e in epochs)
        return round(num_steps * self._step_tokens / packed_per_trained)

    def time_after(self, packed: float) -> int:
        """Finds the last time by which no more than so many tokens have come."""
        guess = self._guess(packed)
        width = max(1, int(self._budget / 64))
        low, high = max(0, guess - width), guess + width
        while low and self.packed(low) > packed:
            low, width = max(0, low - 2 * width), 2 * width
        while self.packed(high) <= packed:
            high, width = high + 2 * width, 2 * width
        while high - low > 1:
            middle = (low + high) // 2
            if self.packed(middle) <= packed:
                low = middle
            else:
                high = middle
        return low

    def _search(self, window: int) -> int:
        return self.time_after(window * self._budget)

    def _guess(self, packed: float) -> int:
        """Finds the time that lanes of even lengths would need."""
        high = 1
        per_trained = self._ratios()
        while float((self.due(high) * per_trained).sum()) < packed:
            high *= 2
        low = high // 2
        while high - low > 1:
            middle = (low + high) // 2
            if float((self.due(middle) * per_trained).sum()) < packed:
                low = middle
            else:
                high = middle
        return high

    def _ratios(self) -> np.ndarray:
        return np.asarray([ln.epoch.packed / ln.epoch.trained for ln in self._lanes])


def _open_lane(lane: LaneStart, index: LengthIndex, geometry: Geometry) -> Lane:
    name = f"{geometry.seed}/{lane.source}/{lane.began}/{lane.first_band}"
    digest = hashlib.blake2b(name.encode(), digest_size=8).digest()
    opened = Lane(
        index,
        bands=(lane.first_band, lane.last_band),
        is_trained_U=np.asarray(geometry.trained_classes),
        seed=int.from_bytes(digest),
        phase=int.from_bytes(digest[:2]) / 65536,
    )
    if not opened.epoch.trained:
        raise ConfigError(
            f"mixture: source {lane.source} has no trained token in rows of at most "
            f"{geometry.seq_len} tokens (bands {lane.first_band} to {lane.last_band} "
            f"of {NUM_BANDS}); leave it out or raise train.seq_len."
        )
    return opened


def _knots(entry: Entry, lanes: Sequence[Lane]) -> tuple[np.ndarray, np.ndarray]:
    """Computes times i64[K] and the shares of lanes at them f64[K, lanes]."""
    spans = [span for span in (entry.over_tokens, entry.paced_tokens) if span]
    times = {
        round(span * point / (NUM_KNOTS - 1))
        for span in spans
        for point in range(NUM_KNOTS)
    }
    times = sorted(times | {0})
    shares = [_shares_at(time, entry, lanes) for time in times]
    return np.asarray(times, np.int64), np.asarray(shares)


def _shares_at(time: int, entry: Entry, lanes: Sequence[Lane]) -> list[float]:
    weights = _source_shares(time, entry)
    opened = _opened(time, entry)
    parts = []
    for source in dict.fromkeys(lane.source for lane in entry.lanes):
        own = [i for i, lane in enumerate(entry.lanes) if lane.source == source]
        # Open bands share by their trained tokens, as if they were one heap.
        open_tokens = [
            min(max(opened * len(own) - rank, 0.0), 1.0) * lanes[i].epoch.trained
            for rank, i in enumerate(own)
        ]
        total = sum(open_tokens)
        parts += [weights.get(source, 0.0) * part / total for part in open_tokens]
    return [round(part, 12) for part in parts]


def _source_shares(time: int, entry: Entry) -> dict[str, float]:
    after = normalized(entry.change.mixture)
    if not entry.over_tokens:
        return after
    moved = min(1.0, time / entry.over_tokens)
    if entry.change.schedule == "cosine":
        moved = (1 - math.cos(math.pi * moved)) / 2
    return {
        name: entry.before.get(name, 0.0) * (1 - moved) + after.get(name, 0.0) * moved
        for name in {**entry.before, **after}
    }


def _opened(time: int, entry: Entry) -> float:
    """Computes the open part of the ranks (arXiv:1903.09848, equation 7)."""
    start = entry.change.curriculum.start
    if not entry.paced_tokens:
        return start
    passed = min(1.0, time / entry.paced_tokens)
    return math.sqrt(passed * (1 - start**2) + start**2)


def _integrals(times: np.ndarray, shares: np.ndarray) -> np.ndarray:
    spans = np.diff(times).astype(np.float64)[:, None]
    areas = (shares[:-1] + shares[1:]) * 0.5 * spans
    return np.concatenate([np.zeros_like(shares[:1]), np.cumsum(areas, axis=0)])
