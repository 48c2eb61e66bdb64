# SPDX-License-Identifier: Apache-2.0
"""Whether two models differ, judged by the items that both have answered."""

from collections.abc import Mapping, Sequence
from fractions import Fraction

import numpy as np

LEVEL = 0.05
"""Marks stand where a difference at least as large has this probability, if none is."""

NUM_RESAMPLES = 2000
_CHUNK = 100

METHOD = (
    "Marks: paired by item, exact test over all swaps of the two models' scores of an "
    "item (with one sample per item it is McNemar's exact test, 1947; with more, "
    "Fisher's randomisation test, 1935), p < 0.05 after Holm's correction (1979) over "
    "the suites of a column. Intervals of differences, averages and of the retained "
    "fraction: 95 % each, without correction, paired bootstrap over items, 2,000 "
    "resamples, percentiles (Efron and Tibshirani, 1993, chapter 13); suites are "
    "fixed."
)


def paired_scores(columns: Sequence[Mapping[str, Fraction]]) -> list[list[Fraction]]:
    """Returns scores as [item][column], of the items that all columns have."""
    common = [key for key in columns[0] if all(key in scores for scores in columns)]
    return [[scores[key] for scores in columns] for key in common]


def exact_p_value(differences: Sequence[Fraction]) -> float:
    """Returns how probable a sum as far from 0 is, if every sign were a fair coin.

    The distribution of the sum of signs times differences is the inverse Fourier
    transform of the product of their cosines; the absolute error is about 1e-15. Where
    all differences are -1, 0 or 1 it is a binomial, and the test McNemar's.

    Args:
      differences: of each item, score now minus score before.

    Source: Fisher, The Design of Experiments (1935), section 21; McNemar,
    Psychometrika 12 (1947).
    """
    scale = int(np.lcm.reduce([d.denominator for d in differences] or [1]))
    steps = np.array([int(d * scale) for d in differences], np.int64)
    total, observed = int(np.abs(steps).sum()), abs(int(steps.sum()))
    if not total:
        return 1.0
    size = 2 * total + 1
    spectrum = np.ones(total + 1)
    sizes, counts = np.unique(np.abs(steps), return_counts=True)
    for step, count in zip(sizes, counts, strict=True):
        angles = 2 * np.pi * (np.arange(total + 1) * step % size) / size
        spectrum *= np.cos(angles) ** count
    # Sums of `s` and of `-s` stand at `s` and at `size - s`.
    probabilities = np.fft.irfft(spectrum, size)
    tail = probabilities[observed : size - observed + 1].sum()
    return float(min(1.0, max(0.0, tail)))


def holm(p_values: Sequence[float]) -> list[float]:
    """Corrects p-values of several tests.

    Source: Holm, Scandinavian Journal of Statistics 6 (1979).
    """
    corrected, highest = [0.0] * len(p_values), 0.0
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    for rank, index in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - rank) * p_values[index]))
        corrected[index] = highest
    return corrected


def resampled_averages(suites: Sequence[Sequence[Sequence[Fraction]]]) -> np.ndarray:
    """Draws items again, the same for all columns, and averages over the suites.

    Args:
      suites: of each suite, as `paired_scores` returns them.

    Returns:
      f64[resample, column], the mean over suites of the mean over drawn items; the same
      numbers each time.
    """
    generator = np.random.default_rng(0)
    means = [_resampled_means(np.array(suite, float), generator) for suite in suites]
    return np.mean(means, axis=0)


def _resampled_means(scores: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    num_items = len(scores)
    draws = (
        generator.integers(num_items, size=(_CHUNK, num_items))
        for _ in range(NUM_RESAMPLES // _CHUNK)
    )
    return np.concatenate([scores[draw].mean(axis=1) for draw in draws])


def interval(values: np.ndarray) -> tuple[float, float]:
    """Returns the 2.5th and the 97.5th percentile."""
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)
