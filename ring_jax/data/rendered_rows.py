# SPDX-License-Identifier: Apache-2.0
"""Rows in files as tokens: rendered when a batch needs them, not before."""

import collections
import concurrent.futures
import functools
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import overload

import numpy as np

from ring_jax.data import chat
from ring_jax.data.chat import Rendered
from ring_jax.data.long_rows import LengthPolicy
from ring_jax.data.schema import Row
from ring_jax.data.tokenizer import Tokenizer

CHARACTERS_PER_CORE = 250_000
"""Of rows that are tokenized at once: enough to share out, and some 50 MB for each."""
NUM_ROWS = 1024
"""Rows that are tokenized at once, at most."""
NUM_AHEAD = 2
"""Chunks of rows in work: while one is put together, the other is tokenized."""


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
        every = render_in_turn(rows, self._tokenizer, template=self._template)
        # Parts of a row are neighbours.
        firsts = np.searchsorted(self._origins_C, origins).tolist()
        return [
            self._policy.fit(tokens)[number - first]
            for (_, tokens), number, first in zip(every, numbers, firsts, strict=True)
        ]


def render_in_turn(
    rows: Iterable[Row], tokenizer: Tokenizer, *, template: str
) -> Iterator[tuple[Row, Rendered]]:
    """Renders rows one after the other, some at a time; holds no more than these."""
    render = functools.partial(chat.render_rows, tokenizer=tokenizer, template=template)
    with concurrent.futures.ThreadPoolExecutor(NUM_AHEAD) as pool:
        ahead: collections.deque = collections.deque()
        for chunk in _chunks(rows):
            ahead.append((chunk, pool.submit(render, chunk)))
            if len(ahead) > NUM_AHEAD:
                done, rendered = ahead.popleft()
                yield from zip(done, rendered.result(), strict=True)
        for done, rendered in ahead:
            yield from zip(done, rendered.result(), strict=True)


def _chunks(rows: Iterable[Row]) -> Iterator[list[Row]]:
    """Splits rows into as many as all cores have work with."""
    # Only Linux tells which of the machine's cores are this process's.
    is_linux = sys.platform == "linux"
    cores = len(os.sched_getaffinity(0)) if is_linux else os.cpu_count() or 1
    room = CHARACTERS_PER_CORE * cores
    chunk, characters = [], 0
    for row in rows:
        chunk.append(row)
        characters += len(row.text) + sum(
            len(turn.content) + len(turn.think) for turn in row.messages
        )
        if characters >= room or len(chunk) == NUM_ROWS:
            yield chunk
            chunk, characters = [], 0
    if chunk:
        yield chunk
