# SPDX-License-Identifier: Apache-2.0
"""Compares evaluations: suites, averages of the groups, what was retained, levels."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ring_jax.config import ConfigError
from ring_jax.report import significance
from ring_jax.report.evaluation_folder import (
    GROUPS,
    Suite,
    find_evaluations,
    read_evaluation,
    stage_evaluations,
)
from ring_jax.report.levels import LEVELS, LevelScore
from ring_jax.report.suite_rows import Column, SuiteRow, paired, suite_rows


@dataclasses.dataclass(frozen=True)
class GroupAverage:
    """The mean over suites of a group, or of a capability, in one column.

    Every suite counts alike, as in the tables of arXiv:2504.07158.
    """

    score: float
    low: float | None
    """Of a 95 % interval; None where outputs are missing."""
    high: float | None
    num_items: int


@dataclasses.dataclass(frozen=True)
class Group:
    """Averages of several suites in all columns."""

    name: str
    suites: Sequence[str]
    """Those that the base and every stage finished."""
    left_out: Sequence[str]
    chance: float | None
    averages: Sequence[GroupAverage | None]
    changes: Sequence[tuple[float, float] | None]
    """95 % interval of each column's average minus the base's."""


@dataclasses.dataclass(frozen=True)
class Retained:
    """How much of what the first stage cost came back by the last one.

    rho = (general_final - general_first) / (general_base - general_first)
    """

    value: float | None
    low: float | None
    high: float | None
    columns: Sequence[str]
    reason: str
    """Why there is no value."""


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Everything that the page and the model card show."""

    columns: Sequence[Column]
    rows: Sequence[SuiteRow]
    groups: Mapping[str, Group]
    capabilities: Sequence[Group]
    retained: Retained
    levels: Mapping[str, Sequence[tuple[Column, LevelScore]]]
    """Level of reasoning -> columns that have it; items of all suites are pooled."""

    @property
    def stages(self) -> list[Column]:
        """The base and the stages, without references."""
        return [column for column in self.columns if not column.is_reference]


def compare(folders: Sequence[Path], references: Sequence[Path] = ()) -> Comparison:
    """Compares evaluations with the first one.

    Args:
      folders: evaluation or run folders, in the order base, first stage, ..., last.
      references: evaluations of models to stand beside them.

    Raises:
      ConfigError: a folder holds no evaluation, or two have the same name.
    """
    columns = _columns(find_evaluations(folders), find_evaluations(references))
    rows = suite_rows(columns)
    capabilities = dict.fromkeys((row.group, row.capability) for row in rows)
    return Comparison(
        columns=columns,
        rows=rows,
        groups={
            name: _group(name, [row for row in rows if row.group == name], columns)
            for name in GROUPS
        },
        capabilities=[
            _group(key[1], [r for r in rows if (r.group, r.capability) == key], columns)
            for key in capabilities
        ],
        retained=_retained(rows, columns),
        levels=_levels(rows, columns),
    )


def compare_stages(workdir: Path) -> Comparison | None:
    """Compares the stages of a run that have been evaluated; None: none has.

    Raises:
      ConfigError: as `compare`.
    """
    folders = stage_evaluations(workdir)
    return compare(folders) if folders else None


def figures(comparison: Comparison) -> dict[str, Any]:
    """Returns averages of the groups by column and the retained fraction, for JSON."""
    averages = {
        name: {
            column.name: average.score if average else None
            for column, average in zip(comparison.columns, group.averages, strict=True)
        }
        for name, group in comparison.groups.items()
    }
    return {"averages": averages, "retained": comparison.retained.value}


def _columns(stages: Sequence[Path], references: Sequence[Path]) -> list[Column]:
    folders = [*stages, *references]
    evaluations = [read_evaluation(folder) for folder in folders]
    names = [evaluation.label for evaluation in evaluations]
    if len(set(names)) < len(names):
        # Two runs have stages of the same names; <run>/evaluation/<label>.
        runs = [folder.resolve().parent.parent.name for folder in folders]
        names = [f"{run}/{name}" for run, name in zip(runs, names, strict=True)]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise ConfigError(f"two evaluations are called {twice[0]}; name each once.")
    return [
        Column(name, evaluation, 1 + (i - 1) % 6 if i else 0, i >= len(stages))
        for i, (name, evaluation) in enumerate(zip(names, evaluations, strict=True))
    ]


def _is_done(suite: Suite | None) -> bool:
    return suite is not None and suite.status == "done"


def _finished_rows(rows: Sequence[SuiteRow], columns: Sequence[Column]):
    # A suite that one stage lacks would make its average one of other suites.
    core = [i for i, column in enumerate(columns) if not column.is_reference]
    return [row for row in rows if all(_is_done(row.suites[i]) for i in core)]


def _group(name: str, rows: Sequence[SuiteRow], columns: Sequence[Column]) -> Group:
    finished = _finished_rows(rows, columns)
    chances = [row.chance for row in finished if row.chance is not None]
    return Group(
        name=name,
        suites=[row.name for row in finished],
        left_out=[row.name for row in rows if row not in finished],
        chance=sum(chances) / len(chances)
        if chances and len(chances) == len(finished)
        else None,
        averages=[
            _average(finished, index, column) for index, column in enumerate(columns)
        ],
        changes=[
            _change(finished, columns[0], column) if index else None
            for index, column in enumerate(columns)
        ],
    )


def _average(
    rows: Sequence[SuiteRow], index: int, column: Column
) -> GroupAverage | None:
    suites = [suite for row in rows if _is_done(suite := row.suites[index])]
    scores = [suite.score for suite in suites if suite and suite.score is not None]
    if not rows or len(scores) < len(rows):
        return None
    means = _resampled([row.name for row in rows], [column])
    low, high = (None, None) if means is None else significance.interval(means[:, 0])
    num_items = sum(suite.num_items for suite in suites if suite)
    return GroupAverage(sum(scores) / len(scores), low, high, num_items)


def _change(
    rows: Sequence[SuiteRow], base: Column, column: Column
) -> tuple[float, float] | None:
    means = _resampled([row.name for row in rows], [base, column])
    return None if means is None else significance.interval(means[:, 1] - means[:, 0])


def _resampled(names: Sequence[str], columns: Sequence[Column]) -> np.ndarray | None:
    shares = [paired(name, columns) for name in names]
    return significance.resampled_averages(shares) if shares and all(shares) else None


def _retained(rows: Sequence[SuiteRow], columns: Sequence[Column]) -> Retained:
    stages = [column for column in columns if not column.is_reference]
    finished = _finished_rows([row for row in rows if row.group == "general"], columns)
    if len(stages) < 3:
        return _not_retained(stages, "it needs a base and at least two stages")
    if not finished:
        return _not_retained(stages, "no general suite is done in all stages")
    chosen = [stages[0], stages[1], stages[-1]]
    base, first, last = (float(np.mean(_scores(finished, column))) for column in chosen)
    names = [column.name for column in chosen]
    if base <= first:
        return _not_retained(stages, f"{names[1]} cost nothing on average")
    value = (last - first) / (base - first)
    means = _resampled([row.name for row in finished], chosen)
    if means is None:
        return Retained(value, None, None, names, "")
    before, after, now = means.T
    # A resample without a loss has no fraction; it may be anything.
    lost = before > after
    if lost.mean() < 0.95:
        reason = f"the loss by {names[1]} may be chance, and a share of it too"
        return Retained(None, None, None, names, reason)
    low, high = significance.interval(((now - after) / (before - after))[lost])
    return Retained(value, low, high, names, "")


def _scores(rows: Sequence[SuiteRow], column: Column) -> list[float]:
    suites = [column.evaluation.suites[row.name] for row in rows]
    return [suite.score for suite in suites if suite.score is not None]


def _not_retained(stages: Sequence[Column], reason: str) -> Retained:
    return Retained(None, None, None, [column.name for column in stages], reason)


def _levels(
    rows: Sequence[SuiteRow], columns: Sequence[Column]
) -> dict[str, list[tuple[Column, LevelScore]]]:
    reasoning = [row for row in rows if row.group == "reasoning"]
    finished = _finished_rows(reasoning, columns)
    core = [i for i, column in enumerate(columns) if not column.is_reference]
    by_level: dict[str, list[SuiteRow]] = {}
    for row in finished:
        found = [set(suite.by_difficulty) for i in core if (suite := row.suites[i])]
        for level in set.intersection(*found):
            by_level.setdefault(level, []).append(row)
    return {
        level: [
            (column, pooled)
            for index, column in enumerate(columns)
            if (pooled := _pooled(level, by_level[level], index))
        ]
        for level in sorted(by_level, key=_level_order)
    }


def _pooled(level: str, rows: Sequence[SuiteRow], index: int) -> LevelScore | None:
    suites = [suite for row in rows if _is_done(suite := row.suites[index])]
    found = [s.by_difficulty[level] for s in suites if s and level in s.by_difficulty]
    if len(found) < len(rows):
        return None
    num_items = sum(count for _, count in found)
    right = sum(score * count for score, count in found)
    return LevelScore(num_items=num_items, accuracy=right / num_items)


def _level_order(level: str) -> tuple[int, float, str]:
    if level in LEVELS:
        return LEVELS.index(level), 0.0, level
    is_number = level.replace(".", "", 1).isdecimal()
    return len(LEVELS), float(level) if is_number else float("inf"), level
