# SPDX-License-Identifier: Apache-2.0
"""Rows as tokens, kept in a file without a name: it goes with the process."""

import array
import os
import pathlib
import tempfile
import weakref
from collections.abc import Sequence
from typing import overload

import numpy as np

from ring_jax.data.chat import Rendered

BYTES_PER_TOKEN = 5
"""Of an id four, of a class one."""


class SpooledRows(Sequence[Rendered]):
    """What rows became, appended in order and read in any."""

    def __init__(self, near: pathlib.Path):
        """Opens an empty file.

        Args:
          near: a path on the disk that holds it; it need not exist.

        Raises:
          OSError: nothing can be written there.
        """
        existing = (path for path in (near, *near.absolute().parents) if path.is_dir())
        self._file = tempfile.TemporaryFile(  # noqa: SIM115  (closed with these rows)
            dir=next(existing)
        )
        weakref.finalize(self, self._file.close)
        self._ends = array.array("q", [0])

    def append(self, row: Rendered) -> None:
        """Writes one row behind the others.

        Raises:
          OSError: the disk is full.
        """
        self._file.write(row.ids.astype(np.int32).tobytes())
        self._file.write(row.classes.astype(np.uint8).tobytes())
        self._ends.append(self._ends[-1] + len(row.ids))

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, number: int) -> Rendered: ...
    @overload
    def __getitem__(self, number: slice) -> list[Rendered]: ...

    def __getitem__(self, number: int | slice) -> Rendered | list[Rendered]:
        if isinstance(number, slice):
            return [self[each] for each in range(*number.indices(len(self)))]
        number = range(len(self))[number]
        start, end = self._ends[number], self._ends[number + 1]
        size = end - start
        self._file.flush()
        found = os.pread(
            self._file.fileno(), BYTES_PER_TOKEN * size, BYTES_PER_TOKEN * start
        )
        classes = np.frombuffer(found, np.uint8, size, offset=4 * size)
        return Rendered(np.frombuffer(found, np.int32, size), classes.astype(np.int32))
