# SPDX-License-Identifier: Apache-2.0
"""ArrayRecord files: found by folder or pattern, checked, and read at any record."""

import bisect
import functools
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, overload

from array_record.python import (
    array_record_module,  # pyright: ignore[reportAttributeAccessIssue]  # no stub
)

SUFFIX = ".array_record"
OPTIONS = "group_size:1"
"""One record per group: any row is read without its neighbours, as Grain advises."""
BATCH = 256
"""Records that are read together where all are."""


def find_files(path: str, *, suffix: str = "") -> list[pathlib.Path]:
    """Lists the files that a path means, in the order of their names.

    Args:
      path: a file, a folder (all below it that is not hidden), or a pattern such as
        `raw/*.parquet`.
      suffix: of a folder that has files of this ending, only these.
    """
    found = pathlib.Path(path)
    if found.is_file():
        return [found]
    files = found.rglob("*") if found.is_dir() else found.parent.glob(found.name)
    base = found if found.is_dir() else found.parent
    shown = [
        file
        for file in files
        if file.is_file()
        and not any(part.startswith(".") for part in file.relative_to(base).parts)
    ]
    of_kind = [file for file in shown if file.name.endswith(suffix)]
    return sorted(of_kind if found.is_dir() and of_kind else shown)


def write_records(
    path: pathlib.Path, records: Iterable[bytes], *, options: str = OPTIONS
) -> None:
    """Writes a file that is there whole or not at all.

    Args:
      path: of the file.
      records: its records, in order.
      options: of ArrayRecord's writer.

    Raises:
      OSError: it cannot be written, or not be read back, as on a full disk.
    """
    unfinished, count = path.with_name(f".{path.name}.unfinished"), 0
    unfinished.unlink(missing_ok=True)
    writer = array_record_module.ArrayRecordWriter(str(unfinished), options)
    try:
        for record in records:
            _call(unfinished, writer.write, record)
            count += 1
    finally:
        _call(unfinished, writer.close)
    with unfinished.open("rb") as file:
        os.fsync(file.fileno())
    # The writer may not report a full disk: what cannot be read back is no file.
    reader = array_record_module.ArrayRecordReader(str(unfinished))
    is_whole = reader.ok() and reader.num_records() == count
    reader.close()
    if not is_whole:
        raise OSError(f"{path.name} could not be written whole; is the disk full?")
    unfinished.replace(path)


def _call(unfinished: pathlib.Path, action: Callable[..., Any], *args: Any) -> None:
    """Calls a method of the writer, which says RuntimeError where the disk is full."""
    try:
        action(*args)
    except RuntimeError as error:
        unfinished.unlink(missing_ok=True)
        what = " ".join(str(error).split())[:120]
        raise OSError(
            f"{unfinished.parent}: a shard could not be written whole ({what})"
        ) from None


def count_records(path: pathlib.Path) -> int:
    """Counts the records of a file.

    Raises:
      RuntimeError: it is no ArrayRecord, cut off, or empty.
    """
    reader = array_record_module.ArrayRecordReader(str(path))
    count = reader.num_records() if reader.ok() else 0
    reader.close()
    if not count:
        raise RuntimeError("no ArrayRecord, cut off, or empty")
    return count


class RecordFiles(Sequence[bytes]):
    """The records of several files as one list; read when they are asked for."""

    def __init__(self, paths: Sequence[pathlib.Path]):
        """Counts the records of each file.

        Raises:
          RuntimeError: a file is no ArrayRecord, cut off, or empty.
        """
        self.paths = tuple(paths)
        self._ends: list[int] = []
        for path in self.paths:
            try:
                self._ends.append(len(self) + count_records(path))
            except RuntimeError as error:
                raise RuntimeError(f"{path.name}: {error}") from None
        self._open = functools.lru_cache(len(self.paths))(self._opened)

    def __getstate__(self) -> dict[str, Any]:
        # A worker process opens files of its own.
        return {k: v for k, v in vars(self).items() if k != "_open"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._open = functools.lru_cache(len(self.paths))(self._opened)

    def _opened(self, file: int) -> Any:
        return array_record_module.ArrayRecordReader(str(self.paths[file]))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    @overload
    def __getitem__(self, number: int) -> bytes: ...
    @overload
    def __getitem__(self, number: slice) -> list[bytes]: ...

    def __getitem__(self, number: int | slice) -> bytes | list[bytes]:
        if isinstance(number, slice):
            return [self[i] for i in range(*number.indices(len(self)))]
        file, record = self._at(range(len(self))[number])
        return self._open(file).read([record])[0]

    def __iter__(self) -> Iterator[bytes]:
        for file, end in enumerate(self._ends):
            count = end - (self._ends[file - 1] if file else 0)
            for first in range(0, count, BATCH):
                yield from self._open(file).read(first, min(first + BATCH, count))

    def take(self, numbers: Sequence[int]) -> list[bytes]:
        """Reads several records, those of a file at once."""
        by_file: dict[int, list[tuple[int, int]]] = {}
        for place, number in enumerate(numbers):
            file, record = self._at(range(len(self))[number])
            by_file.setdefault(file, []).append((place, record))
        found = [b""] * len(numbers)
        for file, places in by_file.items():
            records = self._open(file).read([record for _, record in places])
            for (place, _), record in zip(places, records, strict=True):
                found[place] = record
        return found

    def where(self, number: int) -> str:
        """Names the place of a record for people: file and record, counted from 1."""
        file, record = self._at(number)
        return f"{self.paths[file].name}:{record + 1}"

    def _at(self, number: int) -> tuple[int, int]:
        file = bisect.bisect_right(self._ends, number)
        return file, number - (self._ends[file - 1] if file else 0)
