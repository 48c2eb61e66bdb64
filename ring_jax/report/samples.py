# SPDX-License-Identifier: Apache-2.0
"""Graded outputs of the same held-out item before and after training, side by side."""

import collections
import dataclasses
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ring_jax.report.run_folder import Record

CHANGES = {
    "gained": "right now, wrong before",
    "lost": "wrong now, right before",
    "kept": "right before and now",
    "missed": "wrong before and now",
    "only": "one stage only",
}
"""What became of an item between the first and the last stage that answered it."""

MAX_PER_TASK_AND_CHANGE = 6
MAX_OUTPUT_CHARS = 4000
"""Longer texts are cut, so that the page of a long run still opens quickly."""

# A prompt may already open the thinking, then the output begins inside of it.
_THINK = re.compile(
    r"(\A(?:(?!<think>).)*?</think>|<think>.*?(?:</think>|\Z))", re.DOTALL
)


@dataclasses.dataclass(frozen=True)
class Output:
    """What one stage said to an item."""

    stage: str
    correct: bool
    well_formed: bool
    extracted: str | None
    num_tokens: int | None
    stop_reason: str
    segments: Sequence[tuple[str, str]]
    """(kind, text) in order; kind is `think` or `said`."""


@dataclasses.dataclass(frozen=True)
class Item:
    """One held-out item with the output of each stage."""

    source: str
    domain: str
    task: str
    level: str
    prompt: str
    answer: str
    outputs: Sequence[Output]

    @property
    def change(self) -> str:
        """A key of `CHANGES`."""
        if len(self.outputs) < 2:
            return "only"
        before, after = self.outputs[0].correct, self.outputs[-1].correct
        if after:
            return "kept" if before else "gained"
        return "lost" if before else "missed"

    @property
    def name(self) -> str:
        """The task, or the source where it has no task, with the level."""
        return " ".join(filter(None, (self.task or self.source, self.level)))


@dataclasses.dataclass(frozen=True)
class Samples:
    """The items that the page shows, and how many there are of each kind."""

    items: Sequence[Item]
    counts: Mapping[str, int]
    """All items by change, shown or not."""
    names: Sequence[str]
    stages: Sequence[str]


def join_samples(by_stage: Mapping[str, list[Record]]) -> Samples | None:
    """Joins the outputs of all stages by item; None when there are none.

    Args:
      by_stage: graded items of each stage, stages in the order in which they ran.
    """
    items = list(_join(by_stage))
    if not items:
        return None
    return Samples(
        items=_choose(items),
        counts=collections.Counter(item.change for item in items),
        names=list(dict.fromkeys(item.name for item in items)),
        stages=list(by_stage),
    )


def _join(by_stage: Mapping[str, list[Record]]) -> Iterator[Item]:
    outputs: dict[tuple[str, str, int], list[Output]] = {}
    records: dict[tuple[str, str, int], Record] = {}
    for stage, stage_records in by_stage.items():
        # A prompt may be asked twice; its n-th asking is the same item in every stage.
        askings: collections.Counter[tuple[str, str]] = collections.Counter()
        for record in stage_records:
            asked = str(record.get("source")), str(record.get("prompt"))
            askings[asked] += 1
            key = (*asked, askings[asked])
            outputs.setdefault(key, []).append(_output(stage, record))
            records[key] = record
    for key, record in records.items():
        yield Item(
            source=str(record.get("source")),
            domain=str(record.get("domain") or ""),
            task=str(record.get("task") or ""),
            level=str(record.get("level") or ""),
            prompt=_cut(str(record.get("prompt") or "")),
            answer=_cut(_text(record.get("answer"))),
            outputs=outputs[key],
        )


def _output(stage: str, record: Record) -> Output:
    extracted = record.get("extracted")
    return Output(
        stage=stage,
        correct=bool(record.get("correct")),
        well_formed=bool(record.get("well_formed")),
        extracted=None if extracted is None else _cut(_text(extracted)),
        num_tokens=record.get("num_tokens"),
        stop_reason=str(record.get("stop_reason") or ""),
        segments=list(split_thinking(_cut(str(record.get("output") or "")))),
    )


def _text(value: Any) -> str:
    return value if isinstance(value, str) else repr(value)


def _cut(text: str) -> str:
    left_out = len(text) - MAX_OUTPUT_CHARS
    if left_out <= 0:
        return text
    return f"{text[:MAX_OUTPUT_CHARS]} … ({left_out:,} more characters)"


def split_thinking(text: str) -> Iterator[tuple[str, str]]:
    """Cuts a text into thinking and rest; an unclosed <think> reaches to the end."""
    for index, part in enumerate(_THINK.split(text)):
        if part:
            yield ("think" if index % 2 else "said"), part


def _choose(items: Sequence[Item]) -> list[Item]:
    groups: dict[tuple[str, str], list[Item]] = {}
    for item in items:
        groups.setdefault((item.name, item.change), []).append(item)
    kept = [group[:MAX_PER_TASK_AND_CHANGE] for group in groups.values()]
    # Interleaved, so that the first page shows many tasks rather than one.
    rounds = itertools.zip_longest(*kept)
    return [item for round_ in rounds for item in round_ if item is not None]
