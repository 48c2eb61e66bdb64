# SPDX-License-Identifier: Apache-2.0
"""Moving dimensions by their letters: `DNH` to `(NH)D` and back.

A pattern spells the dimensions of a stored tensor in the letters of docs/notation.md;
letters in parentheses are one stored dimension, the first of them varying slowest.
"""

import math
import re
from collections.abc import Mapping

import numpy as np


def rearrange(x: np.ndarray, dims: str, pattern: str) -> np.ndarray:
    """Returns `x`, whose dimensions are `dims`, as the array of `pattern`."""
    sizes = dict(zip(dims, x.shape, strict=True))
    moved = x.transpose([dims.index(letter) for letter in _letters(pattern)])
    return np.ascontiguousarray(moved).reshape(stored_shape(pattern, sizes))


def restore(
    x: np.ndarray, pattern: str, dims: str, sizes: Mapping[str, int]
) -> np.ndarray:
    """Undoes `rearrange`; `sizes` holds each letter's."""
    letters = _letters(pattern)
    apart = x.reshape([sizes[letter] for letter in letters])
    return apart.transpose([letters.index(letter) for letter in dims])


def stored_shape(pattern: str, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """Returns the shape of a pattern's array, given each letter's size."""
    groups = re.findall(r"\((\w+)\)|(\w)", pattern)
    return tuple(
        math.prod(sizes[letter] for letter in merged or single)
        for merged, single in groups
    )


def _letters(pattern: str) -> str:
    return pattern.replace("(", "").replace(")", "")
