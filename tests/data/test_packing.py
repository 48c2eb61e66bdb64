# SPDX-License-Identifier: Apache-2.0
"""Packing loses, splits and mixes up no row, whatever their lengths."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ring_jax.data import packing
from ring_jax.data.chat import Rendered

SEQ_LEN = 32
LENGTHS = st.lists(st.integers(2, SEQ_LEN), min_size=1, max_size=80).map(np.asarray)
ALGORITHMS = ("best_fit", "first_fit")


def rows_of(lengths_C) -> list[Rendered]:
    """Rows whose every token tells its row and place."""
    return [
        Rendered(
            (1000 * number + np.arange(length)).astype(np.int32),
            np.full(length, 1 + number % 5, np.int32),
        )
        for number, length in enumerate(lengths_C.tolist())
    ]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@settings(deadline=None, max_examples=100, derandomize=True)
@given(lengths_C=LENGTHS, num_bins=st.integers(1, 40))
def test_bins_hold_what_they_can_and_refuse_only_what_fits_nowhere(
    algorithm, lengths_C, num_bins
):
    bins_C = packing.assign(
        lengths_C, num_bins=num_bins, seq_len=SEQ_LEN, algorithm=algorithm
    )
    used = np.bincount(bins_C[bins_C >= 0], lengths_C[bins_C >= 0], minlength=num_bins)
    assert used.max() <= SEQ_LEN
    free = SEQ_LEN - used
    for length in lengths_C[bins_C < 0]:
        assert length > free.max()


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@settings(deadline=None, max_examples=100, derandomize=True)
@given(lengths_C=LENGTHS)
def test_no_two_neighbouring_bins_would_fit_into_one(algorithm, lengths_C):
    num_bins = packing.count_bins(lengths_C, seq_len=SEQ_LEN, algorithm=algorithm)
    bins_C = packing.assign(
        lengths_C, num_bins=num_bins, seq_len=SEQ_LEN, algorithm=algorithm
    )
    assert (bins_C >= 0).all()
    used = np.bincount(bins_C, lengths_C, minlength=num_bins)
    assert (used[:-1] + used[1:] > SEQ_LEN).all()


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@settings(deadline=None, max_examples=50, derandomize=True)
@given(lengths_C=LENGTHS)
def test_packed_rows_come_out_whole_apart_and_in_order(algorithm, lengths_C):
    rows = rows_of(lengths_C)
    num_bins = packing.count_bins(lengths_C, seq_len=SEQ_LEN, algorithm=algorithm)
    bins_C = packing.assign(
        lengths_C, num_bins=num_bins, seq_len=SEQ_LEN, algorithm=algorithm
    )
    bins = [
        [
            (number % 3, rows[number])
            for number in np.flatnonzero(bins_C == bin_).tolist()
        ]
        for bin_ in range(num_bins)
    ]
    packed = packing.stack(bins, seq_len=SEQ_LEN)
    seen = []
    for line in range(num_bins):
        segments_T = packed["segments"][line]
        assert (np.diff(segments_T[segments_T > 0]) >= 0).all()
        in_line = []
        for segment in range(1, segments_T.max() + 1):
            (at,) = np.nonzero(segments_T == segment)
            number = int(packed["ids"][line, at[0]]) // 1000
            row = rows[number]
            assert packed["ids"][line, at].tolist() == row.ids.tolist()
            assert packed["classes"][line, at].tolist() == row.classes.tolist()
            assert packed["positions"][line, at].tolist() == list(range(len(at)))
            assert set(packed["sources"][line, at].tolist()) == {number % 3}
            in_line.append(number)
        assert in_line == sorted(in_line)
        seen += in_line
        for name in ("ids", "classes", "positions", "sources"):
            assert not packed[name][line, segments_T == 0].any()
    assert sorted(seen) == list(range(len(rows)))


def test_first_fit_is_what_its_name_says():
    lengths_C = np.asarray([5, 5, 4, 3, 2])
    bins_C = packing.assign(lengths_C, num_bins=3, seq_len=8, algorithm="first_fit")
    assert bins_C.tolist() == [0, 1, 2, 0, 1]
    best_C = packing.assign(lengths_C, num_bins=3, seq_len=8, algorithm="best_fit")
    # 4 fits beside nothing; 3 fills a bin of 5 up, 2 goes to the fuller of the others.
    assert best_C.tolist() == [0, 1, 2, 0, 1]
    tight = packing.assign(np.asarray([9]), num_bins=3, seq_len=8, algorithm="best_fit")
    assert tight.tolist() == [-1]
