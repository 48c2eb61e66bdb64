# SPDX-License-Identifier: Apache-2.0
"""From right and wrong samples to scores, and how sure they are."""

import collections
import math
from collections.abc import Sequence

import numpy as np

NUM_RESAMPLES = 2000
SHARE = 0.95
"""Of resamples that an interval holds."""


def avg_at_k(are_right: Sequence[bool]) -> float:
    """Returns the share of right samples of one item."""
    return sum(are_right) / len(are_right)


def pass_at_k(num_samples: int, num_right: int, k: int) -> float:
    """Estimates the chance that any of k samples is right, without bias.

    1 - C(n - c, k) / C(n, k), of n samples with c right ones.

    Raises:
      ValueError: k is not between 1 and `num_samples`.

    Source: arXiv:2107.03374, equation 1.
    """
    if not 1 <= k <= num_samples:
        raise ValueError(f"k={k} must be from 1 to num_samples={num_samples}.")
    num_wrong = num_samples - num_right
    return 1.0 - math.comb(num_wrong, k) / math.comb(num_samples, k)


def maj_at_k(answers: Sequence[str], are_right: Sequence[bool]) -> float:
    """Tells whether the most frequent answer of one item is right.

    All right samples say the same, whatever their spelling; wrong ones do where their
    texts are equal; an empty answer has no vote. Between equally frequent answers a
    coin is tossed, of which this is the mean.

    Source: arXiv:2203.11171, section 2.
    """
    votes: collections.Counter[str | bool] = collections.Counter(
        True if is_right else answer
        for answer, is_right in zip(answers, are_right, strict=True)
        if is_right or answer
    )
    if not votes:
        return 0.0
    most = max(votes.values())
    winners = [answer for answer, count in votes.items() if count == most]
    return (True in winners) / len(winners)


def interval(scores: Sequence[float], *, seed: int) -> tuple[float, float]:
    """Returns a 95 % bootstrap interval of the mean over items, by percentiles.

    Items are drawn with replacement; the samples of an item stay together. Where all
    items score the same the interval has no width, which says nothing of new items.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), section 13.3.
    """
    per_item = np.asarray(scores, np.float64)
    draws = np.random.default_rng(seed)
    shape = NUM_RESAMPLES, len(per_item)
    means = per_item[draws.integers(0, len(per_item), shape, np.int32)].mean(axis=1)
    low, high = np.quantile(means, [(1 - SHARE) / 2, (1 + SHARE) / 2])
    return float(low), float(high)
