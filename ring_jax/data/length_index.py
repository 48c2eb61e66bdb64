# SPDX-License-Identifier: Apache-2.0
"""The length index of a source: how many tokens of each class every row has.

Mixing by trained tokens and packing need lengths and no text. The index holds them for
every row of a source, in an order that makes any place of a long walk cheap to find:

- rows are grouped by difficulty into `NUM_BANDS` bands of equal size, easiest first;
- a band is dealt out to blocks like cards, so that each block is a fair sample of its
  band; a source of at most `MAX_BLOCKS` rows has blocks of one row, a larger one
  blocks of at least `MIN_BLOCK_ROWS`;
- sums over blocks are kept beside the rows.

An index is a folder of arrays that are mapped into memory, not read. It is written in
one move, and its digest covers every array.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
import tempfile
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from ring_jax.config import TOKEN_CLASSES, ConfigError
from ring_jax.data.chat import Rendered

NUM_BANDS = 8
"""Parts of equal size into which the rows of a source fall by difficulty."""
MAX_BLOCKS = 1 << 16
"""Blocks of a source at most: what is sorted and summed at the start of an epoch."""
MIN_BLOCK_ROWS = 256
"""Rows of a block where a source has too many for blocks of one row."""
VERSION = 2
"""Of the order of rows; an index of another version is built again."""

_ARRAYS = ("rows_C", "counts_CU", "starts_J", "sums_JU", "used_J", "bands", "kinds")


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class LengthIndex:
    """Lengths of the rows of one source; arrays may be mapped from files.

    A *place* is a position in the index's own order. Rows that no packed row can hold
    keep a place and count nothing.
    """

    rows_C: np.ndarray
    """i64[C], the row at each place."""
    counts_CU: np.ndarray
    """i32[C, U], tokens that are predicted, by class (without padding's)."""
    starts_J: np.ndarray
    """i64[J + 1], the first place of each block, and the end."""
    sums_JU: np.ndarray
    """i64[J, U], sums of `counts_CU` over each block."""
    used_J: np.ndarray
    """i64[J], rows of each block that count."""
    bands: np.ndarray
    """i64[NUM_BANDS + 1], the first block of each band of difficulty, and the end."""
    kinds: np.ndarray
    """i64[2**U, 2], rows that count, by which classes they have (class u is bit u): how
    many, and the first place of one (-1 where there is none)."""
    digest: str
    """Hash of all arrays."""

    @property
    def num_rows(self) -> int:
        """Rows that count."""
        return int(self.used_J.sum())

    @property
    def num_tokens(self) -> int:
        """Tokens of these rows; the first of each is predicted of none."""
        return int(self.sums_JU.sum()) + self.num_rows

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Writes the index as a folder, in one move; an equal one may be there."""
        folder = pathlib.Path(folder)
        if (folder / "index.json").is_file():
            return
        folder.parent.mkdir(parents=True, exist_ok=True)
        part = pathlib.Path(tempfile.mkdtemp(dir=folder.parent, suffix=".part"))
        for name in _ARRAYS:
            np.save(part / f"{name}.npy", getattr(self, name))
        # Last, so that a folder with this file is whole.
        head = {"version": VERSION, "digest": self.digest}
        (part / "index.json").write_text(json.dumps(head) + "\n", encoding="utf-8")
        part.rename(folder)

    def counts_of(self, places: np.ndarray) -> np.ndarray:
        """Looks up the predicted tokens of places by class: i64[C, U]."""
        return np.asarray(self.counts_CU[places], np.int64)


def folder_of(workdir: str | os.PathLike[str], name: str, digest: str) -> pathlib.Path:
    """Returns where a run folder keeps the index of a source."""
    return pathlib.Path(workdir) / "lengths" / f"{name}-{digest}"


def load(folder: str | os.PathLike[str]) -> LengthIndex:
    """Maps a saved index into memory; its rows are read when they are needed.

    Raises:
      ConfigError: the folder is no index of this version, or a file is cut.
    """
    folder = pathlib.Path(folder)
    try:
        head = json.loads((folder / "index.json").read_text(encoding="utf-8"))
        arrays = {
            name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in _ARRAYS
        }
    except (OSError, ValueError, EOFError) as error:
        raise ConfigError(
            f"length index: {folder} cannot be read ({error}); delete it, and it is "
            "built again."
        ) from None
    if head.get("version") != VERSION:
        raise ConfigError(
            f"length index: {folder} has version {head.get('version')}, not {VERSION}; "
            "delete it, and it is built again."
        )
    return LengthIndex(**arrays, digest=head["digest"])


def verify(index: LengthIndex, *, name: str) -> None:
    """Hashes a whole index, to find bits that storage has lost.

    Raises:
      ConfigError: the arrays are not those that were saved.
    """
    arrays = {field: getattr(index, field) for field in _ARRAYS}
    if (digest := _digest(arrays)) != index.digest:
        raise ConfigError(
            f"length index of {name}: its arrays hash to {digest}, not to "
            f"{index.digest}; delete the folder, and it is built again."
        )


def build(rows: Iterable[tuple[Rendered, float]], *, seq_len: int) -> LengthIndex:
    """Counts the tokens of every row of a source.

    Args:
      rows: each row as tokens, with its difficulty from 0 to 1; read once, in order.
      seq_len: rows of more tokens count nothing.
    """
    counts, difficulties = [], []
    for chunk in _chunks(rows):
        counts.append(np.stack([count_classes(r, seq_len=seq_len) for r, _ in chunk]))
        difficulties.append(np.asarray([d for _, d in chunk], np.float32))
    if not counts:
        counts_CU = np.zeros((0, len(TOKEN_CLASSES) - 1), np.int32)
        return from_counts(counts_CU, np.zeros(0, np.float32))
    counts_CU, difficulty_C = np.concatenate(counts), np.concatenate(difficulties)
    return from_counts(counts_CU, difficulty_C)


def count_classes(rendered: Rendered, *, seq_len: int) -> np.ndarray:
    """Counts the predicted tokens of a row by class: i32[U].

    The first token counts for none, as nothing stands before it that could predict it.
    A row that is too long counts nothing.
    """
    num_classes = len(TOKEN_CLASSES)
    if len(rendered.ids) > seq_len:
        return np.zeros(num_classes - 1, np.int32)
    counted = np.bincount(rendered.classes[1:], minlength=num_classes)
    return counted[1:].astype(np.int32)


def from_counts(counts_CU: np.ndarray, difficulty_C: np.ndarray) -> LengthIndex:
    """Lays rows out in bands and blocks.

    Args:
      counts_CU: i32[C, U], predicted tokens of each row by class.
      difficulty_C: f32[C], of each row; equal ones are ordered by row.
    """
    num_rows = len(counts_CU)
    by_difficulty_C = np.argsort(difficulty_C, kind="stable")
    is_graded = num_rows and difficulty_C.min() < difficulty_C.max()
    # Rows that nobody graded are all in the first band.
    edges = [
        round(num_rows * band / NUM_BANDS) if is_graded else num_rows * (band > 0)
        for band in range(NUM_BANDS + 1)
    ]
    order, sizes, bands = [], [], [0]
    for first, last in zip(edges, edges[1:], strict=False):
        # Rows of a band in the order of the source, then dealt out like cards.
        rows_C = np.sort(by_difficulty_C[first:last])
        num_blocks = _num_blocks(len(rows_C), is_small=num_rows <= MAX_BLOCKS)
        for block in range(num_blocks):
            order.append(rows_C[block::num_blocks])
            sizes.append(len(order[-1]))
        bands.append(len(sizes))
    order_C = np.concatenate([np.zeros(0, np.int64), *order])
    starts_J = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)]).astype(np.int64)
    placed_CU = np.ascontiguousarray(counts_CU[order_C])
    arrays = {
        "rows_C": order_C,
        "counts_CU": placed_CU,
        "starts_J": starts_J,
        "sums_JU": _block_sums(placed_CU, starts_J),
        "used_J": _block_sums(placed_CU.any(axis=1), starts_J),
        "bands": np.asarray(bands, np.int64),
        "kinds": _kinds(placed_CU),
    }
    return LengthIndex(**arrays, digest=_digest(arrays))


def _num_blocks(num_rows: int, *, is_small: bool) -> int:
    if is_small or not num_rows:
        return num_rows
    return min(max(1, num_rows // MIN_BLOCK_ROWS), MAX_BLOCKS // NUM_BANDS)


def _block_sums(values: np.ndarray, starts_J: np.ndarray) -> np.ndarray:
    if len(starts_J) == 1:
        return np.zeros((0, *values.shape[1:]), np.int64)
    return np.add.reduceat(values, starts_J[:-1], axis=0, dtype=np.int64)


def _kinds(counts_CU: np.ndarray) -> np.ndarray:
    num_classes = counts_CU.shape[1]
    bits_C = (counts_CU > 0) @ (1 << np.arange(num_classes)).astype(np.uint8)
    kinds = np.full((2**num_classes, 2), (0, -1), np.int64)
    found, first_C, number = np.unique(bits_C, return_index=True, return_counts=True)
    kinds[found, 0], kinds[found, 1] = number, first_C
    kinds[0] = (0, -1)  # rows that count nothing
    return kinds


def _chunks(
    rows: Iterable[tuple[Rendered, float]],
) -> Iterator[list[tuple[Rendered, float]]]:
    chunk = []
    for row in rows:
        chunk.append(row)
        if len(chunk) == 4096:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _digest(arrays: dict[str, Any]) -> str:
    digest = hashlib.blake2b(str(VERSION).encode(), digest_size=16)
    for name in _ARRAYS:
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name}:{array.dtype.str}:{array.shape}".encode())
        digest.update(array.view(np.uint8).reshape(-1).data)
    return digest.hexdigest()
