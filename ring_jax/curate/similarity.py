# SPDX-License-Identifier: Apache-2.0
"""Questions that mean what an evaluation item means, in whatever words.

A row's questions are what it asks as a whole, and each of its user turns. Vectors of an
embedding model stand for their meaning; from a cosine of `threshold` on, the row goes.
Two kinds of items are not compared with every row:

- Those that more than `max_items_alike` others of their set are as near to: "3 + 4?"
  and "5 + 9?" have one vector, so that nearness means nothing.
- Those of sets that ask for function calls: they count in rows that call functions.

Why: paraphrases of test items pass every comparison of words (arXiv:2311.04850).
"""

import dataclasses
import itertools
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from absl import logging

from ring_jax.config import CurateConfig, SimilarityConfig
from ring_jax.curate.contamination import SHOWN_CHARACTERS, EvaluationSet
from ring_jax.curate.embeddings import open_embedder
from ring_jax.curate.rows import Rejection, reject
from ring_jax.curate.vectors import count_near, nearest
from ring_jax.data.overlap import asked
from ring_jax.data.schema import Row

STEP = "similarity"
_BATCH_TEXTS = 4096
"""Whose vectors are held at once."""

Embed = Callable[[Sequence[str]], np.ndarray]
"""Texts, none blank -> vectors of length 1: f32[texts, dim]."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Items:
    """Evaluation items that vectors tell apart; it may be sent to another process."""

    names: Sequence[tuple[str, str]]
    """Set and id of each."""
    texts: Sequence[str]
    vectors: np.ndarray
    """f16[items, dim]."""
    ask_for_calls: np.ndarray
    """bool[items]."""
    num_left_out: Mapping[str, int]
    """Set -> items of it that are compared by words only."""
    folder: pathlib.Path
    """Where vectors are kept."""


def open_items(
    config: CurateConfig,
    evaluation_sets: Sequence[EvaluationSet],
    *,
    work: pathlib.Path,
) -> Items:
    """Makes the vectors of all evaluation items, once for all workers.

    Args:
      config: of the curation.
      evaluation_sets: all of them.
      work: folder for vectors where `embeddings.folder` names none.

    Raises:
      ConfigError, OSError: the server refuses, or does not answer.
    """
    kept = config.embeddings.folder
    folder = pathlib.Path(kept).resolve() if kept else work / "vectors"
    names, texts, ask_for_calls, num_left_out = [], [], [], {}
    vectors = [np.empty((0, 0), np.float16)]
    with open_embedder(config.embeddings, folder) as embed:
        for known in evaluation_sets:
            items = [(name, text) for name, text in known.items if text.strip()]
            of_set = _embed_all([text for _, text in items], embed)
            num_near = count_near(of_set, threshold=config.similarity.threshold)
            is_kept = num_near <= config.similarity.max_items_alike
            for number in np.flatnonzero(is_kept):
                names.append((known.name, items[number][0]))
                texts.append(items[number][1])
                ask_for_calls.append(known.asks_for_calls)
            vectors.append(of_set[is_kept])
            num_left_out[known.name] = len(known.items) - int(is_kept.sum())
            logging.info(
                "similarity: %s, %d items of which %d by words only",
                known.name,
                len(known.items),
                num_left_out[known.name],
            )
    return Items(
        names=names,
        texts=texts,
        vectors=np.concatenate([some for some in vectors if len(some)] or vectors[:1]),
        ask_for_calls=np.array(ask_for_calls, bool),
        num_left_out=num_left_out,
        folder=folder,
    )


def _embed_all(texts: Sequence[str], embed: Embed) -> np.ndarray:
    batches = itertools.batched(texts, _BATCH_TEXTS)
    vectors = [embed(batch).astype(np.float16) for batch in batches]
    return np.concatenate(vectors) if vectors else np.empty((0, 0), np.float16)


def find_similar(
    rows: Sequence[Row], *, items: Items, embed: Embed, config: SimilarityConfig
) -> list[Row | Rejection]:
    """Turns away rows with a question near an evaluation item, and shows both."""
    results: list[Row | Rejection] = list(rows)
    for calls in (True, False):
        chosen = [n for n, row in enumerate(rows) if _calls(row) is calls]
        among = np.flatnonzero(~items.ask_for_calls | calls)
        if not len(among):
            continue
        questions = ((n, text) for n in chosen for text in questions_of(rows[n]))
        for number, pair in _pairs(questions, items, among, embed).items():
            if pair.cosine >= config.threshold:
                results[number] = _reject(rows[number], pair, items)
    return results


@dataclasses.dataclass(frozen=True, slots=True)
class _Pair:
    cosine: float
    question: str
    item: int


def _pairs(
    questions: Iterator[tuple[int, str]],
    items: Items,
    among: np.ndarray,
    embed: Embed,
) -> dict[int, _Pair]:
    """Finds the nearest item of each row, by the nearest of its questions."""
    known = items.vectors[among]
    found: dict[int, _Pair] = {}
    for batch in itertools.batched(questions, _BATCH_TEXTS):
        cosines, which = nearest(embed([text for _, text in batch]), known)
        for (number, text), cosine, item in zip(
            batch, cosines.tolist(), among[which].tolist(), strict=True
        ):
            if number not in found or cosine > found[number].cosine:
                found[number] = _Pair(cosine, text, item)
    return found


def questions_of(row: Row) -> list[str]:
    """Returns what a row asks as a whole, and what each user turn asks."""
    turns = [turn.content for turn in row.messages[:-1] if turn.role == "user"]
    return [text for text in dict.fromkeys([asked(row), *turns]) if text.strip()]


def _calls(row: Row) -> bool:
    return any(turn.tool_calls for turn in row.messages)


def _reject(row: Row, pair: _Pair, items: Items) -> Rejection:
    name, item = items.names[pair.item]
    shown = items.texts[pair.item][:SHOWN_CHARACTERS]
    return reject(
        row,
        step=STEP,
        reason=name,
        detail=f"cosine {pair.cosine:.2f} between an evaluation item and what it asks: "
        f"{pair.question[:SHOWN_CHARACTERS]}",
        other=f"{name}: {item}: {shown}",
    )
