# SPDX-License-Identifier: Apache-2.0
"""The start gate's look at the rows: none that is trained may hold an evaluation item.

This is the one check of a start that reads rows. What it found is kept in the run
folder under a hash of the rows and of the sets, so that a later start reads none.
"""

import dataclasses
import functools
import hashlib
import itertools
import json
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from absl import logging

from ring_jax.config import ConfigError, EvaluationSetsConfig, RunConfig
from ring_jax.data.evaluation_sets import (
    PACKAGED,
    check_name,
    digest_of,
    is_installed,
    read_installed,
)
from ring_jax.data.overlap import (
    Index,
    Overlap,
    QuestionSet,
    build_index,
    find_overlaps,
)
from ring_jax.data.prepared import PreparedData
from ring_jax.data.schema import Row

VERSION = 1
"""Of the comparison; what another version found is looked for again."""
NUM_TOGETHER = 256
"""Rows that are compared at once: words of ten thousand each are some 20 MB."""
SHOWN_CHARACTERS = 160
"""Of an evaluation item, in a message of one line."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """What the rows of one source share with one evaluation set."""

    evaluation_set: str
    rows: int
    """Rows that hold an item; of the sets that a row holds, the first counts."""
    row: str
    """Id of the first of them."""
    item: str
    question: str
    """The beginning of the item."""
    shared: str
    """The words that both have."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class SourceOverlap:
    """What was found in a source."""

    digest: str
    """Hash of its rows, of the sets, and of how they were compared."""
    rows: int
    """That were looked at."""
    found: Sequence[Found]


def check(
    config: RunConfig, data: PreparedData, workdir: str | os.PathLike[str]
) -> dict[str, SourceOverlap]:
    """Looks for items of the installed evaluation sets in the rows that are trained.

    Args:
      config: of the run.
      data: its data.
      workdir: a run folder to look for what an earlier start found.

    Returns:
      What was found, by source, for `save`.

    Raises:
      ConfigError: a row holds an item of a set that is refused; one line with the
        counts by source, a row, the item and what both share. Or a set that the
        settings name is not installed.
    """
    settings = config.data.evaluation_sets
    refused, allowed = (
        _chosen(settings, policy=policy) for policy in ("refuse", "allow")
    )
    if not refused and not allowed:
        return {}
    trained = dict.fromkeys(s for st in config.stages.values() for s in st.sources)
    keys = {name: _key(settings, data, name, [*refused, *allowed]) for name in trained}
    overlaps = {name: kept_overlap(workdir, name, keys[name]) for name in trained}
    if missing := [name for name, overlap in overlaps.items() if overlap is None]:
        # Of a row with items of both kinds, the one that is refused counts.
        lengths = (
            settings.ngram,
            settings.shortest_ngram,
            settings.max_items_per_ngram,
        )
        indexes = [_index(tuple(n), *lengths) for n in (refused, allowed) if n]
        for name in missing:
            overlaps[name] = _look(data, name, indexes=indexes, digest=keys[name])
    result = {name: overlap for name, overlap in overlaps.items() if overlap}
    _judge(result, refused=set(refused))
    return result


def save(
    overlaps: Mapping[str, SourceOverlap], workdir: str | os.PathLike[str]
) -> None:
    """Keeps what was found, so that another start of the same rows need not look."""
    for name, overlap in overlaps.items():
        path = _path(workdir, name, overlap.digest)
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            text = json.dumps(dataclasses.asdict(overlap), indent=2)
            path.with_suffix(".part").write_text(text + "\n", encoding="utf-8")
            path.with_suffix(".part").replace(path)


def kept_overlap(
    workdir: str | os.PathLike[str], name: str, digest: str
) -> SourceOverlap | None:
    """Reads what an earlier start found; None where none has looked.

    Raises:
      ConfigError: the file is damaged.
    """
    path = _path(workdir, name, digest)
    if not path.is_file():
        return None
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        found = [Found(**item) for item in fields.pop("found")]
        return SourceOverlap(found=found, **fields)
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{path} cannot be read ({error!r}); delete it, and the rows of {name} are "
            "looked through again."
        ) from None


def _chosen(settings: EvaluationSetsConfig, *, policy: str) -> list[str]:
    """Names the sets of one policy; those that nobody named may be absent."""
    for name in settings.overlap_of:
        check_name(name)
    chosen = [
        name
        for name in PACKAGED
        if settings.overlap_of.get(name, settings.overlap) == policy
    ]
    here = [n for n in chosen if n in settings.overlap_of or is_installed(n)]
    if absent := sorted(set(chosen) - set(here)):
        logging.info(
            "evaluation sets %s are not installed and not looked for", ", ".join(absent)
        )
    return here


@functools.lru_cache(4)
def _index(names: Sequence[str], *lengths: int) -> Index:
    """Indexes sets; several runs of a process look for the same ones."""
    ngram, shortest_ngram, max_items_per_ngram = lengths
    sets = [read_installed(name) for name in names]
    return build_index(
        (
            QuestionSet(
                name=known.name,
                items=known.items,
                asks_for_calls=known.asks_for_calls,
            )
            for known in sets
        ),
        ngram=ngram,
        shortest_ngram=shortest_ngram,
        max_items_per_ngram=max_items_per_ngram,
    )


def _key(
    settings: EvaluationSetsConfig,
    data: PreparedData,
    name: str,
    sets: Sequence[str],
) -> str:
    parts: list[Any] = [
        VERSION,
        data.row_digests[name],
        dataclasses.asdict(settings),
        [digest_of(known) for known in sets],
    ]
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=8).hexdigest()


def _look(
    data: PreparedData, name: str, *, indexes: Sequence[Index], digest: str
) -> SourceOverlap:
    found: dict[str, Found] = {}
    rows = 0
    for row, hit in _overlaps(_trained(data, name), indexes):
        rows += 1
        if hit is None:
            continue
        known = hit.evaluation_set
        first = found.get(known) or Found(
            evaluation_set=known,
            rows=0,
            row=row.id,
            item=hit.item,
            question=" ".join(hit.question.split())[:SHOWN_CHARACTERS],
            shared=" ".join(hit.shared.split())[:SHOWN_CHARACTERS],
        )
        found[known] = dataclasses.replace(first, rows=first.rows + 1)
    return SourceOverlap(digest=digest, rows=rows, found=list(found.values()))


def _overlaps(
    rows: Iterable[Row], indexes: Sequence[Index]
) -> Iterator[tuple[Row, Overlap | None]]:
    for chunk in itertools.batched(rows, NUM_TOGETHER):
        found = [find_overlaps(chunk, index=index) for index in indexes]
        for row, *hits in zip(chunk, *found, strict=True):
            yield row, next(filter(None, hits), None)


def _trained(data: PreparedData, name: str) -> Iterator[Row]:
    """Gives the rows that some packed row holds, in their order."""
    wanted = iter(np.unique(data.origins[name]).tolist())
    at = next(wanted, None)
    for number, row in enumerate(data.sources[name].train):
        if at is None:
            return
        if number == at:
            yield row
            at = next(wanted, None)


def _judge(overlaps: Mapping[str, SourceOverlap], *, refused: set[str]) -> None:
    counts, first = [], None
    for name, overlap in overlaps.items():
        for found in overlap.found:
            known = found.evaluation_set
            told = f"{name}: {found.rows} of {overlap.rows} rows, {known}"
            pair = (
                f"row {found.row} and item {found.item} of {known} "
                f"({found.question!r}) share: {found.shared}"
            )
            if known in refused:
                counts.append(told)
                first = first or (known, pair)
            else:
                logging.warning("evaluation items are trained, as allowed: %s", told)
                logging.warning("  %s", pair)
    if first:
        raise ConfigError(
            f"rows that hold evaluation items: {'; '.join(counts)}. {first[1]}. Drop "
            "them (ring curate does, with the set in evaluation_sets), or allow it "
            f'with data.evaluation_sets.overlap_of={{"{first[0]}": "allow"}}.'
        )


def _path(workdir: str | os.PathLike[str], name: str, digest: str) -> pathlib.Path:
    return pathlib.Path(workdir) / "lengths" / f"{name}-{digest}.overlap.json"
