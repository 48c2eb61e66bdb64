# SPDX-License-Identifier: Apache-2.0
"""Evaluation sets of a curation, and the rows that hold one of their items.

A set is a file of the user's, the held-out rows of a package's source, or one that a
package ships; what counts as holding an item is in `ring_jax/data/overlap.py`.
"""

import dataclasses
from collections.abc import Iterable, Sequence

from ring_jax.config import ConfigError, ContaminationConfig, RawSourceConfig
from ring_jax.curate.read import (
    SourceFile,
    describe,
    is_package,
    open_source,
    read_package,
)
from ring_jax.curate.rows import RawRecord, Rejection, reject
from ring_jax.data.evaluation_sets import is_evaluation_set, read_installed
from ring_jax.data.overlap import (
    Index,
    Overlap,
    QuestionSet,
    asked,
    build_index,
    find_overlaps,
)
from ring_jax.data.schema import Row

STEP = "contamination"
SHOWN_CHARACTERS = 300
"""Of an evaluation item."""

QUESTION_FIELDS = ("problem", "question", "prompt", "instruction", "text", "input")
"""Where evaluation files keep the question, the first that is there."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationSet:
    """What must not be trained on, and the files that it was read from."""

    name: str
    files: Sequence[SourceFile]
    items: Sequence[tuple[str, str]]
    """Id and question."""
    asks_for_calls: bool = False
    """As in `QuestionSet`."""


def read_evaluation_set(
    config: RawSourceConfig, *, name: str, seed: int, max_row_bytes: int
) -> EvaluationSet:
    """Reads the questions of a set; of a package's source, those of its held-out rows.

    Raises:
      ConfigError: the set is empty, or an item has no question: what cannot be read
        cannot be kept out of training.
    """
    if is_evaluation_set(config.kind):
        known = read_installed(config.kind)
        files = tuple(describe(path) for path in known.paths)
        return EvaluationSet(
            name=name,
            files=files,
            items=known.items,
            asks_for_calls=known.asks_for_calls,
        )
    if is_package(config):
        rows = read_package(config, name=name, seed=seed).heldout
        items = [(row.id, asked(row)) for row in rows]
        return EvaluationSet(name=name, files=(), items=items)
    opened = open_source(config, name=name, seed=seed, max_row_bytes=max_row_bytes)
    items = []
    for record in opened.read(0):
        if isinstance(record, Rejection):
            raise ConfigError(f"evaluation_sets.{name}: {record.id}: {record.detail}.")
        assert isinstance(record, RawRecord)
        items.append((record.where, question_of(record)))
    if not items:
        raise ConfigError(f"evaluation_sets.{name}: holds no item.")
    return EvaluationSet(name=name, files=opened.files, items=items)


def question_of(record: RawRecord) -> str:
    """Finds the question in a record of whatever form.

    Raises:
      ConfigError: there is none.
    """
    for name in QUESTION_FIELDS:
        if isinstance(text := record.fields.get(name), str) and text.strip():
            return text
    for name in ("messages", "conversations", "prompt"):
        if isinstance(turns := record.fields.get(name), list):
            asked = [
                turn.get("content", turn.get("value"))
                for turn in turns
                if isinstance(turn, dict)
                and turn.get("role", turn.get("from")) in ("user", "human")
            ]
            texts = [text for text in asked if isinstance(text, str)]
            if texts and len(texts) == len(asked):
                return "\n".join(texts)
    raise ConfigError(
        f"evaluation item {record.where}: has no question; fields "
        f"{sorted(record.fields)[:12]}, one of {QUESTION_FIELDS} must be a text."
    )


def index_of(
    evaluation_sets: Iterable[EvaluationSet], *, config: ContaminationConfig
) -> Index:
    """Indexes the questions of evaluation sets."""
    return build_index(
        (
            QuestionSet(
                name=known.name,
                items=known.items,
                asks_for_calls=known.asks_for_calls,
            )
            for known in evaluation_sets
        ),
        ngram=config.ngram,
        shortest_ngram=config.shortest_ngram,
        max_items_per_ngram=config.max_items_per_ngram,
    )


def find_contamination(rows: Sequence[Row], *, index: Index) -> list[Row | Rejection]:
    """Turns away rows that hold an evaluation item, and shows both."""
    found = find_overlaps(rows, index=index)
    return [
        row if overlap is None else _reject(row, overlap)
        for row, overlap in zip(rows, found, strict=True)
    ]


def _reject(row: Row, found: Overlap) -> Rejection:
    shown = found.question[:SHOWN_CHARACTERS]
    return reject(
        row,
        step=STEP,
        reason=found.evaluation_set,
        detail=f"shares with an evaluation item: {found.shared}",
        other=f"{found.evaluation_set}: {found.item}: {shown}",
    )
