# SPDX-License-Identifier: Apache-2.0
"""Every answer of a teacher, on disk the moment it came: none is paid for twice."""

import dataclasses
import hashlib
import json
import os
import pathlib
import threading
from collections.abc import Mapping
from typing import Any, Self

from absl import logging

from ring_jax.config import ConfigError, TeacherSamplingConfig


def answer_key(
    *, model: str, sampling: TeacherSamplingConfig, prompt: str, number: int
) -> str:
    """Names one answer: the number-th that a model draws for a prompt."""
    asked = [model, dataclasses.asdict(sampling), prompt, number]
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest()


class Journal:
    """A file of answers, one JSON object per line; a context manager.

    The texts stay on disk, their places in memory. Threads may add at once.

    Raises:
      ConfigError: a line but the last one is no answer.
    """

    def __init__(self, path: pathlib.Path):
        self._path = path
        self._lock = threading.Lock()
        self._places: dict[str, tuple[int, int]] = {}

    def __enter__(self) -> Self:
        self._path.touch()
        whole = 0
        with self._path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n"):
                    # A kill in the middle of a line. That answer is asked for again.
                    logging.warning("journal: line %d was cut and is left out", number)
                    break
                self._places[self._key(line, number)] = (whole, len(line))
                whole += len(line)
        os.truncate(self._path, whole)
        self._file = self._path.open("a+b")
        return self

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._file.close()

    def __contains__(self, key: str) -> bool:
        return key in self._places

    def __len__(self) -> int:
        return len(self._places)

    def _key(self, line: bytes, number: int) -> str:
        try:
            entry = json.loads(line)
            return entry["key"]
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"{self._path}: line {number} is no answer ({error!r}); restore the "
                "file, or remove the line: its answer is asked for again."
            ) from None

    def read(self, key: str) -> str:
        """Returns the text of an answer that the journal has."""
        return self.entry(key)["answer"]

    def entry(self, key: str) -> dict[str, Any]:
        """Returns an answer that the journal has, with what is known about it."""
        with self._lock:
            place, length = self._places[key]
            self._file.seek(place)
            return json.loads(self._file.read(length))

    def add(self, key: str, answer: str, **about: Any) -> None:
        """Writes an answer to the disk, with what is known about it.

        An answer that comes when the journal is closed is dropped: its run has ended.
        """
        entry: Mapping[str, Any] = {"key": key, **about, "answer": answer}
        line = json.dumps(entry, ensure_ascii=True).encode() + b"\n"
        with self._lock:
            if self._file.closed:
                return
            place = self._file.seek(0, os.SEEK_END)
            self._file.write(line)
            self._file.flush()
            os.fsync(self._file.fileno())
            self._places[key] = (place, len(line))
