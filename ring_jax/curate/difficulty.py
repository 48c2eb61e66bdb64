# SPDX-License-Identifier: Apache-2.0
"""How hard a row is, from 0 to 1, and the band that counts are given by."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

from ring_jax.config import DifficultyConfig
from ring_jax.curate.answers import pass_rate
from ring_jax.curate.rows import reply_text
from ring_jax.data.schema import Row

LEVELS = {"easy": 0.0, "medium": 0.5, "hard": 1.0}
BANDS = ("0.0-0.2", "0.2-0.4", "0.4-0.6", "0.6-0.8", "0.8-1.0")


def grade_difficulty(rows: Sequence[Row], *, config: DifficultyConfig) -> list[Row]:
    """Sets each row's difficulty, and says in `metadata.difficulty_by` from what."""
    if config.by == "keep":
        return list(rows)
    names = tuple(WAYS) if config.by == "auto" else (config.by,)
    return [_graded(row, names, config) for row in rows]


def _graded(row: Row, names: Sequence[str], config: DifficultyConfig) -> Row:
    for name in names:
        difficulty = WAYS[name](row, config)
        if difficulty is not None:
            metadata = {**row.metadata, "difficulty_by": name}
            rounded = round(difficulty, 4)
            return dataclasses.replace(row, difficulty=rounded, metadata=metadata)
    return row


def _by_pass_rate(row: Row, config: DifficultyConfig) -> float | None:
    del config
    rate = pass_rate(row)
    return None if rate is None else 1.0 - rate


def _by_level(row: Row, config: DifficultyConfig) -> float | None:
    del config
    if row.level in LEVELS:
        return LEVELS[row.level]
    return row.difficulty if 0.0 < row.difficulty <= 1.0 else None


def _by_length(row: Row, config: DifficultyConfig) -> float | None:
    """Grows with the logarithm: twice as long is one step harder, at any length."""
    if not row.messages:
        return None
    longest = math.log2(1 + config.longest_reply)
    return min(1.0, math.log2(1 + len(reply_text(row))) / longest)


WAYS: Mapping[str, Callable[[Row, DifficultyConfig], float | None]] = {
    "pass_rate": _by_pass_rate,
    "level": _by_level,
    "length": _by_length,
}
"""The best evidence first."""


def band(difficulty: float) -> str:
    """Names the fifth of the scale that a difficulty lies in."""
    return BANDS[min(int(difficulty * len(BANDS)), len(BANDS) - 1)]
