# SPDX-License-Identifier: Apache-2.0
"""Items of an evaluation that were right before and are wrong now, and the reverse."""

import collections
import dataclasses
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ring_jax.report.comparison import Comparison
from ring_jax.report.evaluation_folder import ItemGrade, read_records
from ring_jax.report.run_folder import Record
from ring_jax.report.suite_rows import Column

CHANGES = {
    "lost": "wrong now, right before",
    "gained": "right now, wrong before",
    "missed": "wrong before and now",
    "kept": "right before and now",
    "wrong": "wrong",
    "right": "right",
}
"""What became of an item between the base and the last stage; the last two are of a
base that has no stage yet."""

MAX_ITEMS = {
    "lost": 300,
    "gained": 60,
    "missed": 30,
    "kept": 15,
    "wrong": 60,
    "right": 60,
}
"""Items that the page holds of each change; all are counted."""

MAX_CHARS = 4000
"""Of a text; more is cut from its middle, because answers stand at the end."""


@dataclasses.dataclass(frozen=True)
class ItemOutput:
    """One sample of an item by one model, such that it agrees with the verdict."""

    column: str
    slot: int
    num_right: int
    num_samples: int
    is_right: bool
    is_well_formed: bool
    is_cut_off: bool
    extracted: str | None
    detail: str
    num_tokens: int | None
    num_think_tokens: int | None
    segments: Sequence[tuple[str, str]]
    """(kind, text) in order; kind is `think` or `said`."""


@dataclasses.dataclass(frozen=True)
class ChangedItem:
    """An item with what the base and each stage said."""

    suite: str
    key: str
    level: str
    change: str
    """A key of `CHANGES`."""
    prompt: str
    answer: str
    outputs: Sequence[ItemOutput]


@dataclasses.dataclass(frozen=True)
class SuiteChanges:
    """Items of one suite by change."""

    suite: str
    counts: Mapping[str, int]
    num_items: int


@dataclasses.dataclass(frozen=True)
class ItemChanges:
    """All changes between the base and the last stage."""

    before: str
    after: str
    items: Sequence[ChangedItem]
    counts: Mapping[str, int]
    suites: Sequence[SuiteChanges]


def item_changes(comparison: Comparison) -> ItemChanges | None:
    """Compares the base with the last stage item by item; None without outputs.

    An item counts as right where more than half of its samples are. A base alone has
    items that are right or wrong.
    """
    columns = comparison.stages
    by_suite = {
        row.name: changes
        for row in comparison.rows
        if (changes := _changes(row.name, columns[0], columns[-1]))
    }
    if not by_suite:
        return None
    counts: collections.Counter[str] = collections.Counter()
    for changes in by_suite.values():
        counts.update(changes.values())
    return ItemChanges(
        before=columns[0].name,
        after=columns[-1].name,
        items=_items(by_suite, columns),
        counts=counts,
        suites=[
            SuiteChanges(name, collections.Counter(changes.values()), len(changes))
            for name, changes in by_suite.items()
        ],
    )


def _changes(suite: str, before: Column, after: Column) -> dict[str, str]:
    records = [column.evaluation.records.get(suite) for column in (before, after)]
    if before is after and records[0]:
        grades = records[0].grades
        return {key: "right" if g.is_right else "wrong" for key, g in grades.items()}
    grades = [record.grades for record in records if record]
    if len(grades) < 2:
        return {}
    return {
        key: _change(grade, grades[1][key])
        for key, grade in grades[0].items()
        if key in grades[1]
    }


def _change(before: ItemGrade, after: ItemGrade) -> str:
    if after.is_right:
        return "kept" if before.is_right else "gained"
    return "lost" if before.is_right else "missed"


def _items(
    by_suite: Mapping[str, Mapping[str, str]], columns: Sequence[Column]
) -> list[ChangedItem]:
    chosen = [
        (suite, key, change)
        for change, limit in MAX_ITEMS.items()
        for suite, key in _choose(by_suite, change, limit)
    ]
    keys: dict[str, set[str]] = {}
    for suite, key, _ in chosen:
        keys.setdefault(suite, set()).add(key)
    found = {
        suite: [_representatives(c, suite, wanted) for c in columns]
        for suite, wanted in keys.items()
    }
    return [
        _item(suite, key, change, columns, [by_key.get(key) for by_key in found[suite]])
        for suite, key, change in chosen
    ]


def _choose(
    by_suite: Mapping[str, Mapping[str, str]], change: str, limit: int
) -> list[tuple[str, str]]:
    groups = [
        [(suite, key) for key, value in changes.items() if value == change]
        for suite, changes in by_suite.items()
    ]
    # In turns, so that a large suite does not hide the small ones.
    rounds = itertools.chain.from_iterable(itertools.zip_longest(*groups))
    return [pair for pair in rounds if pair is not None][:limit]


def _representatives(column: Column, suite: str, keys: set[str]) -> dict[str, Record]:
    records = column.evaluation.records.get(suite)
    if records is None:
        return {}
    found: dict[str, Record] = {}
    for record in read_records(column.evaluation.folder, suite):
        key = str(record["id"])
        if key not in keys:
            continue
        verdict = records.grades[key].is_right
        # An output of the other verdict would contradict what stands above it.
        if key not in found or found[key]["is_correct"] != verdict:
            found[key] = record
    return found


def _item(
    suite: str,
    key: str,
    change: str,
    columns: Sequence[Column],
    records: Sequence[Record | None],
) -> ChangedItem:
    pairs = [(c, r) for c, r in zip(columns, records, strict=True) if r is not None]
    last = pairs[-1][1]
    return ChangedItem(
        suite=suite,
        key=key,
        level=_text(last.get("difficulty")),
        change=change,
        prompt=cut(_text(last.get("prompt"))),
        answer=cut(_text(last.get("answer"))),
        outputs=[_output(suite, key, column, record) for column, record in pairs],
    )


def _output(suite: str, key: str, column: Column, record: Record) -> ItemOutput:
    grade = column.evaluation.records[suite].grades[key]
    extracted = record.get("extracted")
    return ItemOutput(
        column=column.name,
        slot=column.slot,
        num_right=grade.num_right,
        num_samples=grade.num_samples,
        is_right=grade.is_right,
        is_well_formed=record.get("is_well_formed") is not False,
        is_cut_off=record.get("stop_reason") == "length",
        extracted=None if extracted is None else cut(_text(extracted)),
        detail=cut(_text(record.get("detail"))),
        num_tokens=record.get("num_tokens"),
        num_think_tokens=record.get("num_think_tokens"),
        segments=_segments(record),
    )


def _segments(record: Record) -> list[tuple[str, str]]:
    output, think = _text(record.get("output")), _text(record.get("think"))
    if think and think not in output:
        # A server may return reasoning apart from the text, without its tags.
        return [("think", cut(think)), ("said", cut(output))]
    parts = list(split_thinking(output))
    return [(kind, cut(text)) for kind, text in parts]


# A prompt may already open the thinking, then the output begins inside of it.
_THINK = re.compile(
    r"(\A(?:(?!<think>).)*?</think>|<think>.*?(?:</think>|\Z))", re.DOTALL
)


def split_thinking(text: str) -> Iterator[tuple[str, str]]:
    """Cuts a text into thinking and rest; an unclosed <think> reaches to the end."""
    for index, part in enumerate(_THINK.split(text)):
        if part:
            yield ("think" if index % 2 else "said"), part


def _text(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else repr(value)


def cut(text: str) -> str:
    """Takes the middle out of a long text, and says how much."""
    left_out = len(text) - MAX_CHARS
    if left_out <= 0:
        return text
    half = MAX_CHARS // 2
    return f"{text[:half]}\n… ({left_out:,} characters left out) …\n{text[-half:]}"
