# SPDX-License-Identifier: Apache-2.0
"""Mixtures by weight: a fixed, even interleave of sources, in closed form.

A mixture repeats a period of at most a thousand rows. Weights become whole numbers of
rows per period by largest remainder; the rows of a source are spread evenly over it.
So row i of a stage is row j of a source by arithmetic alone: a position in the data is
one integer, and any stretch of training has the shares that were asked for.
"""

import dataclasses
import math
import sys
from collections.abc import Mapping
from typing import Any

import grain

from ring_jax.config import RunConfig

PERIOD = 1000
"""Rows over which shares are rounded: a share is kept to within 0.1 %."""


@dataclasses.dataclass(frozen=True, slots=True)
class Slots:
    """One period of a mixture."""

    rows: tuple[int, ...]
    """Rows of each source in a period, each at least 1."""
    order: tuple[int, ...]
    """The source of each row of a period."""
    ranks: tuple[int, ...]
    """Which of its source's rows in the period it is."""


class MixtureMap(grain.transforms.DatasetSelectionMap):
    """Row index of a stage -> (source, row index of that source)."""

    def __init__(self, slots: Slots):
        self._slots = slots

    def __len__(self) -> int:
        # Sources repeat, so a mixture has no end.
        return sys.maxsize

    def __getitem__(self, index: int) -> tuple[int, int]:
        period, slot = divmod(index, len(self._slots.order))
        source = self._slots.order[slot]
        row = period * self._slots.rows[source] + self._slots.ranks[slot]
        return source, row


def interleave(weights: Mapping[str, float]) -> Slots:
    """Lays out one period of a mixture.

    Args:
      weights: share of each source, all above 0; they need not sum to 1.

    Returns:
      Slots; sources are numbered in the order of `weights`.
    """
    rows = _largest_remainder(list(weights.values()))
    divisor = math.gcd(*rows)
    rows = [count // divisor for count in rows]
    # The j-th of n rows stands at (j + 1/2) / n of the period: evenly spread.
    places = sorted(
        ((rank + 0.5) / count, source, rank)
        for source, count in enumerate(rows)
        for rank in range(count)
    )
    return Slots(
        rows=tuple(rows),
        order=tuple(source for _, source, _ in places),
        ranks=tuple(rank for _, _, rank in places),
    )


def mixture_table(config: RunConfig) -> list[dict[str, Any]]:
    """Writes what `mixture.json` holds: shares of each stage, as asked and as kept."""
    return [
        {
            "stage": name,
            "num_steps": stage.num_steps,
            "train_prompts": stage.train_prompts,
            "sources": _shares(stage.mixture),
        }
        for name, stage in config.stages.items()
    ]


def _shares(weights: Mapping[str, float]) -> dict[str, dict[str, float]]:
    rows = interleave(weights).rows
    return {
        name: {
            "weight": weight,
            "rows_per_period": count,
            "share_of_rows": count / sum(rows),
        }
        for (name, weight), count in zip(weights.items(), rows, strict=True)
    }


def _largest_remainder(weights: list[float]) -> list[int]:
    exact = [weight / sum(weights) * PERIOD for weight in weights]
    # A source that was asked for is never rounded away.
    rows = [max(1, math.floor(share)) for share in exact]
    remainders = [share - count for share, count in zip(exact, rows, strict=True)]
    largest_first = sorted(range(len(rows)), key=remainders.__getitem__, reverse=True)
    for source in largest_first[: max(0, PERIOD - sum(rows))]:
        rows[source] += 1
    return rows
