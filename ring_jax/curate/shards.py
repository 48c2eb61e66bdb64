# SPDX-License-Identifier: Apache-2.0
"""The rows that are left, as ArrayRecord shards by source, and what they add up to."""

import collections
import dataclasses
import itertools
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence

from ring_jax.curate.chunks import Chunk
from ring_jax.curate.difficulty import band
from ring_jax.curate.duplicates import STEP as DUPLICATES
from ring_jax.curate.duplicates import Duplicate
from ring_jax.curate.quarantine import Quarantine
from ring_jax.curate.rows import reject
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
        self.topics.update(row.metadata.get("topics", ()))
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


def survivors(
    chunks: Iterable[Chunk],
    removed: Mapping[int, Duplicate],
    *,
    first: int,
    kept: dict[int, str],
    quarantine: Quarantine,
) -> Iterator[Row]:
    """Yields the rows of some chunks that stay; the others go to the quarantine.

    Args:
      chunks: in their order.
      removed: number of a row among all chunks -> why it goes.
      first: number of the first row of `chunks`.
      kept: rows that others were compared with; filled in as they pass.
      quarantine: takes what goes.
    """
    groups = {duplicate.kept for duplicate in removed.values()}
    number = first
    for chunk in chunks:
        for row in chunk.rows():
            if number in groups:
                shown = " ".join(conversation_text(row).split())
                kept[number] = f"{row.id}: {shown[:SHOWN_CHARACTERS]}"
            if duplicate := removed.get(number):
                other = kept[duplicate.kept]
                quarantine.add(
                    reject(
                        row,
                        step=DUPLICATES,
                        reason=duplicate.reason,
                        detail=duplicate.detail,
                        other=other,
                    )
                )
            else:
                yield row
            number += 1


def write_shards(
    rows: Iterable[Row], names: Sequence[str], *, num_rows: int, folder: pathlib.Path
) -> list[pathlib.Path]:
    """Writes rows as shards of `num_rows`; a shard that is there stays as it is."""
    shards = []
    remaining = iter(rows)
    for name in names:
        records = [
            row_to_json(row).encode() for row in itertools.islice(remaining, num_rows)
        ]
        if not (folder / name).exists():
            write_records(folder / name, records)
        shards.append(folder / name)
    assert next(remaining, None) is None, "more rows than were counted"
    return shards


def shard_names(source: str, *, kept: int, num_rows: int) -> list[str]:
    """Names the shards of a source, such as `maths-00000-of-00002.array_record`."""
    count = -(-kept // num_rows)
    return [f"{source}-{n:05d}-of-{count:05d}.array_record" for n in range(count)]
