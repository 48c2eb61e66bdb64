# SPDX-License-Identifier: Apache-2.0
"""The shards that `ring curate` writes: rows that stay on disk until they are trained.

What the rows are is said by the manifest beside them: it holds the hash of each shard,
so that a start reads neither the shards to hash them nor, when their lengths are known,
any row. A shard that was cut or swapped has another size, and is refused; bits that
were lost inside it fail the checksums of its own format when they are read.
"""

import hashlib
import json
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NoReturn, overload

from absl import logging

from ring_jax.config import ConfigError, SourceConfig
from ring_jax.data.schema import Row, row_from_json
from ring_jax.data.sources.record_files import SUFFIX, RecordFiles, find_files
from ring_jax.data.sources.split import SourceRows, digest, prompt_of

MANIFEST = "manifest.json"
CANDIDATES = 64
"""First rows that are looked at for each row to hold out."""

_NUMBERED = re.compile(r"(.+)-\d{5}-of-(\d{5})" + re.escape(SUFFIX))


def read_shards(config: SourceConfig, *, name: str, seed: int) -> SourceRows:
    """Opens ArrayRecord files of rows: one file, a folder, or a pattern.

    The held-out rows are those of some prompts among the first rows, chosen by the
    prompts' text alone. Other rows of these prompts stay in the list of training rows,
    and whoever trains leaves them out: finding them would read every row.

    Raises:
      ConfigError: no file, a shard that is damaged, missing, or not the one that the
        manifest names; or a row that is looked at is bad.
    """
    del seed  # nothing is drawn
    where = f"data.sources.{name}"
    paths = find_files(config.path, suffix=SUFFIX) if config.path else []
    if not paths:
        raise ConfigError(
            f"{where}.path={config.path!r} names no file; give shards of ring curate, "
            f"such as 'runs/curated/maths-*{SUFFIX}', or their folder."
        )
    if pathlib.Path(str(config.path)) != paths[0]:
        _check_complete(paths, where)
    total = _digest(paths, where)
    try:
        records = RecordFiles(paths)
    except RuntimeError as error:
        _refuse(where, " ".join(str(error).split())[:200])
    if config.num_rows < len(records):
        logging.warning(
            "%s: the first %d of its %d rows are read, as num_rows says",
            where,
            config.num_rows,
            len(records),
        )
    rows = ShardRows(records, source=name)[: config.num_rows + config.num_heldout]
    return SourceRows(rows, _held_out(rows, config.num_heldout), total)


class ShardRows(Sequence[Row]):
    """Rows of shards, parsed and checked when they are asked for."""

    def __init__(self, records: RecordFiles, *, source: str, length: int | None = None):
        """Takes the first `length` records; None takes all."""
        self._records, self._source = records, source
        self._length = len(records) if length is None else min(length, len(records))

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, number: int) -> Row: ...
    @overload
    def __getitem__(self, number: slice) -> Sequence[Row]: ...

    def __getitem__(self, number: int | slice) -> Row | Sequence[Row]:
        if isinstance(number, int):
            number = range(len(self))[number]
            try:
                return self._row(number, self._records[number])
            except RuntimeError as error:
                raise self._lost(number, error) from None
        start, stop, step = number.indices(len(self))
        if start == 0 and step == 1:
            return ShardRows(self._records, source=self._source, length=stop)
        return [self[i] for i in range(start, stop, step)]

    def __iter__(self) -> Iterator[Row]:
        number = -1
        try:
            for number, record in zip(range(len(self)), self._records, strict=False):
                yield self._row(number, record)
        except RuntimeError as error:
            raise self._lost(number + 1, error) from None

    def _lost(self, number: int, error: RuntimeError) -> OSError:
        what = " ".join(str(error).split())[:200]
        return OSError(
            f"{self._records.where(number)} cannot be read ({what}); the shard is "
            "damaged: curate again."
        )

    def _row(self, number: int, record: bytes) -> Row:
        where = self._records.where(number)
        defaults = {
            "source": self._source,
            "domain": self._source,
            "licence": "NOASSERTION",
            "package": f"{where.partition(':')[0]}==local",
        }
        return row_from_json(record, where=where, defaults=defaults)


def _held_out(rows: Sequence[Row], count: int) -> list[Row]:
    by_prompt: dict[str, Row] = {}
    for row in rows[: CANDIDATES * count]:
        by_prompt.setdefault(prompt_of(row), row)
    return [by_prompt[prompt] for prompt in sorted(by_prompt, key=digest)[:count]]


def _check_complete(paths: Sequence[pathlib.Path], where: str) -> None:
    """Looks whether each numbered set of shards has all its numbers."""
    sets: dict[tuple[pathlib.Path, str, int], int] = {}
    for path in paths:
        if match := _NUMBERED.fullmatch(path.name):
            key = (path.parent, match[1], int(match[2]))
            sets[key] = sets.get(key, 0) + 1
    for (_, prefix, total), count in sets.items():
        if count != total:
            _refuse(where, f"{count} of the {total} shards of {prefix} are there")


def _digest(paths: Sequence[pathlib.Path], where: str) -> str:
    total = hashlib.blake2b(digest_size=16)
    for path in paths:
        total.update(_sha256(path, where).encode())
    return total.hexdigest()


def _sha256(path: pathlib.Path, where: str) -> str:
    manifest = path.with_name(MANIFEST)
    if not manifest.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    shard = _listed(manifest, where).get(path.name)
    if shard is None:
        _refuse(where, f"{path.name} is not in the {MANIFEST} beside it")
    if shard["num_bytes"] != path.stat().st_size:
        _refuse(
            where,
            f"{path.name} has {path.stat().st_size} bytes, {MANIFEST} says "
            f"{shard['num_bytes']}",
        )
    return shard["sha256"]


def _listed(manifest: pathlib.Path, where: str) -> Mapping[str, Mapping[str, Any]]:
    try:
        sources = json.loads(manifest.read_text(encoding="utf-8"))["sources"].values()
        return {
            shard["name"]: shard for source in sources for shard in source["shards"]
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        _refuse(where, f"{manifest} is no manifest of ring curate ({error!r})")


def _refuse(where: str, what: str) -> NoReturn:
    raise ConfigError(f"{where}: {what}; curate again, or name other shards.") from None
