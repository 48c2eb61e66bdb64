# SPDX-License-Identifier: Apache-2.0
"""Rows that were there before: the same text, nearly the same, the same reply.

Each row leaves a few hundred bytes of keys, computed from that row alone; all
comparisons are made over keys. Near duplicates are found by MinHash signatures
(rensa's, which benchmarks/deduplication.py measures beside datasketch's) and banding by
sorting: a band costs one sort of 8 bytes a row, and no table that grows.

Source: Broder, "On the resemblance and containment of documents" (1997); banding as in
Leskovec, Rajaraman, Ullman, "Mining of Massive Datasets", section 3.4.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ring_jax.config import ConfigError, DuplicatesConfig
from ring_jax.curate.rows import prompt_text
from ring_jax.data import words
from ring_jax.data.schema import Row, conversation_text

STEP = "duplicates"
SEED = 20408
"""Of the signatures: part of what a finished chunk means."""
LONG_REPLY = 40
"""Characters from which equal replies to many prompts are suspicious."""
_MAX_PAIRS = 1 << 16
"""Pairs whose signatures are compared at once: 64 MiB at 128 hashes."""

KEY = np.dtype(
    [("text", np.uint64, 2), ("id", np.uint64), ("reply", np.uint64), ("words", "<u4")]
)
"""What a row is compared by, beside its signature; `reply` is 0 for short ones."""


@dataclasses.dataclass(frozen=True, slots=True)
class Keys:
    """Keys of rows in their order."""

    keys: np.ndarray
    """KEY[rows]."""
    signatures: np.ndarray
    """u32[rows, num_hashes]; an array or a memory map."""


@dataclasses.dataclass(frozen=True, slots=True)
class Duplicate:
    """Why a row goes, and for which earlier row."""

    reason: str
    kept: int
    """Number of the row that stays."""
    detail: str


def compute_keys(rows: Sequence[Row], *, config: DuplicatesConfig) -> Keys:
    """Computes the keys of rows; each depends on its own row alone."""
    compared = prompt_text if config.compare == "prompt" else conversation_text
    keys = np.zeros(len(rows), KEY)
    shingles = []
    for number, row in enumerate(rows):
        text = compared(row)
        plain = " ".join(text.split()).encode()
        reply = row.reply.content.strip() if row.messages else ""
        hashes = words.hash_words(text) if config.near == "drop" else keys["id"][:0]
        shingles.append(words.hash_ngrams(hashes, min(config.ngram, len(hashes))))
        keys[number] = (
            (words.digest64(plain), words.digest64(b"2" + plain)),
            words.digest64(row.id.encode()),
            words.digest64(reply.encode()) if len(reply) >= LONG_REPLY else 0,
            len(hashes),
        )
    return Keys(keys, _signatures(shingles, num_hashes=config.num_hashes))


def _signatures(shingles: Sequence[np.ndarray], *, num_hashes: int) -> np.ndarray:
    if not shingles:
        return np.empty((0, num_hashes), np.uint32)
    try:
        import rensa
    except ModuleNotFoundError:
        raise ConfigError(
            "curate: rensa is missing; run pip install 'ring-jax[curate]'."
        ) from None
    # The class is in a compiled module, of which type checkers see no names.
    sketch: Any = vars(rensa)["RMinHash"]
    lengths = np.array([0, *map(len, shingles)], np.int64)
    matrix = sketch.digest_matrix_from_flat_token_hashes(
        np.concatenate(shingles), np.cumsum(lengths).tolist(), num_hashes, SEED
    )
    return np.array(matrix.to_rows(), np.uint32)


def find_duplicates(keys: Keys, *, config: DuplicatesConfig) -> dict[int, Duplicate]:
    """Finds the rows that go; of equal rows the first stays.

    Near duplicates are joined to groups (a is near b, b is near c), of which the first
    row stays, whatever order the pairs were found in.
    """
    removed: dict[int, Duplicate] = {}
    if config.exact == "drop":
        _add(removed, _exact(keys.keys), "exact", "the same text")
    _add(
        removed,
        _repeats(keys.keys["id"], without=removed),
        "duplicate_id",
        "the same id, another text",
    )
    if config.max_same_reply:
        removed |= _same_replies(keys.keys, removed, limit=config.max_same_reply)
    if config.near == "drop":
        removed |= _near(keys, removed, config)
    return removed


def _add(
    removed: dict[int, Duplicate], pairs: dict[int, int], reason: str, detail: str
) -> None:
    for number, kept in pairs.items():
        removed.setdefault(number, Duplicate(reason, kept, detail))


def _exact(keys: np.ndarray) -> dict[int, int]:
    # Sorting 128 bits as two columns: void views sort by bytes, which is slower.
    order = np.lexsort((keys["text"][:, 1], keys["text"][:, 0]))
    texts = keys["text"][order]
    return _followers(order, (texts[1:] == texts[:-1]).all(axis=1))


def _repeats(values: np.ndarray, *, without: dict[int, Duplicate]) -> dict[int, int]:
    numbers = _others(len(values), without)
    order = numbers[np.argsort(values[numbers], kind="stable")]
    return _followers(order, values[order[1:]] == values[order[:-1]])


def _followers(order: np.ndarray, is_repeat: np.ndarray) -> dict[int, int]:
    """Maps each repeat to the first of its run; equal keys keep the rows' order."""
    starts = np.flatnonzero(np.concatenate([[True], ~is_repeat])[: len(order)])
    firsts = np.repeat(order[starts], np.diff(starts, append=len(order)))
    repeats = np.flatnonzero(is_repeat) + 1
    return dict(zip(order[repeats].tolist(), firsts[repeats].tolist(), strict=True))


def _others(count: int, removed: dict[int, Duplicate]) -> np.ndarray:
    stays = np.ones(count, bool)
    stays[list(removed)] = False
    return np.flatnonzero(stays)


def _same_replies(
    keys: np.ndarray, removed: dict[int, Duplicate], *, limit: int
) -> dict[int, Duplicate]:
    numbers = _others(len(keys), removed)
    numbers = numbers[keys["reply"][numbers] != 0]
    _, first, group, counts = np.unique(
        keys["reply"][numbers], return_index=True, return_inverse=True,
        return_counts=True,
    )  # fmt: skip
    return {
        int(numbers[place]): Duplicate(
            "repeated_reply",
            int(numbers[first[group[place]]]),
            f"{counts[group[place]]} rows have this reply; at most {limit} may",
        )
        for place in np.flatnonzero(counts[group] > limit)
    }


def _near(
    keys: Keys, removed: dict[int, Duplicate], config: DuplicatesConfig
) -> dict[int, Duplicate]:
    numbers = _others(len(keys.keys), removed)
    numbers = numbers[keys.keys["words"][numbers] > 0]
    # Group of each row: the lowest number of its members, found along the chain.
    parents = np.arange(len(keys.keys))
    similarities: dict[int, float] = {}
    for hashes in _bands(keys.signatures, numbers, threshold=config.threshold):
        for pairs in _candidates(numbers, hashes):
            _join(pairs, keys.signatures, parents, similarities, config.threshold)
    found = {}
    for number in numbers.tolist():
        if (kept := _root(parents, number)) != number:
            detail = (
                f"similarity {similarities[number]:.2f} to a row of its group; "
                f"the threshold is {config.threshold}"
            )
            found[number] = Duplicate("near", kept, detail)
    return found


def band_size(num_hashes: int, *, threshold: float) -> int:
    """Returns the rows of a band: the most that still find pairs at the threshold.

    A pair of similarity s meets in one of b bands of r rows with probability
    1 - (1 - s^r)^b; the size is the largest for which that is at least 0.98.
    """
    sizes = [size for size in range(1, num_hashes + 1) if num_hashes % size == 0]
    likely = [
        size
        for size in sizes
        if 1.0 - (1.0 - threshold**size) ** (num_hashes // size) >= 0.98
    ]
    return max(likely, default=1)


def _bands(
    signatures: np.ndarray, numbers: np.ndarray, *, threshold: float
) -> Iterator[np.ndarray]:
    size = band_size(signatures.shape[1], threshold=threshold)
    for start in range(0, signatures.shape[1], size):
        hashes = np.zeros(len(numbers), np.uint64)
        for column in range(start, start + size):
            hashes *= np.uint64(0x9E3779B97F4A7C15)
            hashes += signatures[numbers, column] + np.uint64(1)
        yield hashes


def _candidates(numbers: np.ndarray, hashes: np.ndarray) -> Iterator[np.ndarray]:
    """Yields pairs of one bucket: each row with its first, and with its neighbour."""
    order = np.argsort(hashes, kind="stable")
    is_repeat = hashes[order[1:]] == hashes[order[:-1]]
    firsts = _followers(numbers[order], is_repeat)
    places = np.flatnonzero(is_repeat)
    later, before = numbers[order[places + 1]], numbers[order[places]]
    first = np.array([firsts[number] for number in later.tolist()], np.int64)
    pairs = np.concatenate(
        [np.stack([later, first], 1), np.stack([later, before], 1)[before != first]]
    )
    for start in range(0, len(pairs), _MAX_PAIRS):
        yield pairs[start : start + _MAX_PAIRS]


def _join(
    pairs: np.ndarray,
    signatures: np.ndarray,
    parents: np.ndarray,
    similarities: dict[int, float],
    threshold: float,
) -> None:
    later, earlier = pairs.T
    # Most pairs of a real group were joined by an earlier band.
    is_open = parents[later] != parents[earlier]
    later, earlier = later[is_open], earlier[is_open]
    similarity = np.mean(signatures[later] == signatures[earlier], axis=1)
    for place in np.flatnonzero(similarity >= threshold):
        a, b = int(later[place]), int(earlier[place])
        left, right = _root(parents, a), _root(parents, b)
        parents[max(left, right)] = min(left, right)
        for number in (a, max(left, right)):
            similarities[number] = max(
                similarities.get(number, 0.0), float(similarity[place])
            )


def _root(parents: np.ndarray, number: int) -> int:
    while parents[number] != number:
        parents[number] = parents[parents[number]]
        number = int(parents[number])
    return number
