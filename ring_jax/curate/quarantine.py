# SPDX-License-Identifier: Apache-2.0
"""Every row that was turned away, with its one reason: a file, counts and examples."""

import collections
import dataclasses
import json
import os
import pathlib
from typing import Any, Self

from ring_jax.curate.rows import Rejection

QUARANTINE = "quarantine.jsonl"


class Quarantine:
    """Writes `quarantine.jsonl`; keeps counts and the first examples of each reason."""

    def __init__(self, folder: pathlib.Path, *, num_examples: int):
        self._path = folder / QUARANTINE
        self._unfinished = folder / f".{QUARANTINE}.unfinished"
        self._num_examples = num_examples
        self.counts: collections.Counter[tuple[str, str, str]] = collections.Counter()
        """(source, step, reason) -> rows."""
        self.examples: dict[tuple[str, str], list[dict[str, Any]]] = (
            collections.defaultdict(list)
        )
        """(step, reason) -> rejections."""

    def __enter__(self) -> Self:
        self._file = self._unfinished.open("w", encoding="utf-8")
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        with self._file:
            self._file.flush()
            os.fsync(self._file.fileno())
        if kind is None:
            os.replace(self._unfinished, self._path)

    def add(self, rejection: Rejection) -> None:
        """Takes one row."""
        self._file.write(rejection_to_json(rejection) + "\n")
        self.counts[rejection.source, rejection.step, rejection.reason] += 1
        shown = self.examples[rejection.step, rejection.reason]
        if len(shown) < self._num_examples:
            shown.append(dataclasses.asdict(rejection))


def rejection_to_json(rejection: Rejection) -> str:
    """Writes one line of the quarantine."""
    return json.dumps(dataclasses.asdict(rejection), ensure_ascii=False)
