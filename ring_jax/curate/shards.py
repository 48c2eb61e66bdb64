# SPDX-License-Identifier: Apache-2.0
"""The rows that are left, as ArrayRecord shards by source, and what they add up to."""

import collections
import dataclasses
import itertools
import pathlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from ring_jax.curate.chunks import Chunk
from ring_jax.curate.difficulty import band
from ring_jax.curate.duplicates import STEP as DUPLICATES
from ring_jax.curate.duplicates import Duplicate
from ring_jax.curate.rows import Rejection, reject
from ring_jax.curate.workbench import Workbench
from ring_jax.data.schema import Row, conversation_text, row_to_json
from ring_jax.data.sources.record_files import write_records

SHOWN_CHARACTERS = 200
"""Of the row that a duplicate was compared with."""


@dataclasses.dataclass(kw_only=True)
class Tally:
    """Counts over the rows that are left."""

    cells: collections.Counter[tuple[str, str]] = dataclasses.field(
        default_factory=collections.Counter
    )
    """(domain, difficulty band) -> rows."""
    topics: collections.Counter[str] = dataclasses.field(
        default_factory=collections.Counter
    )
    licences: collections.Counter[str] = dataclasses.field(
        default_factory=collections.Counter
    )
    packages: dict[str, set[str]] = dataclasses.field(
        default_factory=lambda: collections.defaultdict(set)
    )
    """Source -> packages that its rows name."""
    characters: collections.Counter[str] = dataclasses.field(
        default_factory=collections.Counter
    )
    """Token class -> characters."""

    def add(self, row: Row) -> Row:
        """Counts a row, and returns it."""
        self.cells[row.domain, band(row.difficulty)] += 1
        self.topics.update(_topics(row))
        self.licences[row.licence] += 1
        self.packages[row.source].add(row.package)
        self.characters["text"] += len(row.text)
        for turn in row.messages[:-1]:
            self.characters["prompt"] += len(turn.content) + len(turn.think)
        if row.messages:
            self.characters["think"] += len(row.reply.think)
            self.characters["answer"] += len(row.reply.content)
            calls = [call.to_json() for call in row.reply.tool_calls]
            self.characters["tool"] += sum(map(len, calls))
        return row

    def merge(self, later: "Tally") -> None:
        """Adds the counts of rows that come behind these."""
        self.cells.update(later.cells)
        self.topics.update(later.topics)
        self.licences.update(later.licences)
        self.characters.update(later.characters)
        for source, packages in later.packages.items():
            self.packages[source] |= packages


def _topics(row: Row) -> list[str]:
    """Returns a row's topics: ours, or without a taxonomy what its author wrote."""
    topics = row.metadata.get("topics", ())
    if not isinstance(topics, list | tuple):
        return []
    return [topic for topic in topics if isinstance(topic, str)]


@dataclasses.dataclass(kw_only=True, slots=True)
class Written:
    """What came of the rows of one shard."""

    tally: Tally = dataclasses.field(default_factory=Tally)
    shown: dict[int, str] = dataclasses.field(default_factory=dict)
    """Number of a row that others were compared with -> its id and beginning."""
    rejections: list[tuple[int, Rejection]] = dataclasses.field(default_factory=list)
    """Rows that went, in their order, each behind the number of its earlier row."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ShardJob:
    """Some rows in their order, of which those that stay become one shard.

    Rows are numbered among all chunks of the curation.
    """

    source: str
    path: pathlib.Path | None
    """None where no row stays."""
    parts: Sequence[tuple[Chunk, int, int]]
    """Chunks with the first of their rows, and the one behind the last."""
    first: int
    """Number of the first row."""
    removed: Mapping[int, Duplicate]
    """Number of a row that goes -> why."""
    compared: frozenset[int]
    """Numbers of rows that others were compared with."""

    def __str__(self) -> str:
        return self.path.name if self.path else f"rows from number {self.first} on"

    def run(self, workbench: Workbench) -> Written:
        """Writes the shard; one that is there stays as it is."""
        del workbench
        written = Written()
        records = [row_to_json(row).encode() for row in self._survivors(written)]
        if self.path and not self.path.exists():
            write_records(self.path, records)
        return written

    def _survivors(self, written: Written) -> Iterator[Row]:
        rows = (row for chunk, *ends in self.parts for row in chunk.rows(*ends))
        for number, row in enumerate(rows, self.first):
            if number in self.compared:
                text = " ".join(conversation_text(row).split())
                written.shown[number] = f"{row.id}: {text[:SHOWN_CHARACTERS]}"
            if duplicate := self.removed.get(number):
                rejection = reject(
                    row,
                    step=DUPLICATES,
                    reason=duplicate.reason,
                    detail=duplicate.detail,
                )
                written.rejections.append((duplicate.kept, rejection))
            else:
                yield written.tally.add(row)


def shard_jobs(
    chunks: Sequence[Chunk],
    removed: Mapping[int, Duplicate],
    *,
    num_rows: int,
    folder: pathlib.Path,
) -> Iterator[ShardJob]:
    """Yields the shards of all sources, `num_rows` in each but the last of a source."""
    compared = np.array(sorted({item.kept for item in removed.values()}), np.int64)
    going = np.array(sorted(removed), np.int64)
    first = 0
    for source, group in itertools.groupby(chunks, key=lambda chunk: chunk.source):
        own = list(group)
        last = first + sum(chunk.num_rows for chunk in own)
        for path, start, end in _cuts(
            source, first, last, going, num_rows=num_rows, folder=folder
        ):
            yield ShardJob(
                source=source,
                path=path,
                parts=list(_parts(own, start - first, end - first)),
                first=start,
                removed={n: removed[n] for n in _between(going, start, end)},
                compared=frozenset(_between(compared, start, end)),
            )
        first = last


def _cuts(
    source: str,
    first: int,
    last: int,
    going: np.ndarray,
    *,
    num_rows: int,
    folder: pathlib.Path,
) -> Iterator[tuple[pathlib.Path | None, int, int]]:
    """Cuts the rows of a source before each row that begins a shard."""
    numbers = np.arange(first, last)
    numbers = np.delete(numbers, np.array(_between(going, first, last), int) - first)
    names = shard_names(source, kept=len(numbers), num_rows=num_rows)
    starts = [first, *numbers[num_rows::num_rows].tolist()]
    paths = [folder / name for name in names] or [None]
    yield from zip(paths, starts, [*starts[1:], last], strict=True)


def _between(numbers: np.ndarray, first: int, last: int) -> list[int]:
    """Returns those of sorted numbers that are in [first, last)."""
    start, end = np.searchsorted(numbers, [first, last])
    return numbers[start:end].tolist()


def _parts(
    chunks: Sequence[Chunk], first: int, last: int
) -> Iterator[tuple[Chunk, int, int]]:
    """Yields the chunks that hold rows [first, last) of a source, and which of each."""
    before = 0
    for chunk in chunks:
        start, end = max(first - before, 0), min(last - before, chunk.num_rows)
        if start < end:
            yield chunk, start, end
        before += chunk.num_rows


def shard_names(source: str, *, kept: int, num_rows: int) -> list[str]:
    """Names the shards of a source, such as `maths-00000-of-00002.array_record`."""
    count = -(-kept // num_rows)
    return [f"{source}-{n:05d}-of-{count:05d}.array_record" for n in range(count)]
