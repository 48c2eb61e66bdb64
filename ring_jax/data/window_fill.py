# SPDX-License-Identifier: Apache-2.0
"""How full the windows of an entry may be planned."""

import dataclasses
import functools
import json
from collections.abc import Mapping

from ring_jax.data import packing
from ring_jax.data.length_index import LengthIndex
from ring_jax.data.mixture_course import Course
from ring_jax.data.mixture_table import Entry, Geometry

NUM_FILL_SAMPLES = 24
FILL_MARGIN = 0.002
"""Left free beyond what sampled windows could not fill."""
MIN_FILL = 0.01


def measured_fill(
    entry: Entry, indexes: Mapping[str, LengthIndex], geometry: Geometry
) -> float:
    """Finds how full windows may be planned: sampled ones hold all their rows.

    Half a bin is left free beyond that, so that the row that one window in many cannot
    hold finds room in the next.
    """
    named = {
        "entry": entry.to_json(),
        "geometry": dataclasses.asdict(geometry),
        "indexes": {name: index.digest for name, index in indexes.items()},
    }
    course = Course(entry, indexes, geometry)
    return _measure(_Measured(json.dumps(named), course, geometry))


@dataclasses.dataclass(frozen=True, slots=True)
class _Measured:
    """What a fill follows from; equal where the answer is."""

    key: str
    course: Course = dataclasses.field(compare=False)
    geometry: Geometry = dataclasses.field(compare=False)


# A start asks several times, and an answer can take seconds where rows are short.
@functools.lru_cache(16)
def _measure(measured: _Measured) -> float:
    course, geometry = measured.course, measured.geometry
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
