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

from ring_jax.config import CurateConfig
from ring_jax.curate import duplicates, forms, read
from ring_jax.curate.quarantine import rejection_to_json
from ring_jax.curate.read import OpenSource
from ring_jax.curate.rows import RawRecord, Rejection, Step
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

    def rows(self) -> Iterator[Row]:
        """Reads the rows that are left."""
        for line in _lines(self.folder / "rows.jsonl"):
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


def finish_chunks(
    source: OpenSource,
    steps: Mapping[str, Step],
    *,
    config: CurateConfig,
    folder: pathlib.Path,
) -> Iterator[Chunk]:
    """Yields the chunks of a source in order, made now or found finished."""
    first = number = 0
    while (path := _place(folder, source.name, number)).exists():
        yield (chunk := open_chunk(path, source.name))
        if chunk.is_last:
            return
        first, number = first + chunk.num_records, number + 1
    records = source.read(first)
    batch = list(itertools.islice(records, config.chunk_rows))
    while True:
        following = list(itertools.islice(records, 1))
        path = _place(folder, source.name, number)
        made = examine(batch, source, steps)
        _write_chunk(path, made, config=config, is_last=not following)
        yield open_chunk(path, source.name)
        if not following:
            return
        batch = [*following, *itertools.islice(records, config.chunk_rows - 1)]
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


def examine(
    records: Sequence[RawRecord | Rejection | Row],
    source: OpenSource,
    steps: Mapping[str, Step],
) -> Examined:
    """Takes records through reading, normalisation and every step, in memory."""
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
    rows = sort_out(forms.STEP, len(read_well), _normalised(read_well, source))
    for name, step in steps.items():
        rows = sort_out(name, len(rows), step(rows))
    return Examined(len(records), rows, rejections, table)


def _normalised(
    records: Iterable[RawRecord | Row], source: OpenSource
) -> Iterator[Row | Rejection]:
    for record in records:
        if isinstance(record, Row):
            yield record
        else:
            yield forms.normalise(record, source.config, source=source.name)


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
