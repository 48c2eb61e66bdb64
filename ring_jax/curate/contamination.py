# SPDX-License-Identifier: Apache-2.0
"""Overlap with evaluation sets: no row may hold a question that the model is asked.

An item is found in a row by any of three signs:

  1. `ngram` words in sequence that both have, unless so many items share them that
     they are a template's wording;
  2. the whole item inside the row, for items of fewer than `ngram` words;
  3. the whole prompt, sign for sign, whatever its length.

Case and blanks do not count, nor does punctuation in 1 and 2.

Source: 13-grams as in GPT-3's report (arXiv:2005.14165, appendix C).
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from ring_jax.config import ConfigError, ContaminationConfig, RawSourceConfig
from ring_jax.curate import words
from ring_jax.curate.read import SourceFile, is_package, open_source, read_package
from ring_jax.curate.rows import RawRecord, Rejection, conversation_text, reject
from ring_jax.data.schema import Row

STEP = "contamination"
_SHOWN_CHARACTERS = 300

QUESTION_FIELDS = ("problem", "question", "prompt", "instruction", "text", "input")
"""Where evaluation files keep the question, the first that is there."""


@dataclasses.dataclass(frozen=True, slots=True)
class Items:
    """n-grams of one length, sorted, with the evaluation item of each."""

    hashes: np.ndarray
    """u64[number of different n-grams]."""
    owners: np.ndarray
    """i64 of the same length: number of an item."""

    def find(self, hashes: np.ndarray) -> tuple[int, int] | None:
        """Finds the first of some n-grams that an item has: its place, and the item."""
        if not len(self.hashes) or not len(hashes):
            return None
        places = np.searchsorted(self.hashes, hashes)
        places[places == len(self.hashes)] = 0
        hits = np.flatnonzero(self.hashes[places] == hashes)
        return (int(hits[0]), int(self.owners[places[hits[0]]])) if len(hits) else None


@dataclasses.dataclass(frozen=True, slots=True)
class Index:
    """All evaluation sets in use."""

    names: Sequence[str]
    """Set and id of each item."""
    texts: Sequence[str]
    ngrams: Mapping[int, Items]
    """Length in words -> n-grams of that length."""
    prompts: Items
    """Hashes of whole prompts."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationSet:
    """What must not be trained on."""

    name: str
    files: Sequence[SourceFile]
    items: Sequence[tuple[str, str]]
    """Id and question."""


def read_evaluation_set(
    config: RawSourceConfig, *, name: str, seed: int, max_row_bytes: int
) -> EvaluationSet:
    """Reads the questions of a set; of a package, those of its held-out rows.

    Raises:
      ConfigError: the set is empty, or an item has no question: what cannot be read
        cannot be kept out of training.
    """
    if is_package(config):
        rows = read_package(config, name=name, seed=seed).heldout
        items = [(row.id, _asked(row)) for row in rows]
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


def build_index(
    evaluation_sets: Iterable[EvaluationSet], *, config: ContaminationConfig
) -> Index:
    """Indexes the questions of evaluation sets."""
    names, texts = [], []
    by_length: dict[int, list[tuple[np.ndarray, int]]] = {}
    prompts = []
    for evaluation_set in evaluation_sets:
        long: list[tuple[np.ndarray, int]] = []
        for item_id, question in evaluation_set.items:
            number = len(names)
            names.append(f"{evaluation_set.name}: {item_id}")
            texts.append(question)
            hashes = words.hash_words(question)
            prompts.append((_whole(question), number))
            if len(hashes) >= config.ngram:
                long.append((words.hash_ngrams(hashes, config.ngram), number))
            elif len(hashes) >= config.shortest_ngram:
                whole = words.hash_ngrams(hashes, len(hashes))
                by_length.setdefault(len(hashes), []).append((whole, number))
        by_length.setdefault(config.ngram, []).extend(
            _without_templates(long, limit=config.max_items_per_ngram)
        )
    ngrams = {size: _sorted(parts) for size, parts in sorted(by_length.items())}
    return Index(names, texts, ngrams, _sorted(prompts))


def find_contamination(rows: Sequence[Row], *, index: Index) -> list[Row | Rejection]:
    """Turns away rows that hold an evaluation item, and shows both."""
    return [_check(row, index) for row in rows]


def _check(row: Row, index: Index) -> Row | Rejection:
    hashes = words.hash_words(conversation_text(row))
    if found := index.prompts.find(_whole(_asked(row))):
        return _reject(row, index, found[1], "its whole prompt")
    for size, items in index.ngrams.items():
        if found := items.find(words.hash_ngrams(hashes, size)):
            place, item = found
            shared = words.words(conversation_text(row))[place : place + size]
            return _reject(row, index, item, " ".join(shared))
    return row


def _reject(row: Row, index: Index, item: int, shared: str) -> Rejection:
    return reject(
        row,
        step=STEP,
        reason=index.names[item].partition(":")[0],
        detail=f"shares with an evaluation item: {shared}",
        other=f"{index.names[item]}: {index.texts[item][:_SHOWN_CHARACTERS]}",
    )


def _asked(row: Row) -> str:
    """The question alone: a system turn is the set's wording, not the item's."""
    asked = [turn.content for turn in row.messages[:-1] if turn.role != "system"]
    return row.text or "\n".join(asked)


def _whole(prompt: str) -> np.ndarray:
    """Hashes a whole prompt, punctuation and all: u64[1]."""
    plain = " ".join(prompt.casefold().split())
    return np.array([words.digest64(plain.encode())], np.uint64)


def _without_templates(
    parts: Sequence[tuple[np.ndarray, int]], *, limit: int
) -> list[tuple[np.ndarray, int]]:
    if not parts:
        return []
    every = np.concatenate([np.unique(hashes) for hashes, _ in parts])
    found, counts = np.unique(every, return_counts=True)
    templates = found[counts > limit]
    return [(hashes[~np.isin(hashes, templates)], number) for hashes, number in parts]


def _sorted(parts: Sequence[tuple[np.ndarray, int]]) -> Items:
    if not parts:
        return Items(np.empty(0, np.uint64), np.empty(0, np.int64))
    hashes = np.concatenate([part for part, _ in parts])
    owners = np.concatenate([np.full(len(part), n, np.int64) for part, n in parts])
    different, first = np.unique(hashes, return_index=True)
    return Items(different, owners[first])
