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
            return [self[i] for i in range(*number.indices(len(self)))]
        number = range(len(self))[number]
        origin = int(self._origins_C[number])
        row = chat.render(self._rows[origin], self._tokenizer, template=self._template)
        # Parts of a row are neighbours.
        first = int(np.searchsorted(self._origins_C, origin))
        return self._policy.fit(row)[number - first]


def render_in_turn(
    rows: Iterable[Row], tokenizer: Tokenizer, *, template: str
) -> Iterator[tuple[Row, Rendered]]:
    """Renders rows one after the other, some at a time; holds no more than these."""
    for chunk in itertools.batched(rows, NUM_TOGETHER):
        yield from zip(
            chunk, chat.render_rows(chunk, tokenizer, template=template), strict=True
        )
