# SPDX-License-Identifier: Apache-2.0
"""What the held-out panels say: averages over items, and the change between stages."""

import collections
import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

PanelRow = Mapping[str, Any]
"""A row of a panel record: source, domain, task, level, num_items and its scores."""

SCORES = ("accuracy", "most_frequent", "well_formed", "mean_tokens", "heldout_loss")
"""What a panel row measures; any of them may be None where it does not apply."""

REASONING = "reasoning"
"""The domain that training is to improve; all others are to be kept."""

LEVELS = ("easy", "medium", "hard")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Average:
    """Scores of several panel rows, averaged over their items; None: no row has it."""

    num_items: int
    """Items behind the accuracy; all of them where none was graded."""
    accuracy: float | None
    most_frequent: float | None
    well_formed: float | None
    mean_tokens: float | None
    heldout_loss: float | None

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % interval of the accuracy, from the number of items alone.

        Source: Wilson, "Probable Inference", JASA 22 (1927), the score interval.
        """
        if self.accuracy is None or not self.num_items:
            return None
        z, n, p = 1.96, self.num_items, self.accuracy
        centre = (p + z * z / (2 * n)) / (1 + z * z / n)
        half = z * math.sqrt(p * (1 - p) / n + (z / (2 * n)) ** 2) / (1 + z * z / n)
        return max(0.0, centre - half), min(1.0, centre + half)


def domain_averages(rows: Iterable[PanelRow]) -> dict[str, Average]:
    """Averages the rows of each domain over their items, reasoning first."""
    return _averages(rows, lambda row: str(row.get("domain")), _reasoning_first)


def level_averages(rows: Iterable[PanelRow]) -> dict[tuple[str, str], Average]:
    """Averages the rows of each (domain, level) where a domain has several levels."""
    graded = [row for row in rows if row.get("level")]
    levels = {(str(row.get("domain")), row["level"]) for row in graded}
    num_levels = collections.Counter(domain for domain, _ in levels)
    graded = [row for row in graded if num_levels[str(row.get("domain"))] > 1]
    return _averages(
        graded, lambda row: (str(row.get("domain")), str(row["level"])), _level_order
    )


def reasoning_average(rows: Iterable[PanelRow]) -> Average:
    """Averages the rows of reasoning, which training is to improve."""
    return average([row for row in rows if row.get("domain") == REASONING])


def general_average(rows: Iterable[PanelRow]) -> Average:
    """Averages the rows of all other domains, which training is to keep."""
    return average([row for row in rows if row.get("domain") != REASONING])


def _averages[Key](
    rows: Iterable[PanelRow],
    key_of: Callable[[PanelRow], Key],
    order: Callable[[Key], Any],
) -> dict[Key, Average]:
    groups: dict[Key, list[PanelRow]] = {}
    for row in rows:
        groups.setdefault(key_of(row), []).append(row)
    return {key: average(groups[key]) for key in sorted(groups, key=order)}


def average(rows: Sequence[PanelRow]) -> Average:
    """Averages rows, each weighted by its number of items."""
    scores = {score: _weighted_mean(rows, score) for score in SCORES}
    # Rows that no verifier grades must not narrow the interval of the accuracy.
    graded = [row for row in rows if row.get("accuracy") is not None] or rows
    num_items = sum(int(row.get("num_items") or 0) for row in graded)
    return Average(num_items=num_items, **scores)


def _weighted_mean(rows: Sequence[PanelRow], score: str) -> float | None:
    pairs = [(row.get(score), int(row.get("num_items") or 0)) for row in rows]
    known = [(value, n) for value, n in pairs if isinstance(value, int | float) and n]
    total = sum(n for _, n in known)
    return sum(value * n for value, n in known) / total if total else None


def _reasoning_first(domain: str) -> tuple[bool, str]:
    return domain != REASONING, domain


def _level_order(key: tuple[str, str]) -> tuple[bool, str, int, str]:
    domain, level = key
    rank = LEVELS.index(level) if level in LEVELS else len(LEVELS)
    return *_reasoning_first(domain), rank, level
