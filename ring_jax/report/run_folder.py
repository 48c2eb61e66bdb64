# SPDX-License-Identifier: Apache-2.0
"""Reads a run folder: config, metrics, events, held-out losses, all as plain data."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ring_jax.config import ConfigError

Record = Mapping[str, Any]
"""One JSON object as it was written; which keys it has depends on its kind."""


@dataclasses.dataclass(frozen=True)
class RunFolder:
    """What a run has written so far; whatever it has not written yet is empty."""

    name: str
    config: Record
    start: Record
    """The newest start record: versions and devices may change when a run resumes."""
    steps: list[Record]
    """Training records in the order of their steps."""
    routers: list[Record]
    heldout_losses: dict[str, Mapping[str, float | None]]
    """Held-out loss by source at the end of each stage, in their order."""
    events: list[Record]
    started: float | None
    """Unix seconds of the first record."""
    ended: float | None
    """Unix seconds of the last record."""
    num_unreadable_lines: int
    """Lines that are no JSON object; a killed process leaves a torn one behind."""


def read_run_folder(workdir: Path) -> RunFolder:
    """Reads what `ring train` has written to `workdir`, however far it came.

    Raises:
      ConfigError: the folder is missing, is no run folder, or cannot be read.
    """
    if not workdir.is_dir():
        raise ConfigError(f"workdir={workdir} is no folder; name one of `ring train`.")
    try:
        return _read(workdir)
    except OSError as error:
        raise ConfigError(
            f"workdir={workdir} cannot be read: {error.strerror}: {error.filename}."
        ) from None


def _read(workdir: Path) -> RunFolder:
    config_path, metrics_path = workdir / "config.json", workdir / "metrics.jsonl"
    if not config_path.exists() and not metrics_path.exists():
        raise ConfigError(
            f"workdir={workdir} has no config.json and no metrics.jsonl; "
            "name a folder that `ring train` has written."
        )
    records, num_unreadable = _read_json_lines(metrics_path)
    kinds: dict[str, list[Record]] = {}
    for record in records:
        kinds.setdefault(str(record.get("kind")), []).append(record)
    # Events come after the end, too, when the command is repeated.
    times = [
        t
        for record in records
        if isinstance(t := record.get("time"), int | float)
        and record.get("kind") != "event"
    ]
    return RunFolder(
        name=workdir.resolve().name,
        config=_read_config(config_path),
        start=kinds.get("start", [{}])[-1],
        steps=_newest_of_each_step(kinds.get("train", [])),
        routers=_newest_of_each_step(kinds.get("router", [])),
        heldout_losses=_heldout_losses(kinds.get("evaluation", [])),
        events=kinds.get("event", []),
        started=min(times, default=None),
        ended=max(times, default=None),
        num_unreadable_lines=num_unreadable,
    )


def _read_json_lines(path: Path) -> tuple[list[Record], int]:
    if not path.exists():
        return [], 0
    records, num_unreadable = [], 0
    with path.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            record = _json_object(line)
            if record is not None:
                records.append(record)
            elif line.strip():
                num_unreadable += 1
    return records, num_unreadable


def _json_object(text: str) -> Record | None:
    try:
        value = json.loads(text)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _read_config(path: Path) -> Record:
    if not path.exists():
        return {}
    config = _json_object(path.read_text(encoding="utf-8", errors="replace"))
    if config is None:
        raise ConfigError(f"{path} is no JSON object; write it again by `ring train`.")
    return config


def _heldout_losses(
    records: Sequence[Record],
) -> dict[str, Mapping[str, float | None]]:
    losses = {str(r.get("stage")): r.get("heldout_loss") for r in records}
    return {stage: found for stage, found in losses.items() if isinstance(found, dict)}


def _newest_of_each_step(records: list[Record]) -> list[Record]:
    # A resumed run repeats the steps since its last checkpoint; the repetition counts.
    by_step = {r["step"]: r for r in records if isinstance(r.get("step"), int)}
    return [by_step[step] for step in sorted(by_step)]
