# SPDX-License-Identifier: Apache-2.0
"""The mixture ledger: which rows come when, as a function of a table and a position.

Time in a stage is counted in trained tokens. At time u, the walk of a lane (a source,
or a band of difficulty of it) is due

    W(u) = integral of the lane's share from 0 to u

trained tokens, and a row of it comes once its own trained tokens are due. So shares are
kept in trained tokens, whatever the lengths, to within a row of each source; and which
rows have come by any time is one search in the sums of the length index.

Rows are dealt to windows. Window n ends at the last time at which all rows that came
fit into n + 1 windows, each of `window_steps` batches that are `fill` full. That is a
search over time, so any window is found without those before it.

The table has an entry per change of the mixture and only ever grows. An entry holds
what was asked (shares, schedule, curriculum, reason) and what follows from the table
before it (where walks stand, times, fill), so that positions behind it need no other.
"""

import dataclasses
import functools
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from ring_jax.config import ConfigError, CurriculumConfig, from_config_dict
from ring_jax.data import packing
from ring_jax.data.length_index import NUM_BANDS, LengthIndex
from ring_jax.data.walk import Lane, Place

NUM_KNOTS = 33
"""Points of a gradual change; shares move along straight lines between them."""
NUM_FILL_SAMPLES = 24
FILL_MARGIN = 0.002
"""Left free beyond what sampled windows could not fill."""
MIN_FILL = 0.01


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """What a person, or a guard, asks of the mixture."""

    start_step: int
    """Step of the stage at which it begins."""
    mixture: Mapping[str, float]
    """Source -> share of trained tokens; shares need not sum to 1."""
    schedule: Literal["step", "linear", "cosine"] = "step"
    over_steps: int = 0
    curriculum: CurriculumConfig = dataclasses.field(default_factory=CurriculumConfig)
    reason: str = ""
    origin: Literal["config", "run"] = "config"
    """Whether the config says it, or it was decided while the run went on."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class LaneStart:
    """Where the walk of a lane stands when an entry begins."""

    source: str
    first_band: int
    last_band: int
    began: int
    """Number of the entry with which the walk began, and in whose order it goes on."""
    rows: int
    trained: int
    packed: int

    @property
    def place(self) -> Place:
        """Returns where the walk stands."""
        return Place(self.rows, self.trained, self.packed)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """A row of the table."""

    change: Change
    start_window: int
    before: Mapping[str, float]
    """Share of each source at the moment of the change."""
    lanes: tuple[LaneStart, ...]
    over_tokens: int
    """Trained tokens that `over_steps` are expected to have."""
    paced_tokens: int
    """The same for the curriculum's steps."""
    fill: float

    def to_json(self) -> dict[str, Any]:
        """Writes the entry as plain values."""
        lanes = [dataclasses.asdict(lane) for lane in self.lanes]
        return {**dataclasses.asdict(self), "lanes": lanes}


def entry_from_json(tree: Mapping[str, Any]) -> Entry:
    """Reads what `Entry.to_json` wrote."""
    lanes = tuple(from_config_dict(LaneStart, lane, "lane") for lane in tree["lanes"])
    change = from_config_dict(Change, tree["change"], "change")
    return Entry(**{**tree, "change": change, "lanes": lanes})


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Geometry:
    """What is packed: the shape of windows, and which tokens count as trained."""

    batch_size: int
    seq_len: int
    window_steps: int
    algorithm: packing.Algorithm
    fill: float | None
    trained_classes: tuple[bool, ...]
    seed: str
    """Of the orders of rows; names run and stage."""
    no_room: Literal["drop", "refuse"] = "drop"
    """What becomes of a row that finds no room for too long."""

    @property
    def num_bins(self) -> int:
        """Packed rows of a window."""
        return self.batch_size * self.window_steps


@dataclasses.dataclass(frozen=True, slots=True)
class WindowRows:
    """The rows that are dealt to a window, as they come."""

    sources_C: np.ndarray
    """i64[C], position of the source among the ledger's indexes."""
    places_C: np.ndarray
    """i64[C], places in the source's length index."""
    lengths_C: np.ndarray
    """i64[C], tokens."""


class Ledger:
    """A table of changes over the length indexes of its sources. It never changes."""

    def __init__(
        self,
        indexes: Mapping[str, LengthIndex],
        geometry: Geometry,
        table: Sequence[Entry],
    ):
        """Opens a table; `extended` makes one.

        Args:
          indexes: of all sources of the run, in the order of the config.
          geometry: of the stage.
          table: entries in the order of their windows, the first at window 0.
        """
        self.indexes = dict(indexes)
        self.geometry = geometry
        self.table = tuple(table)
        self._courses = [_Course(entry, self.indexes, geometry) for entry in self.table]

    def extended(self, change: Change) -> "Ledger":
        """Returns the ledger with a change at its end.

        It begins with the first window that starts at or after `change.start_step`.

        Raises:
          ConfigError: it would begin with or before the last entry; a source is unknown
            or has no row that is trained.
        """
        window = -(-change.start_step // self.geometry.window_steps)
        if bool(self.table) == (window == 0) or (
            self.table and window <= self.table[-1].start_window
        ):
            last = self.table[-1].start_window if self.table else -1
            raise ConfigError(
                f"mixture: a change at step {change.start_step} begins with window "
                f"{window} of {self.geometry.window_steps} steps, but the table has "
                f"reached window {last}; choose a later step."
            )
        entry = _make_entry(self, change, start_window=window)
        return Ledger(self.indexes, self.geometry, [*self.table, entry])

    def entry_number(self, window: int) -> int:
        """Finds the entry that a window belongs to."""
        starts = [entry.start_window for entry in self.table]
        return int(np.searchsorted(starts, window, side="right")) - 1

    def rows(self, window: int) -> WindowRows:
        """Lists the rows that are dealt to a window, in the order of their coming."""
        course, local = self._course(window)
        start, end = course.boundary(local), course.boundary(local + 1)
        return course.between(start, end)

    def places(self, window: int) -> dict[str, Place]:
        """Sums what all windows before this one were dealt, by source."""
        totals = dict.fromkeys(self.indexes, Place())
        for number, course in enumerate(self._courses):
            if course.entry.start_window >= window:
                break
            ends = [e.start_window for e in self.table[number + 1 :]][:1] or [window]
            local = min(window, *ends) - course.entry.start_window
            for lane, now in zip(
                course.entry.lanes, course.places(course.boundary(local)), strict=True
            ):
                totals[lane.source] = _sum(totals[lane.source], now, lane.place)
        return totals

    def lane_places(self, window: int) -> list[tuple[LaneStart, Place]]:
        """Tells where each walk stands when a window begins."""
        course, local = self._course(max(window - 1, 0))
        now = course.places(course.boundary(local + (window > 0)))
        return list(zip(course.entry.lanes, now, strict=True))

    def shares(self, window: int) -> dict[str, float]:
        """Computes the planned share of trained tokens of each source in a window."""
        course, local = self._course(window)
        return course.shares(course.boundary(local))

    def shares_behind(self, window: int) -> dict[str, float]:
        """Computes the shares that hold at the end of the window before this one."""
        course, local = self._course(window - 1)
        return course.shares(course.boundary(local + 1))

    def _course(self, window: int) -> tuple["_Course", int]:
        course = self._courses[self.entry_number(window)]
        return course, window - course.entry.start_window


def _sum(total: Place, now: Place, start: Place) -> Place:
    return Place(
        total.rows + now.rows - start.rows,
        total.trained + now.trained - start.trained,
        total.packed + now.packed - start.packed,
    )


def _make_entry(ledger: Ledger, change: Change, *, start_window: int) -> Entry:
    before = dict(change.mixture)
    if ledger.table:
        before = ledger.shares_behind(start_window)
    entry = Entry(
        change=change,
        start_window=start_window,
        before=_normalized(before),
        lanes=_lane_starts(ledger, change, before, start_window=start_window),
        over_tokens=0,
        paced_tokens=0,
        fill=ledger.geometry.fill or 1.0,
    )
    entry = _with_tokens(entry, ledger)
    if ledger.geometry.fill is not None:
        return entry
    fill = _measured_fill(_Measure.of(entry, ledger))
    # Fewer tokens a step than were thought, so that gradual changes end in time.
    return _with_tokens(dataclasses.replace(entry, fill=fill), ledger)


def _with_tokens(entry: Entry, ledger: Ledger) -> Entry:
    """Turns the steps of gradual changes into trained tokens, by the indexes' means."""
    course = _Course(entry, ledger.indexes, ledger.geometry)
    return dataclasses.replace(
        entry,
        over_tokens=course.expected_tokens(entry.change.over_steps),
        paced_tokens=course.expected_tokens(entry.change.curriculum.over_steps),
    )


def _lane_starts(
    ledger: Ledger, change: Change, before: Mapping[str, float], *, start_window: int
) -> tuple[LaneStart, ...]:
    """Lists the lanes of an entry; walks of the last one go on where they can."""
    if unknown := sorted(set(change.mixture) - set(ledger.indexes)):
        raise ConfigError(f"mixture: names {unknown}, which the run does not read.")
    standing = {}
    if ledger.table:
        for lane, place in ledger.lane_places(start_window):
            key = (lane.source, lane.first_band, lane.last_band)
            standing[key] = (lane.began, place)
    starts = []
    for source in dict.fromkeys([*before, *change.mixture]):
        if source not in change.mixture and change.schedule == "step":
            continue
        bands_of_source = _bands(
            ledger.indexes[source], change.curriculum, ledger.geometry
        )
        for bands in bands_of_source:
            began, place = standing.get((source, *bands), (len(ledger.table), Place()))
            starts.append(
                LaneStart(
                    source=source,
                    first_band=bands[0],
                    last_band=bands[1],
                    began=began,
                    **dict(zip(Place.__slots__, _values(place), strict=True)),
                )
            )
    return tuple(starts)


def _values(place: Place) -> tuple[int, ...]:
    return dataclasses.astuple(place)


def _bands(
    index: LengthIndex, curriculum: CurriculumConfig, geometry: Geometry
) -> list[tuple[int, int]]:
    """Lists the lanes of a source: all of it, or bands that have trained tokens."""
    is_graded = index.bands[1] < index.bands[-1]
    if not is_graded:
        return [(0, NUM_BANDS)]
    first = round(NUM_BANDS * curriculum.lowest)
    last = round(NUM_BANDS * curriculum.highest)
    if curriculum.start == 1:
        return [(first, last)]
    is_trained_U = np.asarray(geometry.trained_classes)
    bands = [(band, band + 1) for band in range(first, last)]
    return [
        (low, high)
        for low, high in bands
        if index.sums_JU[index.bands[low] : index.bands[high], is_trained_U].any()
    ] or [(first, last)]


def _normalized(shares: Mapping[str, float]) -> dict[str, float]:
    total = sum(shares.values())
    # Rounded, so that machines whose last bits differ agree.
    return {name: round(share / total, 9) for name, share in shares.items()}


class _Course:
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
        after = _normalized(self.entry.change.mixture)
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
    after = _normalized(entry.change.mixture)
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


@dataclasses.dataclass(frozen=True, slots=True)
class _Measure:
    """What a fill follows from; equal where the answer is."""

    key: str
    course: _Course = dataclasses.field(compare=False)
    geometry: Geometry = dataclasses.field(compare=False)

    @classmethod
    def of(cls, entry: Entry, ledger: Ledger) -> "_Measure":
        """Names an entry by its own values and by the hashes of its length indexes."""
        named = {
            "entry": entry.to_json(),
            "geometry": dataclasses.asdict(ledger.geometry),
            "indexes": {name: ix.digest for name, ix in ledger.indexes.items()},
        }
        course = _Course(entry, ledger.indexes, ledger.geometry)
        return cls(json.dumps(named), course, ledger.geometry)


@functools.lru_cache(16)
def _measured_fill(measure: _Measure) -> float:
    """Finds how full windows may be planned: sampled ones hold all their rows.

    Half a bin is left free beyond that, so that the row that one window in many cannot
    hold finds room in the next. A start asks several times, and an answer can take
    seconds where rows are short.
    """
    course, geometry = measure.course, measure.geometry
    capacity = geometry.num_bins * geometry.seq_len
    span = max(course.entry.over_tokens, course.entry.paced_tokens, 64 * capacity)
    last_window = course.packed(span) / capacity
    fill = 1.0
    for sample in range(NUM_FILL_SAMPLES):
        while fill > MIN_FILL:
            window = int(last_window * sample / NUM_FILL_SAMPLES)
            start, end = (
                course.time_after(fill * capacity * number)
                for number in (window, window + 1)
            )
            num_bins = packing.count_bins(
                course.between(start, end).lengths_C,
                seq_len=geometry.seq_len,
                algorithm=geometry.algorithm,
            )
            if num_bins <= geometry.num_bins:
                break
            # Half of what is too much, so that the fill ends not far below what fits.
            fill *= (1 + geometry.num_bins / num_bins) / 2
    return round(max(MIN_FILL, fill - max(FILL_MARGIN, 0.5 / geometry.num_bins)), 4)
