# SPDX-License-Identifier: Apache-2.0
"""`metrics.jsonl` of a run folder: one JSON object a line, kept true by resumes."""

import json
import os
import pathlib
import time
from collections.abc import Callable, Mapping
from typing import Any

from ring_jax import processes

METRICS_FILE = "metrics.jsonl"


class RunLog:
    """Appends records, and forgets those of steps that a resumed run repeats.

    All processes of a run may call it; the first one writes.
    """

    def __init__(
        self,
        workdir: pathlib.Path,
        *,
        mirror: Callable[[Mapping[str, Any]], None] | None = None,
    ):
        """Opens the log; `mirror` is given each record too (TensorBoard)."""
        self._path = workdir / METRICS_FILE
        self._mirror = mirror

    def write(self, kind: str, **fields: Any) -> None:
        """Appends one record with the time, durably: a kill loses no finished line."""
        if not processes.is_first():
            return
        record = {"kind": kind, **fields, "time": time.time()}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
            file.flush()
            os.fsync(file.fileno())
        if self._mirror is not None:
            self._mirror(record)

    def records(self, kind: str | None = None) -> list[dict[str, Any]]:
        """Reads back whole records; a line cut by a kill is not one."""
        if not self._path.exists():
            return []
        found = []
        for line in self._path.read_text("utf-8").splitlines():
            try:
                record = json.loads(line)
            except json.JSONDecodeError:
                continue
            if kind is None or record["kind"] == kind:
                found.append(record)
        return found

    def rewind(self, step: int) -> None:
        """Drops what was logged after `step`: the resumed run will say it again.

        Events stay: that a run was killed and resumed is part of its story.
        """
        if not processes.is_first():
            return
        kept = [
            record
            for record in self.records()
            if record["kind"] == "event" or record.get("step", 0) <= step
        ]
        draft = self._path.with_suffix(".tmp")
        draft.write_text("".join(json.dumps(record) + "\n" for record in kept), "utf-8")
        draft.replace(self._path)
