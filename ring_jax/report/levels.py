# SPDX-License-Identifier: Apache-2.0
"""Levels of difficulty, and scores of all items of one."""

import dataclasses
import math

LEVELS = ("easy", "medium", "hard")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LevelScore:
    """The share of right items of one level, pooled over suites."""

    num_items: int
    accuracy: float

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the accuracy, from the number of items alone.

        Source: Wilson, "Probable Inference", JASA 22 (1927), the score interval.
        """
        z, n, p = 1.96, self.num_items, self.accuracy
        centre = (p + z * z / (2 * n)) / (1 + z * z / n)
        half = z * math.sqrt(p * (1 - p) / n + (z / (2 * n)) ** 2) / (1 + z * z / n)
        return max(0.0, centre - half), min(1.0, centre + half)
