# SPDX-License-Identifier: Apache-2.0
"""Scores against their definitions: all subsets, all votes, a known distribution."""

import itertools

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from ring_jax.evaluate.aggregate import avg_at_k, interval, maj_at_k, pass_at_k


@hypothesis.given(st.lists(st.booleans(), min_size=1, max_size=8), st.data())
def test_pass_at_k_is_the_share_of_subsets_with_a_right_sample(are_right, data):
    k = data.draw(st.integers(1, len(are_right)))
    subsets = list(itertools.combinations(are_right, k))
    found = pass_at_k(len(are_right), sum(are_right), k)
    assert found == pytest.approx(np.mean([any(subset) for subset in subsets]))
    assert pass_at_k(len(are_right), sum(are_right), 1) == pytest.approx(
        avg_at_k(are_right)
    )


def test_pass_at_k_agrees_with_the_papers_own_product():
    # Its numpy listing: 1 - prod(1 - k / (n - c + 1 ... n)).
    for n, c, k in [(200, 13, 100), (200, 1, 10), (16, 3, 4), (10, 8, 5)]:
        product = 1.0 - np.prod(1.0 - k / np.arange(n - c + 1, n + 1))
        expected = 1.0 if n - c < k else product
        assert pass_at_k(n, c, k) == pytest.approx(expected)


@pytest.mark.parametrize("k", [0, 5])
def test_more_samples_than_there_are_have_no_estimate(k):
    with pytest.raises(ValueError, match=f"k={k}"):
        pass_at_k(4, 2, k)


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (["3!", "3.0!", "4"], 1.0),  # right ones agree, whatever their spelling
        (["3!", "4", "4"], 0.0),
        (["3!", "4"], 0.5),  # a tie is a coin
        (["3!", "4", "5"], 1 / 3),
        (["3!", "", ""], 1.0),  # who says nothing does not vote
        (["", ""], 0.0),
    ],
)
def test_the_majority_counts_what_says_the_same(said, expected):
    are_right = [answer.endswith("!") for answer in said]
    assert maj_at_k(said, are_right) == pytest.approx(expected)


def test_an_interval_is_the_same_each_time_and_as_wide_as_the_binomials():
    scores = [1.0] * 120 + [0.0] * 80
    low, high = interval(scores, seed=3)
    assert (low, high) == interval(scores, seed=3) != interval(scores, seed=4)
    half = 1.96 * (0.6 * 0.4 / 200) ** 0.5
    # 2000 resamples leave the quantiles a few thousandths.
    assert low == pytest.approx(0.6 - half, abs=0.01)
    assert high == pytest.approx(0.6 + half, abs=0.01)


def test_an_interval_holds_the_truth_about_95_times_in_100():
    draws = np.random.default_rng(0)
    held = 0
    for number in range(60):
        scores = draws.random(80) < 0.4
        low, high = interval(scores.astype(float).tolist(), seed=number)
        held += low <= 0.4 <= high
    assert held >= 51  # 57 expected; fewer than 51 of 60 has a chance below 1 %
