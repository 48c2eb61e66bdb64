# SPDX-License-Identifier: Apache-2.0
"""Chunks: so many raw records of one source, taken through every step of their own.

A chunk is a pure function of its records and the settings. Its folder holds what is
left (`rows.jsonl`), what it is compared by (`keys.npy`, `signatures.npy`), what was
turned away (`quarantine.jsonl`) and the counts (`report.json`). So chunks may be made
in any order, by any number of processes, and a finished one is never made again.
"""

import collections
import dataclasses
import itertools
import json
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ring_jax.config import ConfigError, CurateConfig, RawSourceConfig
from ring_jax.curate import duplicates, forms, read
from ring_jax.curate.quarantine import rejection_to_json
from ring_jax.curate.read import OpenSource
from ring_jax.curate.rows import RawRecord, Rejection, Step
from ring_jax.curate.workbench import Workbench
from ring_jax.data.output_folder import new_folder, write_whole
from ring_jax.data.schema import Row, row_from_json, row_to_json


@dataclasses.dataclass(frozen=True, slots=True)
class Chunk:
    """A finished chunk on disk."""

    folder: pathlib.Path
    source: str
    num_records: int
    num_rows: int
    is_last: bool
    """No record follows in its source."""
    steps: Mapping[str, Mapping[str, Any]]
    """Step -> rows in, rows out, rows changed, removals by reason."""

    def rows(self, first: int, last: int) -> Iterator[Row]:
        """Reads rows that are left, from the chunk's `first` to before `last`."""
        lines = _lines(self.folder / "rows.jsonl")
        for line in itertools.islice(lines, first, last):
            yield row_from_json(line, where=self.folder.name, defaults={})

    def rejections(self) -> Iterator[Rejection]:
        """Reads what was turned away, in the order of the records."""
        for line in _lines(self.folder / "quarantine.jsonl"):
            yield Rejection(**json.loads(line))

    def keys(self) -> duplicates.Keys:
        """Opens the keys; the signatures stay on disk."""
        return duplicates.Keys(
            np.load(self.folder / "keys.npy", allow_pickle=False),
            np.load(self.folder / "signatures.npy", mmap_mode="r", allow_pickle=False),
        )


def _lines(path: pathlib.Path) -> Iterator[str]:
    with path.open(encoding="utf-8", newline="\n") as file:
        yield from file


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ChunkJob:
    """A chunk to be made, or found finished; it may be sent to another process."""

    path: pathlib.Path
    source: str
    settings: RawSourceConfig
    records: Sequence[RawRecord | Rejection | Row]
    """Empty where the chunk is finished."""
    is_last: bool

    def __str__(self) -> str:
        return self.path.name

    def run(self, workbench: Workbench) -> Chunk:
        """Makes the chunk with the workbench's steps, where it is not there."""
        if not self.path.exists():
            made = examine(self, workbench.steps)
            _write_chunk(self.path, made, config=workbench.config, is_last=self.is_last)
        return open_chunk(self.path, self.source)


def chunk_jobs(
    source: OpenSource, *, chunk_rows: int, folder: pathlib.Path
) -> Iterator[ChunkJob]:
    """Yields the chunks of a source in order, with the records of unfinished ones.

    Raises:
      ConfigError: the source holds no record.
    """

    def make(number: int, records: Sequence[Any], *, is_last: bool) -> ChunkJob:
        path = _place(folder, source.name, number)
        # Of several workers, a later chunk's may have been the faster.
        return ChunkJob(
            path=path,
            source=source.name,
            settings=source.config,
            records=() if path.exists() else records,
            is_last=is_last,
        )

    first = number = 0
    while (path := _place(folder, source.name, number)).exists():
        finished = open_chunk(path, source.name)
        yield make(number, (), is_last=finished.is_last)
        if finished.is_last:
            return
        first, number = first + finished.num_records, number + 1
    records = source.read(first)
    batch = list(itertools.islice(records, chunk_rows))
    if not first + len(batch):
        raise ConfigError(f"sources.{source.name}: holds no record; leave it out.")
    while True:
        following = list(itertools.islice(records, 1))
        yield make(number, batch, is_last=not following)
        if not following:
            return
        batch = [*following, *itertools.islice(records, chunk_rows - 1)]
        number += 1


def _place(folder: pathlib.Path, source: str, number: int) -> pathlib.Path:
    return folder / f"{source}-{number:06d}"


def open_chunk(folder: pathlib.Path, source: str) -> Chunk:
    """Reads the counts of a finished chunk."""
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    return Chunk(folder, source, **report)


@dataclasses.dataclass(frozen=True, slots=True)
class Examined:
    """What came of the records of a chunk."""

    num_records: int
    rows: Sequence[Row]
    rejections: Sequence[Rejection]
    steps: Mapping[str, Mapping[str, Any]]


def examine(job: ChunkJob, steps: Mapping[str, Step]) -> Examined:
    """Takes records through reading, normalisation and every step, in memory."""
    records = job.records
    table: dict[str, dict[str, Any]] = {}
    rejections: list[Rejection] = []

    def sort_out(
        name: str, num_in: int, results: Iterable[Row | Rejection]
    ) -> list[Row]:
        rows: list[Row] = []
        removed: collections.Counter[str] = collections.Counter()
        for result in results:
            if isinstance(result, Rejection):
                rejections.append(result)
                removed[result.reason] += 1
            else:
                rows.append(result)
        table[name] = {
            "rows_in": num_in,
            "rows_out": len(rows),
            "removed": dict(sorted(removed.items())),
        }
        return rows

    read_well = [record for record in records if not isinstance(record, Rejection)]
    unread = [record for record in records if isinstance(record, Rejection)]
    sort_out(read.STEP, len(records), unread)
    table[read.STEP]["rows_out"] = len(read_well)
    rows = sort_out(forms.STEP, len(read_well), _normalised(read_well, job))
    for name, step in steps.items():
        rows = sort_out(name, len(rows), step(rows))
    return Examined(len(records), rows, rejections, table)


def _normalised(
    records: Iterable[RawRecord | Row], job: ChunkJob
) -> Iterator[Row | Rejection]:
    for record in records:
        if isinstance(record, Row):
            yield record
        else:
            yield forms.normalise(record, job.settings, source=job.source)


def _write_chunk(
    path: pathlib.Path, made: Examined, *, config: CurateConfig, is_last: bool
) -> None:
    keys = duplicates.compute_keys(made.rows, config=config.duplicates)
    report = {
        "num_records": made.num_records,
        "num_rows": len(made.rows),
        "is_last": is_last,
        "steps": made.steps,
    }
    with new_folder(path) as folder:
        np.save(folder / "keys.npy", keys.keys, allow_pickle=False)
        np.save(folder / "signatures.npy", keys.signatures, allow_pickle=False)
        write_whole(folder / "rows.jsonl", _jsonl(map(row_to_json, made.rows)))
        lines = (rejection_to_json(item) for item in made.rejections)
        write_whole(folder / "quarantine.jsonl", _jsonl(lines))
        write_whole(folder / "report.json", json.dumps(report) + "\n")


def _jsonl(lines: Iterable[str]) -> str:
    return "".join(f"{line}\n" for line in lines)
