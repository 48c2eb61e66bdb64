# SPDX-License-Identifier: Apache-2.0
"""The steps of a stage as packed arrays, made of rows when they are asked for."""

import sys
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from ring_jax.data import packing
from ring_jax.data.chat import Rendered
from ring_jax.data.rendered_rows import RenderedRows
from ring_jax.data.windows import Windows


class Steps(Protocol):
    """Packed arrays of every step of a stage, in any order."""

    def __len__(self) -> int: ...

    def __getitem__(self, step: int) -> dict[str, np.ndarray]:
        """Returns what `packing.stack` does, and i64[1] `left_out`.

        That counts the rows for which the step's window was the last that could hold
        them. It is said once, with the window's first step, whichever rows are taken.
        """
        ...


class MadeSteps(Steps):
    """Steps packed on the fly."""

    def __init__(
        self,
        windows: Windows,
        rendered: Mapping[str, Sequence[Rendered]],
        rows: Sequence[int],
    ):
        """Takes what is packed; nothing is read yet.

        Args:
          windows: of the stage's ledger.
          rendered: rows of each source, in the order of the config.
          rows: which packed rows of each step, ascending.
        """
        self._windows, self._rows = windows, rows
        self._rendered = list(rendered.values())

    def __len__(self) -> int:
        # Sources repeat, so a stage has no end of its own.
        return sys.maxsize

    def __getitem__(self, step: int) -> dict[str, np.ndarray]:
        (rows,) = self.documents(range(step, step + 1))
        seq_len = self._windows.ledger.geometry.seq_len
        count = {"left_out": np.full(1, self.num_left_out(step))}
        return packing.stack(rows, seq_len=seq_len) | count

    def num_left_out(self, step: int) -> int:
        """Counts rows left out with the window that this step is the first of."""
        window, offset = divmod(step, self._windows.ledger.geometry.window_steps)
        return 0 if offset else len(self._windows.left_out(window).places_C)

    def documents(self, steps: range) -> list[list[list[tuple[int, Rendered]]]]:
        """Returns of each step its packed rows, as sources and tokens of documents.

        Rows in files are rendered together, which uses all cores: ask for many steps
        where many are wanted.
        """
        chosen = []
        for step in steps:
            bins = self._windows.bins(step)
            chosen.append(
                [
                    list(
                        zip(bin_.sources_C.tolist(), bin_.rows_C.tolist(), strict=True)
                    )
                    for bin_ in (bins[line] for line in self._rows)
                ]
            )
        found = self._find({pair for rows in chosen for bin_ in rows for pair in bin_})
        return [
            [[(pair[0], found[pair]) for pair in bin_] for bin_ in rows]
            for rows in chosen
        ]

    def _find(self, pairs: set[tuple[int, int]]) -> dict[tuple[int, int], Rendered]:
        """Looks up rows by source and number."""
        found = {}
        for source, rows in enumerate(self._rendered):
            numbers = sorted(row for its, row in pairs if its == source)
            if not numbers:
                continue
            if isinstance(rows, RenderedRows):
                tokens = rows.take(numbers)
            else:
                tokens = [rows[number] for number in numbers]
            keys = [(source, number) for number in numbers]
            found |= zip(keys, tokens, strict=True)
        return found
