# SPDX-License-Identifier: Apache-2.0
"""A mixture keeps its shares, and each source is walked through row by row."""

import collections

import pytest

from ring_jax.config import DataConfig, RunConfig, SourceConfig, StageConfig
from ring_jax.data import mixture

WEIGHTS = {
    "one": {"a": 3.0},
    "even": {"a": 1.0, "b": 1.0},
    "thirds": {"a": 1 / 3, "b": 2 / 3},
    "uneven": {"a": 0.0667, "b": 0.3333, "c": 0.6},
    "tiny": {"a": 1e-9, "b": 1.0, "c": 2.0},
    "large": {"a": 700.0, "b": 55.0, "c": 245.0, "d": 0.5},
}


@pytest.mark.parametrize("weights", WEIGHTS.values(), ids=WEIGHTS)
def test_shares_are_kept_over_a_period(weights):
    slots = mixture.interleave(weights)
    total = sum(weights.values())
    for count, weight in zip(slots.rows, weights.values(), strict=True):
        # Rounding to 1 of 1000 rows, and no source is rounded away.
        assert abs(count / sum(slots.rows) - weight / total) <= 1 / mixture.PERIOD
        assert count >= 1


@pytest.mark.parametrize("weights", WEIGHTS.values(), ids=WEIGHTS)
def test_shares_are_kept_over_any_stretch(weights):
    slots = mixture.interleave(weights)
    length = len(slots.order)
    stretch = max(1, length // 10)
    for start in range(0, length - stretch + 1, stretch):
        counts = collections.Counter(slots.order[start : start + stretch])
        for source, rows in enumerate(slots.rows):
            # Evenly spaced places: one more or one fewer can fall into a stretch.
            assert abs(counts[source] - rows * stretch / length) <= 1 + 1e-9


@pytest.mark.parametrize("weights", WEIGHTS.values(), ids=WEIGHTS)
def test_every_row_of_a_source_comes_once_and_in_order(weights):
    slots = mixture.interleave(weights)
    selection = mixture.MixtureMap(slots)
    rows = collections.defaultdict(list)
    for index in range(3 * len(slots.order)):
        source, row = selection[index]
        rows[source].append(row)
    assert all(seen == list(range(len(seen))) for seen in rows.values())
    assert {source: len(seen) for source, seen in rows.items()} == {
        source: 3 * count for source, count in enumerate(slots.rows)
    }


def test_the_table_tells_shares_asked_and_kept():
    config = RunConfig(
        data=DataConfig(sources={"a": SourceConfig(), "b": SourceConfig()}),
        stages={"base": StageConfig(mixture={"b": 3.0, "a": 1.0}, num_steps=7)},
    )
    (stage,) = mixture.mixture_table(config)
    assert stage["stage"] == "base"
    assert stage["num_steps"] == 7
    shares = {name: row["share_of_rows"] for name, row in stage["sources"].items()}
    assert shares == {"b": 0.75, "a": 0.25}
