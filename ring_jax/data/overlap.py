# SPDX-License-Identifier: Apache-2.0
"""Overlap with evaluation sets: no row may hold a question that the model is asked.

An item is found in a row by any of three signs:

  1. `ngram` words in sequence that both have, unless so many items share them that
     they are a template's wording;
  2. the whole item inside the row, for items of fewer than `ngram` words;
  3. the whole prompt, sign for sign, whatever its length.

Short items of a set that asks for function calls count in rows that call functions.

Case and blanks do not count, nor do punctuation and the signs around a formula in
1 and 2.

Source: 13-grams as in GPT-3's report (arXiv:2005.14165, appendix C).
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from ring_jax.data import words
from ring_jax.data.schema import Row, conversation_text


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class QuestionSet:
    """What must not be trained on."""

    name: str
    items: Sequence[tuple[str, str]]
    """Id and question."""
    asks_for_calls: bool = False
    """An item is a question with functions to call: a short question means nothing in
    a row that calls none (many ask for the capital of France)."""


@dataclasses.dataclass(frozen=True, slots=True)
class Items:
    """n-grams of one length, sorted, with the evaluation item of each."""

    hashes: np.ndarray
    """u64[number of different n-grams]."""
    owners: np.ndarray
    """i64 of the same length: number of an item."""

    def find(self, hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Finds the n-grams that items have: i64[hits] places, and the items."""
        if not len(self.hashes) or not len(hashes):
            return np.empty(0, np.int64), np.empty(0, np.int64)
        at = np.searchsorted(self.hashes, hashes)
        at[at == len(self.hashes)] = 0
        places = np.flatnonzero(self.hashes[at] == hashes)
        return places, self.owners[at[places]]


@dataclasses.dataclass(frozen=True, slots=True)
class Table:
    """n-grams and prompts of the items that some rows are compared with."""

    ngrams: Mapping[int, Items]
    """Length in words -> n-grams of that length."""
    prompts: Items
    """Hashes of whole prompts."""


@dataclasses.dataclass(frozen=True, slots=True)
class Index:
    """All evaluation sets in use."""

    names: Sequence[tuple[str, str]]
    """Set and id of each item."""
    texts: Sequence[str]
    of_all: Table
    """For every row."""
    of_calls: Table
    """For rows that call functions: short items of sets that ask for calls."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Overlap:
    """An item that a row holds."""

    evaluation_set: str
    item: str
    """Id of the item in its set."""
    question: str
    shared: str
    """The words that both have."""


def build_index(
    sets: Iterable[QuestionSet],
    *,
    ngram: int,
    shortest_ngram: int,
    max_items_per_ngram: int,
) -> Index:
    """Indexes the questions of evaluation sets.

    Args:
      sets: all of them.
      ngram: words that a row and an item must share in sequence.
      shortest_ngram: words of the shortest items that are looked for inside a row.
      max_items_per_ngram: an n-gram of more items of a set is a template's wording.
    """
    names, texts = [], []
    of_all, of_calls = _Parts(), _Parts()
    for known in sets:
        first = len(names)
        names += [(known.name, item_id) for item_id, _ in known.items]
        texts += [question for _, question in known.items]
        long: dict[int, np.ndarray] = {}
        for number in range(first, len(texts)):
            hashes = words.hash_words(texts[number])
            is_short = len(hashes) < ngram
            parts = of_calls if is_short and known.asks_for_calls else of_all
            parts.prompts.append((_whole(texts[number]), np.array([number])))
            if not is_short:
                long[number] = hashes
            elif len(hashes) >= shortest_ngram:
                whole = words.hash_ngrams(hashes, len(hashes))
                parts.add(len(hashes), whole, np.array([number]))
        if long:
            of_all.add(ngram, *_telling_ngrams(long, ngram, limit=max_items_per_ngram))
    return Index(names, texts, of_all.table(), of_calls.table())


@dataclasses.dataclass(frozen=True, slots=True)
class _Parts:
    """Hashes with the item that each belongs to, as they are gathered."""

    prompts: list[tuple[np.ndarray, np.ndarray]] = dataclasses.field(
        default_factory=list
    )
    by_length: dict[int, list[tuple[np.ndarray, np.ndarray]]] = dataclasses.field(
        default_factory=dict
    )

    def add(self, length: int, hashes: np.ndarray, owners: np.ndarray) -> None:
        self.by_length.setdefault(length, []).append((hashes, owners))

    def table(self) -> Table:
        ngrams = {n: _sorted(parts) for n, parts in sorted(self.by_length.items())}
        return Table(ngrams, _sorted(self.prompts))


def find_overlaps(rows: Sequence[Row], *, index: Index) -> list[Overlap | None]:
    """Finds an evaluation item in each row; the first, where it has several.

    Args:
      rows: some hundred; their words are compared together.
      index: of the sets.
    """
    texts = [conversation_text(row) for row in rows]
    hashes = [words.hash_words(text) for text in texts]
    prompts = [_whole(asked(row)) for row in rows]
    found: dict[int, tuple[int, int, int]] = {}
    calling = [
        n for n, row in enumerate(rows) if any(t.tool_calls for t in row.messages)
    ]
    for table, numbers in ((index.of_all, range(len(rows))), (index.of_calls, calling)):
        chosen = [number for number in numbers if number not in found]
        for number, hit in _hits(
            [prompts[n] for n in chosen], [hashes[n] for n in chosen], table
        ).items():
            found[chosen[number]] = hit
    return [
        _overlap(index, found[number], text) if number in found else None
        for number, text in enumerate(texts)
    ]


def _hits(
    prompts: Sequence[np.ndarray], rows: Sequence[np.ndarray], table: Table
) -> dict[int, tuple[int, int, int]]:
    """Maps rows to the first item that they hold, and where: (item, place, words)."""
    if not rows:
        return {}
    lengths = [len(hashes) for hashes in rows]
    row_of = np.repeat(np.arange(len(rows)), lengths)
    starts = np.cumsum([0, *lengths])
    every = np.concatenate(rows)
    found: dict[int, tuple[int, int, int]] = {}
    places, items = table.prompts.find(np.concatenate(prompts))
    for number, item in zip(places.tolist(), items.tolist(), strict=True):
        found[number] = (item, 0, 0)
    for size, known in table.ngrams.items():
        places, items = known.find(words.hash_ngrams(every, size))
        # A run may not begin in one row and end in the next.
        is_inside = row_of[places] == row_of[places + size - 1]
        places, items = places[is_inside], items[is_inside]
        for place, item in zip(places.tolist(), items.tolist(), strict=True):
            number = int(row_of[place])
            found.setdefault(number, (item, place - int(starts[number]), size))
    return found


def _overlap(index: Index, hit: tuple[int, int, int], text: str) -> Overlap:
    item, place, size = hit
    name, item_id = index.names[item]
    shared = " ".join(words.words(text)[place : place + size]) or "its whole prompt"
    return Overlap(
        evaluation_set=name, item=item_id, question=index.texts[item], shared=shared
    )


def asked(row: Row) -> str:
    """Returns the question: a system turn is the set's wording, not the item's."""
    turns = [turn.content for turn in row.messages[:-1] if turn.role != "system"]
    return row.text or "\n".join(turns)


def _whole(prompt: str) -> np.ndarray:
    """Hashes a whole prompt, punctuation and all: u64[1]."""
    plain = " ".join(prompt.casefold().split())
    return np.array([words.digest64(plain.encode())], np.uint64)


def _telling_ngrams(
    items: Mapping[int, np.ndarray], size: int, *, limit: int
) -> tuple[np.ndarray, np.ndarray]:
    """Hashes the n-grams of items that are no template's wording; all at once."""
    lengths = [len(hashes) for hashes in items.values()]
    owners = np.repeat(np.array(list(items)), lengths)
    hashes = words.hash_ngrams(np.concatenate(list(items.values())), size)
    # A run may not begin in one item and end in the next.
    is_inside = owners[: len(hashes)] == owners[size - 1 :]
    hashes, owners = hashes[is_inside], owners[: len(hashes)][is_inside]
    order = np.lexsort((owners, hashes))
    hashes, owners = hashes[order], owners[order]
    is_new = np.ones(len(hashes), bool)
    is_new[1:] = (hashes[1:] != hashes[:-1]) | (owners[1:] != owners[:-1])
    hashes, owners = hashes[is_new], owners[is_new]
    _, which, counts = np.unique(hashes, return_inverse=True, return_counts=True)
    is_telling = counts[which] <= limit
    return hashes[is_telling], owners[is_telling]


def _sorted(parts: Sequence[tuple[np.ndarray, np.ndarray]]) -> Items:
    if not parts:
        return Items(np.empty(0, np.uint64), np.empty(0, np.int64))
    hashes = np.concatenate([hashes for hashes, _ in parts])
    owners = np.concatenate([owners for _, owners in parts])
    different, first = np.unique(hashes, return_index=True)
    return Items(different, owners[first])
