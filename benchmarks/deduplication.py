# SPDX-License-Identifier: Apache-2.0
"""Near-duplicate removal: ours and datasketch's on the same rows, in one process.

A part of `python -m benchmarks.data`. Both sides start from text: words, 5-grams, 128
hashes, threshold 0.8, candidates by banding, one row kept of each group. datasketch
runs as its documentation shows: `MinHash.update_batch` and `MinHashLSH.query` before
`insert`. One row in ten is a near copy of an earlier one.
"""

import random
import time

import datasketch

from ring_jax.config import DuplicatesConfig
from ring_jax.curate.duplicates import compute_keys, find_duplicates
from ring_jax.data import words
from ring_jax.data.schema import Row

CONFIG = DuplicatesConfig()
WORDS_PER_ROW = 120


def measure(num_rows: int) -> dict[str, float]:
    """Measures both on as many rows: their seconds, and how many each removed."""
    texts = make_texts(num_rows)
    start = time.perf_counter()
    num_ours = len(remove_with_ours(texts))
    ours = time.perf_counter() - start
    start = time.perf_counter()
    num_theirs = len(remove_with_datasketch(texts))
    theirs = time.perf_counter() - start
    return {
        "dedup_rows": len(texts),
        "dedup_seconds": round(ours, 3),
        "datasketch_seconds": round(theirs, 3),
        "dedup_removed": num_ours,
        "datasketch_removed": num_theirs,
        "dedup_ratio_to_datasketch": round(theirs / ours, 2),
    }


def make_texts(num_rows: int) -> list[str]:
    """Writes rows of random words, one in ten a copy with its last words changed."""
    order = random.Random(0)
    texts: list[str] = []
    for number in range(num_rows):
        if number % 10 == 9:
            kept = order.choice(texts).split()[:-4]
            texts.append(" ".join([*kept, *(str(number + n) for n in range(4))]))
        else:
            texts.append(
                " ".join(f"w{order.randrange(30_000)}" for _ in range(WORDS_PER_ROW))
            )
    return texts


def remove_with_ours(texts: list[str]) -> set[int]:
    """Removes with `ring_jax.curate`."""
    rows = [
        Row(
            id=str(n), text=t, source="s", domain="d", licence="CC0-1.0", package="p==1"
        )
        for n, t in enumerate(texts)
    ]
    return set(find_duplicates(compute_keys(rows, config=CONFIG), config=CONFIG))


def remove_with_datasketch(texts: list[str]) -> set[int]:
    """Removes with datasketch, the first of each bucket kept."""
    index = datasketch.MinHashLSH(CONFIG.threshold, CONFIG.num_hashes)
    removed = set()
    for number, text in enumerate(texts):
        found = words.words(text)
        sketch = datasketch.MinHash(CONFIG.num_hashes)
        sketch.update_batch(
            " ".join(found[n : n + CONFIG.ngram]).encode()
            for n in range(len(found) - CONFIG.ngram + 1)
        )
        if index.query(sketch):
            removed.add(number)
        else:
            index.insert(str(number), sketch)
    return removed
