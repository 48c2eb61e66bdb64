# SPDX-License-Identifier: Apache-2.0
"""Differences are tested as scipy tests them, and intervals hold what they should."""

from fractions import Fraction

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from ring_jax.report import significance


def halves(*numerators):
    return [Fraction(n, 2) for n in numerators]


@settings(max_examples=50, deadline=None)
@given(gained=st.integers(0, 400), lost=st.integers(0, 400), same=st.integers(0, 50))
def test_with_one_sample_the_test_is_mcnemars(gained, lost, same):
    differences = [Fraction(1)] * gained + [Fraction(-1)] * lost + [Fraction(0)] * same
    expected = 1.0
    if gained + lost:
        expected = scipy.stats.binomtest(gained, gained + lost, 0.5).pvalue
    # The transform's own error is absolute, near 1e-15.
    found = significance.exact_p_value(differences)
    assert found == pytest.approx(expected, rel=1e-9, abs=1e-12)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(-4, 4), st.sampled_from([2, 3, 4])),
        min_size=2,
        max_size=11,
    )
)
def test_with_several_samples_it_is_the_exact_permutation_test(fractions):
    differences = [Fraction(n, d) for n, d in fractions]
    # scipy goes through all 2^n signs; integers keep its ties exact.
    values = np.array([int(12 * d) for d in differences], float)
    expected = scipy.stats.permutation_test(
        (values,), np.sum, permutation_type="samples", n_resamples=10**6
    ).pvalue
    assert significance.exact_p_value(differences) == pytest.approx(expected, abs=1e-9)


def test_five_of_five_gained_items_are_no_proof():
    # 2 x 0.5^5, by hand; a bootstrap of five gains would never see a loss.
    assert significance.exact_p_value([Fraction(1)] * 5) == pytest.approx(0.0625)


def test_no_difference_has_probability_one():
    assert significance.exact_p_value([]) == 1.0
    assert significance.exact_p_value(halves(0, 0)) == 1.0


def test_holms_correction_is_that_of_his_steps():
    # By hand: 4 x 0.01, 3 x 0.02, then never less than the step before.
    assert significance.holm([0.02, 0.01, 0.03, 0.03]) == pytest.approx(
        [0.06, 0.04, 0.06, 0.06]
    )
    assert significance.holm([0.9, 0.8]) == [1.0, 1.0]
    assert significance.holm([]) == []


def test_items_are_paired_by_name_and_those_of_one_side_left_out():
    before = dict(zip("abc", halves(1, 0, 2), strict=True))
    after = dict(zip("cad", halves(0, 2, 2), strict=True))
    assert significance.paired_scores([before, after]) == [halves(1, 2), halves(2, 0)]


def test_the_bootstraps_spread_is_the_standard_error():
    shares = [[Fraction(i % 4 == 0), Fraction(i % 2)] for i in range(400)]
    means = significance.resampled_averages([shares])
    expected = [(p * (1 - p) / 400) ** 0.5 for p in (0.25, 0.5)]
    # 2,000 draws know a standard deviation to about 1.6 %.
    assert means.std(axis=0) == pytest.approx(expected, rel=0.08)
    assert means.mean(axis=0) == pytest.approx([0.25, 0.5], abs=0.003)
    low, high = significance.interval(means[:, 1])
    assert (low, high) == pytest.approx((0.5 - 0.049, 0.5 + 0.049), abs=0.006)


def test_the_bootstrap_keeps_the_columns_of_an_item_together():
    same = [[Fraction(i % 3 == 0)] * 2 for i in range(60)]
    means = significance.resampled_averages([same, same])
    assert (means[:, 0] == means[:, 1]).all()
    assert (means == significance.resampled_averages([same, same])).all()
