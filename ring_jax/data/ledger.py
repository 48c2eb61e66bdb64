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
from collections.abc import Mapping, Sequence

import numpy as np

from ring_jax.config import ConfigError, CurriculumConfig
from ring_jax.data.length_index import NUM_BANDS, LengthIndex
from ring_jax.data.mixture_course import Course, WindowRows
from ring_jax.data.mixture_table import Change, Entry, Geometry, LaneStart, normalized
from ring_jax.data.walk import Place
from ring_jax.data.window_fill import measured_fill


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
        self._courses = [Course(entry, self.indexes, geometry) for entry in self.table]

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

    def _course(self, window: int) -> tuple["Course", int]:
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
        before=normalized(before),
        lanes=_lane_starts(ledger, change, before, start_window=start_window),
        over_tokens=0,
        paced_tokens=0,
        fill=ledger.geometry.fill or 1.0,
    )
    entry = _with_tokens(entry, ledger)
    if ledger.geometry.fill is not None:
        return entry
    fill = measured_fill(entry, ledger.indexes, ledger.geometry)
    # Fewer tokens a step than were thought, so that gradual changes end in time.
    return _with_tokens(dataclasses.replace(entry, fill=fill), ledger)


def _with_tokens(entry: Entry, ledger: Ledger) -> Entry:
    """Turns the steps of gradual changes into trained tokens, by the indexes' means."""
    course = Course(entry, ledger.indexes, ledger.geometry)
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
