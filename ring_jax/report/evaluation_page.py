# SPDX-License-Identifier: Apache-2.0
"""The page of several evaluations: gained, kept and lost, in one HTML file."""

import dataclasses
import os.path
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from ring_jax.config import ConfigError
from ring_jax.report import significance
from ring_jax.report.comparison import Comparison, Group
from ring_jax.report.evaluation_folder import GROUPS
from ring_jax.report.item_changes import CHANGES, item_changes
from ring_jax.report.page_file import with_commas, write_page
from ring_jax.report.radar import Radar, Scores, radar
from ring_jax.report.suite_rows import Column

MEASURES = {
    "score": "score",
    "difference": "difference to the base",
    "items": "items × samples",
    "think": "thinking, mean tokens",
    "tokens": "all, mean tokens",
    "truncated": "cut off",
    "malformed": "paired-tag errors",
}
"""What the table of suites can show."""


@dataclasses.dataclass(frozen=True)
class ThinkSpread:
    """How long one model thinks over all outputs of a group, in tokens."""

    column: Column
    num_outputs: int
    low: float
    """10th percentile."""
    median: float
    high: float
    """90th percentile."""
    longest: int


@dataclasses.dataclass(frozen=True)
class TagErrors:
    """Outputs of one model that were cut off, and whose <think> tags do not pair."""

    column: Column
    num_outputs: int
    num_cut_off: int
    kinds: Mapping[str, int]

    @property
    def count(self) -> int:
        """Outputs with an error of any kind."""
        return sum(self.kinds.values())


def write_evaluation_page(comparison: Comparison, out: Path) -> Path:
    """Writes a comparison as one HTML file, with links to the reports of its runs.

    Returns:
      The file that was written.

    Raises:
      ConfigError: `out` is no place for a file.
    """
    if out.is_dir() or not out.parent.is_dir():
        raise ConfigError(f"out={out} must name a file in a folder that exists.")
    values = comparison_values(comparison) | {"reports": _reports(comparison, out)}
    return write_page("evaluation.html.jinja", out, values, filters=FILTERS)


def comparison_values(comparison: Comparison) -> dict[str, Any]:
    """Returns what the sections of a comparison show, by the names of the template."""
    spreads = {group: list(_think_spreads(comparison, group)) for group in GROUPS}
    highs = [spread.high for found in spreads.values() for spread in found]
    return {
        "comparison": comparison,
        "stages": comparison.stages,
        "groups": GROUPS,
        "radar": capability_radar(comparison),
        "measures": MEASURES,
        "spreads": {group: found for group, found in spreads.items() if found},
        "longest_high": max(highs, default=0.0) or 1.0,
        "tag_errors": list(_tag_errors(comparison)),
        "changes": CHANGES,
        "changed": item_changes(comparison),
        "method": significance.METHOD,
    }


def _reports(comparison: Comparison, out: Path) -> list[tuple[str, str]]:
    """Lists runs whose stages are compared and that have a report: name and link."""
    inner = [column.evaluation.folder.resolve().parent for column in comparison.columns]
    runs = dict.fromkeys(path.parent for path in inner if path.name == "evaluation")
    return [
        (run.name, quote(os.path.relpath(run / "report.html", out.resolve().parent)))
        for run in runs
        if (run / "report.html").is_file()
    ]


def capability_radar(comparison: Comparison) -> Radar | None:
    """Draws the capabilities that all stages have; None where they are too few."""
    groups = [group for group in comparison.capabilities if group.suites]
    models = [
        Scores(
            column.name,
            column.slot,
            column.is_reference,
            [_score(group, index) for group in groups],
        )
        for index, column in enumerate(comparison.columns)
    ]
    return radar([group.name for group in groups], models, [g.chance for g in groups])


def _score(group: Group, index: int) -> float | None:
    average = group.averages[index]
    return average.score if average else None


def _think_spreads(comparison: Comparison, group: str) -> Iterator[ThinkSpread]:
    suites = [row.name for row in comparison.rows if row.group == group]
    for column in comparison.columns:
        tokens = [
            count
            for name in suites
            if (records := column.evaluation.records.get(name))
            for count in records.think_tokens
        ]
        if tokens:
            low, median, high = map(float, np.percentile(tokens, [10, 50, 90]))
            yield ThinkSpread(column, len(tokens), low, median, high, max(tokens))


def _tag_errors(comparison: Comparison) -> Iterator[TagErrors]:
    for column in comparison.columns:
        records = column.evaluation.records.values()
        kinds: dict[str, int] = {}
        for suite in records:
            for kind, count in suite.tag_errors.items():
                kinds[kind] = kinds.get(kind, 0) + count
        num_outputs = sum(suite.num_outputs for suite in records)
        if num_outputs:
            num_cut_off = sum(suite.num_cut_off for suite in records)
            yield TagErrors(column, num_outputs, num_cut_off, _by_count(kinds))


def _by_count(kinds: Mapping[str, int]) -> dict[str, int]:
    return dict(sorted(kinds.items(), key=lambda item: -item[1]))


def percent(share: float | None) -> str:
    """Writes a share as 12.3 %."""
    return "–" if share is None else f"{100 * share:.1f} %"


def points(difference: float | Sequence[float] | None) -> str:
    """Writes a difference of shares, or both ends of one, in percentage points."""
    if difference is None:
        return "–"
    if isinstance(difference, Sequence):
        return " to ".join(points(end) for end in difference)
    text = f"{100 * difference:+.1f}".replace("-", "−")
    return "±0.0" if text in ("+0.0", "−0.0") else text


def _tokens(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}"


FILTERS: Mapping[str, Callable[[Any], str]] = {
    "count": with_commas,
    "percent": percent,
    "points": points,
    "tokens": _tokens,
}
"""How the sections of a comparison write numbers."""
