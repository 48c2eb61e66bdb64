# SPDX-License-Identifier: Apache-2.0
"""One suite in all columns of a comparison: scores, differences, and what is amiss."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction

from ring_jax.report import significance
from ring_jax.report.evaluation_folder import GROUPS, Evaluation, Suite, SuiteRecords


@dataclasses.dataclass(frozen=True)
class Column:
    """One model of the comparison."""

    name: str
    evaluation: Evaluation
    slot: int
    """Colour of the page; the base is grey."""
    is_reference: bool
    """A reference model stands beside the stages and decides nothing."""


@dataclasses.dataclass(frozen=True)
class Difference:
    """A score minus the base's, over the items that both have."""

    value: float
    low: float
    high: float
    p_value: float
    """After Holm's correction over the suites of a column."""
    num_items: int

    @property
    def mark(self) -> str:
        """▲ or ▼ where chance alone seldom does that much, else nothing."""
        if self.p_value >= significance.LEVEL:
            return ""
        return "▲" if self.value > 0 else "▼"


@dataclasses.dataclass(frozen=True)
class SuiteRow:
    """One suite in all columns; None where a column does not have it."""

    name: str
    group: str
    capability: str
    chance: float | None
    suites: Sequence[Suite | None]
    differences: Sequence[Difference | None]
    notes: Sequence[str]


def suite_rows(columns: Sequence[Column]) -> list[SuiteRow]:
    """Lines the suites of all columns up, and compares each column with the first.

    Groups come in their order, capabilities and suites as the first folder has them.
    """
    names = dict.fromkeys(name for c in columns for name in c.evaluation.suites)
    differences = [_differences(columns[0], column, names) for column in columns]
    rows = [
        _suite_row(name, columns, [column.get(name) for column in differences])
        for name in names
    ]
    order = dict.fromkeys((row.group, row.capability) for row in rows)
    ranks = {key: rank for rank, key in enumerate(order)}
    return sorted(
        rows, key=lambda r: (GROUPS.index(r.group), ranks[r.group, r.capability])
    )


def _suite_row(
    name: str, columns: Sequence[Column], differences: Sequence[Difference | None]
) -> SuiteRow:
    suites = [column.evaluation.suites.get(name) for column in columns]
    first = next(suite for suite in suites if suite)
    chances = [suite.chance for suite in suites if suite and suite.chance is not None]
    return SuiteRow(
        name=name,
        group=first.group,
        capability=first.capability,
        chance=chances[0] if chances else None,
        suites=suites,
        differences=differences,
        notes=list(_suite_notes(name, columns)),
    )


def _suite_notes(name: str, columns: Sequence[Column]) -> Iterator[str]:
    for column in columns:
        suite = column.evaluation.suites.get(name)
        if suite is None:
            yield f"{column.name}: not evaluated"
            continue
        if suite.status != "done":
            yield f"{column.name}: {suite.status}, {suite.reason or 'no reason given'}"
        records = column.evaluation.records.get(name)
        if suite.score is None:
            continue
        if records is None:
            yield f"{column.name}: its outputs are not in the folder, so no test"
            continue
        if records.num_unreadable:
            yield f"{column.name}: {records.num_unreadable} unreadable records"
        mean = _mean(records, suite.metric)
        if not _agrees(suite, records) and mean is not None:
            yield (
                f"{column.name}: scores.json has {100 * suite.score:.1f} %, its "
                f"outputs give {100 * mean:.1f} % ({suite.metric}), so no test"
            )
    metrics = {
        suite.metric: None
        for column in columns
        if (suite := column.evaluation.suites.get(name)) and suite.score is not None
    }
    if len(metrics) > 1:
        yield f"columns differ in their metric: {', '.join(metrics)}"


def _differences(
    base: Column, column: Column, names: Mapping[str, None]
) -> dict[str, Difference]:
    if column is base:
        return {}
    pairs = {name: paired(name, [base, column]) for name in names}
    pairs = {name: shares for name, shares in pairs.items() if shares}
    p_values = significance.holm(
        [
            significance.exact_p_value([after - before for before, after in shares])
            for shares in pairs.values()
        ]
    )
    return {
        name: _difference(shares, p_value)
        for (name, shares), p_value in zip(pairs.items(), p_values, strict=True)
    }


def _mean(records: SuiteRecords, metric: str) -> float | None:
    scores = [grade.score(metric) for grade in records.grades.values()]
    return float(sum(scores) / len(scores)) if scores else None


def _agrees(suite: Suite, records: SuiteRecords) -> bool:
    # A majority (`maj@k`) cannot be told from samples alone; what is tested must be
    # what is shown. 1e-3: scores may have been rounded to a tenth of a per cent.
    mean = _mean(records, suite.metric)
    return (
        mean is not None
        and suite.score is not None
        and abs(mean - suite.score) < (1e-3)
    )


def _difference(shares: list[list[Fraction]], p_value: float) -> Difference:
    means = significance.resampled_averages([shares])
    low, high = significance.interval(means[:, 1] - means[:, 0])
    total = sum((after - before for before, after in shares), Fraction())
    return Difference(float(total / len(shares)), low, high, p_value, len(shares))


def paired(name: str, columns: Sequence[Column]) -> list[list[Fraction]]:
    """Returns scores of a suite as [item][column], of the items that all columns have.

    It is empty where outputs are missing or do not give the score of `scores.json`.
    """
    found = []
    for column in columns:
        suite = column.evaluation.suites.get(name)
        records = column.evaluation.records.get(name)
        if suite is None or records is None or not _agrees(suite, records):
            return []
        scores = {key: g.score(suite.metric) for key, g in records.grades.items()}
        found.append(scores)
    return significance.paired_scores(found)
