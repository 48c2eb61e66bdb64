# SPDX-License-Identifier: Apache-2.0
"""Any step can be packed alone, no row is lost on the way, and packed rows are full."""

import collections
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ring_jax.config import ConfigError
from ring_jax.data.ledger import Ledger
from ring_jax.data.length_index import LengthIndex
from ring_jax.data.windows import MAX_DELAY, Windows

ALGORITHMS = ("best_fit", "first_fit")


def rows_of(windows: Windows, step: int) -> list[tuple[int, int]]:
    return [
        pair
        for bin_ in windows.bins(step)
        for pair in zip(bin_.sources_C.tolist(), bin_.places_C.tolist(), strict=True)
    ]


KINDS = {
    "even": [20] * 60,
    "halves": [129, 127, 128, 130, 140] * 12,
    "whole": [256] * 50,
    "mixed": [4, 250, 90, 180, 33] * 15,
}


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@settings(deadline=None, max_examples=12, derandomize=True)
@given(
    kinds=st.lists(st.sampled_from(list(KINDS)), min_size=1, max_size=3),
    weights=st.lists(st.floats(0.1, 5), min_size=3, max_size=3),
    batch_size=st.sampled_from([2, 4, 8]),
)
def test_steps_feed_every_dealt_row_once(
    lengths, algorithm, kinds, weights, batch_size
):
    indexes = {
        f"{kind}{i}": lengths.index_of(KINDS[kind]) for i, kind in enumerate(kinds)
    }
    mixture = dict(zip(indexes, weights, strict=False))
    ledger = lengths.open_ledger(
        indexes, mixture, algorithm=algorithm, batch_size=batch_size
    )
    windows, num_windows = Windows(ledger), 12
    fed = collections.Counter()
    for step in range(4 * num_windows):
        fed.update(rows_of(windows, step))
    dealt = collections.Counter()
    for window in range(num_windows):
        rows = ledger.rows(window)
        dealt.update(zip(rows.sources_C.tolist(), rows.places_C.tolist(), strict=True))
    # What is dealt and not yet fed waits for a later window; nothing comes unasked.
    assert not fed - dealt
    totals = windows.totals(4 * num_windows)
    assert sum(fed.values()) == sum(place.rows for place in totals.values())
    waiting = sum((dealt - fed).values())
    assert waiting <= 8
    names = list(indexes)
    for (source, place), count in fed.items():
        length = indexes[names[source]].counts_CU[place].sum() + 1
        totals[names[source]] = totals[names[source]].__class__(
            totals[names[source]].rows - count,
            totals[names[source]].trained,
            totals[names[source]].packed - count * int(length),
        )
    assert all(place.rows == place.packed == 0 for place in totals.values())


@pytest.fixture(scope="module")
def tight(lengths) -> Ledger:
    """Long rows, planned so tightly that some must wait."""
    rng = np.random.default_rng(0)
    indexes = {"a": lengths.index_of(rng.integers(20, 200, 400))}
    return lengths.open_ledger(indexes, {"a": 1.0}, fill=0.84)


def test_rows_that_find_no_room_come_later(tight):
    windows = Windows(tight)
    is_late = []
    for window in range(40):
        dealt = tight.rows(window).places_C.tolist()
        fed = [
            place
            for step in range(4 * window, 4 * window + 4)
            for _, place in rows_of(windows, step)
        ]
        is_late.append(bool(collections.Counter(fed) - collections.Counter(dealt)))
    # Else this test shows nothing, and the next ones neither.
    assert 0 < sum(is_late) < 40


def test_a_step_is_the_same_wherever_one_begins(tight):
    windows = Windows(tight)
    in_order = [rows_of(windows, step) for step in range(160)]
    for step in (159, 3, 90, 41):
        assert rows_of(Windows(tight), step) == in_order[step]
    again = pickle.loads(pickle.dumps(windows))
    assert rows_of(again, 77) == in_order[77]


def test_what_was_fed_adds_up_at_every_step(tight):
    windows, trained, rows = Windows(tight), 0, 0
    for step in range(60):
        total = windows.totals(step)["a"]
        assert (total.rows, total.trained) == (rows, trained)
        share = windows.composition(step)["a"]
        assert share.tokens == sum(share.by_class.values()) + share.rows
        assert share.trained == share.tokens - share.rows - share.by_class["prompt"]
        trained += share.trained
        rows += share.rows


@pytest.fixture(scope="module")
def crowded(lengths) -> dict[str, LengthIndex]:
    """Rows that leave 56 of 256 tokens free, in bins that are planned fuller."""
    return {"a": lengths.index_of([200] * 40)}


def test_rows_that_never_find_room_end_a_run_that_wants_it_so(crowded, lengths):
    ledger = lengths.open_ledger(crowded, {"a": 1.0}, fill=0.9, no_room="refuse")
    with pytest.raises(ConfigError, match=r"set data\.packing\.fill below 0\.9"):
        for step in range(80):
            Windows(ledger).bins(step)


def test_rows_that_never_find_room_are_left_out_and_counted(crowded, lengths):
    ledger = lengths.open_ledger(crowded, {"a": 1.0}, fill=0.9)
    windows, num_windows = Windows(ledger), 20
    fed, dealt, gone = (collections.Counter() for _ in range(3))
    for window in range(num_windows):
        dealt.update(ledger.rows(window).places_C.tolist())
        gone.update(windows.left_out(window).places_C.tolist())
        for step in range(4 * window, 4 * window + 4):
            fed.update(place for _, place in rows_of(windows, step))
        # From anywhere, the same rows are left out.
        alone = Windows(ledger).left_out(window)
        np.testing.assert_array_equal(alone.places_C, windows.left_out(window).places_C)
    # 16 bins take 16 of these rows; 0.9 of their tokens are 18.4.
    assert gone.total() == pytest.approx(2.4 * (num_windows - MAX_DELAY), abs=2)
    waiting = windows._whole(num_windows - 1).waiting
    assert dealt.total() == (fed + gone).total() + sum(
        len(rows.places_C) for rows in waiting
    )
    assert not (fed + gone) - dealt


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_long_traces_and_short_instructions_fill_98_percent(algorithm, lengths):
    indexes = {
        "traces": lengths.make_index(2000, mean=5000, sigma=0.7, seq_len=16384),
        "instructions": lengths.make_index(4000, mean=250, sigma=0.8, seq_len=16384),
    }
    ledger = lengths.open_ledger(
        indexes,
        {"traces": 0.8, "instructions": 0.2},
        algorithm=algorithm,
        seq_len=16384,
        batch_size=16,
        window_steps=16,
    )
    windows = Windows(ledger)
    tokens = [
        windows.composition(step)["traces"].tokens
        + windows.composition(step)["instructions"].tokens
        for step in range(48)
    ]
    # The requirement; 99 % is what is seen.
    assert np.mean(tokens) / (16 * 16384) >= 0.98
