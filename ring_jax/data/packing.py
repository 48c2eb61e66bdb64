# SPDX-License-Identifier: Apache-2.0
"""Packing: rows into bins of `seq_len` tokens by their lengths, bins into arrays.

No row is cut, and none leaves its window for want of the best place: which bin a row is
in is a function of the lengths of the window's rows alone.
"""

import bisect
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from ring_jax.batch import Batch
from ring_jax.config import TOKEN_CLASSES
from ring_jax.data.chat import Rendered

type Algorithm = Literal["best_fit", "first_fit"]


def assign(
    lengths_C: np.ndarray,
    *,
    num_bins: int,
    seq_len: int,
    algorithm: Algorithm,
) -> np.ndarray:
    """Chooses a bin for each row.

    Args:
      lengths_C: i64[C], tokens of each row.
      num_bins: bins there are, all empty.
      seq_len: tokens that a bin holds.
      algorithm: `best_fit` takes rows from the longest to the shortest, each into the
        fullest bin with room (best fit decreasing); `first_fit` takes them in order,
        each into the first bin with room.

    Returns:
      i64[C], the bin of each row; -1 where no bin has room.
    """
    free = [seq_len] * num_bins
    if algorithm == "first_fit":
        return _first_fit(lengths_C, np.asarray(free))
    return place_best(lengths_C, free)


def count_bins(lengths_C: np.ndarray, *, seq_len: int, algorithm: Algorithm) -> int:
    """Counts the bins that rows take where there are as many as it needs."""
    # Two neighbouring bins never fit into one, whatever the algorithm.
    enough = min(len(lengths_C), 2 * -(-int(lengths_C.sum()) // seq_len) + 1)
    bins_C = assign(lengths_C, num_bins=enough, seq_len=seq_len, algorithm=algorithm)
    return int(bins_C.max(initial=-1)) + 1


def place_best(lengths_C: np.ndarray, free: Sequence[int]) -> np.ndarray:
    """Places rows, the longest first, each into the fullest bin that has room for it.

    Args:
      lengths_C: i64[C], tokens of each row.
      free: tokens that each bin still takes.

    Returns:
      i64[C], the bin of each row; -1 where no bin has room.
    """
    num_bins = len(free)
    # One integer holds room and bin, so that a sorted list of integers is the queue.
    queue = sorted(room * num_bins + bin_ for bin_, room in enumerate(free))
    bins_C = np.full(len(lengths_C), -1, np.int64)
    for row in np.argsort(-lengths_C, kind="stable").tolist():
        length = int(lengths_C[row])
        at = bisect.bisect_left(queue, length * num_bins)
        if at == num_bins:
            continue
        room, bins_C[row] = divmod(queue.pop(at), num_bins)
        bisect.insort(queue, (room - length) * num_bins + int(bins_C[row]))
    return bins_C


def _first_fit(lengths_C: np.ndarray, free: np.ndarray) -> np.ndarray:
    bins_C = np.full(len(lengths_C), -1, np.int64)
    for row, length in enumerate(lengths_C.tolist()):
        first = int(np.argmax(free >= length))
        if free[first] >= length:
            free[first] -= length
            bins_C[row] = first
    return bins_C


def stack(
    bins: Sequence[Sequence[tuple[int, Rendered]]], *, seq_len: int
) -> dict[str, np.ndarray]:
    """Lays the rows of bins one after the other.

    Args:
      bins: of each bin its rows: the number of the source, and the tokens.
      seq_len: T.

    Returns:
      ids, segments, positions, classes and sources, each i32[B, T], 0 on padding.
    """
    names = ("ids", "segments", "positions", "classes", "sources")
    arrays = {name: np.zeros((len(bins), seq_len), np.int32) for name in names}
    for line, rows in enumerate(bins):
        start = 0
        for segment, (source, row) in enumerate(rows, 1):
            here = np.index_exp[line, start : start + len(row.ids)]
            arrays["ids"][here] = row.ids
            arrays["segments"][here] = segment
            arrays["positions"][here] = np.arange(len(row.ids))
            arrays["classes"][here] = row.classes
            arrays["sources"][here] = source
            start += len(row.ids)
    return arrays


def to_batch(
    packed: Mapping[str, np.ndarray], *, weights_by_class: np.ndarray, pad_id: int
) -> Batch:
    """Gives packed arrays their loss weights.

    Padding is where the segment is 0, never where the id is `pad_id`: in Ling's
    vocabulary that is also the end token, which must be trained.

    Args:
      packed: arrays [B, T] of `stack`.
      weights_by_class: f32[6], loss weight of each of `config.TOKEN_CLASSES`.
      pad_id: id written on padding.
    """
    is_padding_BT = packed["segments"] == 0
    # Nothing stands before a first token that could predict it.
    is_predicted_BT = ~is_padding_BT & (packed["positions"] > 0)
    weights_BT = np.where(is_predicted_BT, weights_by_class[packed["classes"]], 0)
    # Numpy arrays in a type that speaks of device arrays: placing them is train's work.
    arrays: dict[str, Any] = {
        "ids_BT": np.where(is_padding_BT, np.int32(pad_id), packed["ids"]),
        "segments_BT": packed["segments"],
        "positions_BT": packed["positions"],
        "classes_BT": packed["classes"],
        "sources_BT": packed["sources"],
        "weights_BT": weights_BT.astype(np.float32),
    }
    return Batch(**arrays)


def pack_all(
    rows: Sequence[Rendered],
    *,
    source: int,
    batch_size: int,
    seq_len: int,
    weights_by_class: np.ndarray,
    pad_id: int,
) -> list[Batch]:
    """Packs a finite list of rows whole, for measuring a loss.

    Returns:
      Batches of one shape; the last is filled up with padding. Rows longer than seq_len
      are left out.
    """
    fitting = [row for row in rows if len(row.ids) <= seq_len]
    lengths_C = np.asarray([len(row.ids) for row in fitting], np.int64)
    bins_C = assign(
        lengths_C, num_bins=len(fitting), seq_len=seq_len, algorithm="first_fit"
    )
    num_used = int(bins_C.max(initial=-1)) + 1
    num_bins = -(-num_used // batch_size) * batch_size
    bins: list[list[tuple[int, Rendered]]] = [[] for _ in range(num_bins)]
    for row, bin_ in zip(fitting, bins_C.tolist(), strict=True):
        bins[bin_].append((source, row))
    return [
        to_batch(
            stack(bins[first : first + batch_size], seq_len=seq_len),
            weights_by_class=weights_by_class,
            pad_id=pad_id,
        )
        for first in range(0, num_bins, batch_size)
    ]


def weights_table(class_weights: Mapping[str, float]) -> np.ndarray:
    """Orders class weights by class id: f32[6], with 0 for padding."""
    return np.asarray(
        [class_weights.get(name, 0.0) for name in TOKEN_CLASSES], np.float32
    )
