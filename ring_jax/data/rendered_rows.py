# SPDX-License-Identifier: Apache-2.0
"""Rows in files as tokens: rendered when a batch needs them, not before."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import overload

import numpy as np

from ring_jax.data import chat
from ring_jax.data.chat import Rendered
from ring_jax.data.long_rows import LengthPolicy
from ring_jax.data.schema import Row
from ring_jax.data.tokenizer import Tokenizer

NUM_TOGETHER = 1024
"""Rows that are tokenized at once, on all cores, where all are."""


class RenderedRows(Sequence[Rendered]):
    """What rows of a source become, part by part; only those asked for are read."""

    def __init__(
        self,
        rows: Sequence[Row],
        origins_C: np.ndarray,
        tokenizer: Tokenizer,
        *,
        template: str,
        policy: LengthPolicy,
    ):
        """Takes rows without reading them.

        Args:
          rows: of the source.
          origins_C: i64[C], the row that each part comes from, ascending.
          tokenizer: of the run.
          template: as in `chat.render_rows`.
          policy: how long rows are taken apart.
        """
        self._rows, self._origins_C, self._tokenizer = rows, origins_C, tokenizer
        self._template, self._policy = template, policy

    def __len__(self) -> int:
        return len(self._origins_C)

    @overload
    def __getitem__(self, number: int) -> Rendered: ...
    @overload
    def __getitem__(self, number: slice) -> list[Rendered]: ...

    def __getitem__(self, number: int | slice) -> Rendered | list[Rendered]:
        if isinstance(number, slice):
            return self.take(range(*number.indices(len(self))))
        return self.take([range(len(self))[number]])[0]

    def take(self, numbers: Sequence[int]) -> list[Rendered]:
        """Renders several at once, which uses all cores."""
        origins = self._origins_C[list(numbers)]
        rows = [self._rows[origin] for origin in origins.tolist()]
        every = chat.render_rows(rows, self._tokenizer, template=self._template)
        # Parts of a row are neighbours.
        firsts = np.searchsorted(self._origins_C, origins).tolist()
        return [
            self._policy.fit(row)[number - first]
            for row, number, first in zip(every, numbers, firsts, strict=True)
        ]


def render_in_turn(
    rows: Iterable[Row], tokenizer: Tokenizer, *, template: str
) -> Iterator[tuple[Row, Rendered]]:
    """Renders rows one after the other, some at a time; holds no more than these."""
    for chunk in itertools.batched(rows, NUM_TOGETHER):
        yield from zip(
            chunk, chat.render_rows(chunk, tokenizer, template=template), strict=True
        )
