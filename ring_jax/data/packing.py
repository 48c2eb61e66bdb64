# SPDX-License-Identifier: Apache-2.0
"""Packing: rendered rows into fixed [B, T] arrays, first fit, no row cut."""

from collections.abc import Mapping, Sequence
from typing import Any

import grain
import numpy as np

from ring_jax.batch import Batch
from ring_jax.config import TOKEN_CLASSES
from ring_jax.data.chat import Rendered

FEATURES = ("ids", "classes", "sources")
"""Per-token arrays of an example; grain adds segments and positions of `ids`."""


def to_example(rendered: Rendered, *, source: int) -> dict[str, np.ndarray]:
    """Turns a rendered row of a source into what the packer takes."""
    sources = np.full_like(rendered.ids, source)
    return {"ids": rendered.ids, "classes": rendered.classes, "sources": sources}


def pack(
    examples: grain.IterDataset, *, batch_size: int, seq_len: int, rows: Sequence[int]
) -> grain.IterDataset:
    """Packs examples into dictionaries of [len(rows), seq_len] arrays.

    Rows enter the first bin with room; when one fits nowhere, all bins leave together.
    The bins of one batch are thus filled from consecutive rows, and a checkpoint needs
    no more than the place of the first of them. A last partial batch is dropped.

    Args:
      examples: dictionaries of `to_example`, none longer than seq_len.
      batch_size: B, bins that are open at once.
      seq_len: T, tokens per bin.
      rows: which bins of each batch to stack; the others are another process's.
    """
    packed = _first_fit(examples, batch_size=batch_size, seq_len=seq_len)

    def stack(bins: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
        return {name: np.stack([bins[row][name] for row in rows]) for name in bins[0]}

    return packed.batch(batch_size, drop_remainder=True, batch_fn=stack)


def to_batch(
    packed: Mapping[str, np.ndarray], *, weights_by_class: np.ndarray, pad_id: int
) -> Batch:
    """Gives packed arrays their loss weights.

    Padding is where the segment is 0, never where the id is `pad_id`: in Ling's
    vocabulary that is also the end token, which must be trained.

    Args:
      packed: arrays [B, T] of `pack`.
      weights_by_class: f32[6], loss weight of each of `config.TOKEN_CLASSES`.
      pad_id: id written on padding.
    """
    segments_BT = packed["ids_segment_ids"].astype(np.int32)
    positions_BT = packed["ids_positions"].astype(np.int32)
    is_padding_BT = segments_BT == 0
    classes_BT = np.where(is_padding_BT, 0, packed["classes"]).astype(np.int32)
    # Nothing stands before a first token that could predict it.
    is_predicted_BT = ~is_padding_BT & (positions_BT > 0)
    weights_BT = np.where(is_predicted_BT, weights_by_class[classes_BT], 0)
    # Numpy arrays in a type that speaks of device arrays: placing them is train's work.
    arrays: dict[str, Any] = {
        "ids_BT": np.where(is_padding_BT, pad_id, packed["ids"]).astype(np.int32),
        "segments_BT": segments_BT,
        "positions_BT": positions_BT,
        "classes_BT": classes_BT,
        "sources_BT": np.where(is_padding_BT, 0, packed["sources"]).astype(np.int32),
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
    examples = [
        to_example(row, source=source) for row in rows if len(row.ids) <= seq_len
    ]
    in_this_thread = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
    dataset = grain.MapDataset.source(examples).to_iter_dataset(in_this_thread)
    packed = list(_first_fit(dataset, batch_size=batch_size, seq_len=seq_len))
    if not packed:
        return []
    empty = {name: np.zeros_like(array) for name, array in packed[0].items()}
    packed += [empty] * (-len(packed) % batch_size)
    groups = [packed[i : i + batch_size] for i in range(0, len(packed), batch_size)]
    return [
        to_batch(
            {name: np.stack([row[name] for row in group]) for name in empty},
            weights_by_class=weights_by_class,
            pad_id=pad_id,
        )
        for group in groups
    ]


def _first_fit(
    examples: grain.IterDataset, *, batch_size: int, seq_len: int
) -> grain.IterDataset:
    return grain.experimental.FirstFitPackIterDataset(
        examples,
        length_struct=dict.fromkeys(FEATURES, seq_len),
        num_packing_bins=batch_size,
        shuffle_bins=False,
    )


def weights_table(class_weights: Mapping[str, float]) -> np.ndarray:
    """Orders class weights by class id: f32[6], with 0 for padding."""
    return np.asarray(
        [class_weights.get(name, 0.0) for name in TOKEN_CLASSES], np.float32
    )
