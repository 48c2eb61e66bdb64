# SPDX-License-Identifier: Apache-2.0
"""Vectors of texts: kept on disk as 16-bit floats, and compared by their cosine.

A folder holds the vectors of one model. Each process that adds some writes two files of
its own, so that processes and machines share the folder without waiting:

  NAME.768.vectors   768 little-endian 16-bit floats a text
  NAME.768.keys      of each: hash of its text, checksum of its vector

A key is written when its vector is on the disk. What was cut by a kill has no key, and
what lost its bits fails its checksum: both are as if they had never come.
"""

import os
import pathlib
import re
import secrets
import threading
import zlib
from collections.abc import Sequence
from typing import IO, Self

import numpy as np

from ring_jax.config import ConfigError
from ring_jax.data.words import digest64

BLOCK = 2048
"""Vectors on each side that are compared at once: 16 MB of cosines."""
_KEY = np.dtype([("text", "<u8"), ("checksum", "<u4")])
_VALUE = np.dtype("<f2")
_FILE = re.compile(r"[0-9a-f]+\.(\d+)\.keys")


class VectorStore:
    """A folder of vectors; a context manager. Threads may add at once.

    In memory are 16 bytes a text.

    Raises:
      ConfigError: the folder holds vectors of different widths.
    """

    def __init__(self, folder: pathlib.Path):
        self._folder = folder
        self._lock = threading.Lock()
        self._paths: list[pathlib.Path] = []
        self._dim = 0
        self._known = np.empty(0, np.uint64)
        self._places = np.empty((0, 2), np.uint32)
        self._recent: dict[int, tuple[int, int]] = {}
        self._files: tuple[IO[bytes], IO[bytes]] | None = None
        self._num_written = 0
        self._is_closed = False

    def __enter__(self) -> Self:
        self._folder.mkdir(parents=True, exist_ok=True)
        parts = [(self._known, self._places)]
        for path in sorted(self._folder.glob("*.keys")):
            if found := _FILE.fullmatch(path.name):
                self._agree_on(int(found[1]))
                parts.append(self._read_keys(path))
        self._index(parts)
        return self

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._is_closed = True
            for file in self._files or ():
                file.close()

    def find(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Returns which texts have a vector, bool[texts], and those, f32[found, dim].

        Vectors have length 1, as far as 16 bits say.
        """
        with self._lock:
            self._settle()
            keys = np.array([_hash(text) for text in texts], np.uint64)
            at = np.searchsorted(self._known, keys)
            at[at == len(self._known)] = 0
            is_known = np.zeros(len(keys), bool)
            if len(self._known):
                is_known = self._known[at] == keys
            places = self._places[at[is_known]]
        vectors = np.empty((len(places), self._dim), _VALUE)
        is_whole = np.ones(len(places), bool)
        for number in np.unique(places[:, 0]):
            chosen = np.flatnonzero(places[:, 0] == number)
            vectors[chosen], is_whole[chosen] = self._read(
                self._paths[number], places[chosen, 1]
            )
        is_known[is_known] = is_whole
        return is_known, unit(vectors[is_whole])

    def add(self, texts: Sequence[str], vectors: np.ndarray) -> None:
        """Writes vectors, f32[texts, dim], to the disk.

        What comes when the store is closed is dropped: its run has ended.

        Raises:
          ConfigError: they are wider or narrower than those that are there.
          OSError: the disk is full.
        """
        values = unit(vectors).astype(_VALUE)
        keys = np.array(
            [(_hash(t), _checksum(v)) for t, v in zip(texts, values, strict=True)], _KEY
        )
        with self._lock:
            if self._is_closed:
                return
            self._agree_on(values.shape[1])
            if self._files is None:
                self._open_files()
            assert self._files is not None
            for file, data in zip(self._files, (values, keys), strict=True):
                # A write that failed half-way is written over.
                file.seek(self._num_written * (data.nbytes // len(data)))
                file.truncate()
                file.write(data.tobytes())
                file.flush()
                os.fsync(file.fileno())
            number = len(self._paths) - 1
            for key in keys["text"].tolist():
                self._recent[key] = (number, self._num_written)
                self._num_written += 1

    def _open_files(self) -> None:
        stem = self._folder / f"{secrets.token_hex(8)}.{self._dim}"
        names = [pathlib.Path(f"{stem}.{kind}") for kind in ("vectors", "keys")]
        values, keys = (name.open("xb") for name in names)
        self._files = values, keys
        self._paths.append(names[1])

    def _agree_on(self, dim: int) -> None:
        if self._dim not in (0, dim):
            raise ConfigError(
                f"{self._folder} holds vectors of {self._dim} numbers, and now there "
                f"are some of {dim}: another model has the same name. Name another "
                "embeddings.folder, or delete this one."
            )
        self._dim = dim

    def _read_keys(self, path: pathlib.Path) -> tuple[np.ndarray, np.ndarray]:
        num_vectors = path.with_suffix(".vectors").stat().st_size // (2 * self._dim)
        num_keys = path.stat().st_size // _KEY.itemsize
        count = min(num_vectors, num_keys)
        keys = np.fromfile(path, _KEY, count)["text"]
        places = np.empty((count, 2), np.uint32)
        places[:, 0], places[:, 1] = len(self._paths), np.arange(count)
        self._paths.append(path)
        return keys, places

    def _read(
        self, path: pathlib.Path, numbers: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Reads vectors of one file, and whether each has its checksum."""
        count = int(numbers.max()) + 1
        shape = (count, self._dim)
        values = np.memmap(path.with_suffix(".vectors"), _VALUE, "r", shape=shape)
        expected = np.memmap(path, _KEY, "r", shape=(count,))["checksum"][numbers]
        found = values[numbers]
        return found, np.array([_checksum(v) for v in found], np.uint32) == expected

    def _settle(self) -> None:
        """Moves what was added lately into the index."""
        if not self._recent:
            return
        keys = np.fromiter(self._recent, np.uint64, len(self._recent))
        places = np.array(list(self._recent.values()), np.uint32)
        self._recent = {}
        self._index([(self._known, self._places), (keys, places)])

    def _index(self, parts: Sequence[tuple[np.ndarray, np.ndarray]]) -> None:
        # Of two vectors of a text the later one counts: the first may be damaged.
        keys = np.concatenate([keys for keys, _ in parts])[::-1]
        places = np.concatenate([places for _, places in parts])[::-1]
        self._known, first = np.unique(keys, return_index=True)
        self._places = places[first]


def unit(vectors: np.ndarray) -> np.ndarray:
    """Returns vectors as f32 of length 1; none may be zero."""
    lengths = np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    return (vectors / lengths).astype(np.float32)


def nearest(vectors: np.ndarray, known: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Finds the nearest of `known` to each vector, in blocks.

    Args:
      vectors: [n, dim], not zero.
      known: [m, dim], not zero; m is at least 1.

    Returns:
      f32[n], the largest cosine; i64[n], whose it is.
    """
    cosines = np.full(len(vectors), -np.inf, np.float32)
    which = np.zeros(len(vectors), np.int64)
    for first in range(0, len(known), BLOCK):
        block = unit(known[first : first + BLOCK])
        for begin in range(0, len(vectors), BLOCK):
            part = slice(begin, begin + BLOCK)
            found = unit(vectors[part]) @ block.T
            best = found.argmax(axis=1)
            highest = found[np.arange(len(best)), best]
            is_nearer = highest > cosines[part]
            cosines[part][is_nearer] = highest[is_nearer]
            which[part][is_nearer] = first + best[is_nearer]
    return cosines, which


def count_near(vectors: np.ndarray, *, threshold: float) -> np.ndarray:
    """Counts the others whose cosine to each vector is `threshold` at least: i64[n]."""
    counts = np.full(len(vectors), -1)  # each is near itself, and that is no other
    for first in range(0, len(vectors), BLOCK):
        part = unit(vectors[first : first + BLOCK])
        for begin in range(0, len(vectors), BLOCK):
            found = part @ unit(vectors[begin : begin + BLOCK]).T
            if first == begin:
                np.fill_diagonal(found, 1.0)
            counts[first : first + BLOCK] += (found >= threshold).sum(axis=1)
    return counts


def _hash(text: str) -> int:
    return digest64(text.encode("utf-8", "surrogatepass"))


def _checksum(vector: np.ndarray) -> int:
    return zlib.crc32(vector.tobytes())
