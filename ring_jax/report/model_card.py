# SPDX-License-Identifier: Apache-2.0
"""A comparison of evaluations as Markdown, for a model card."""

import html
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from ring_jax.config import ConfigError
from ring_jax.report import significance
from ring_jax.report.comparison import Comparison, Group, Retained
from ring_jax.report.evaluation_folder import Suite
from ring_jax.report.evaluation_page import percent
from ring_jax.report.suite_rows import Difference, SuiteRow


def write_model_card(comparison: Comparison, out: Path) -> Path:
    """Writes the tables of a comparison as Markdown.

    Raises:
      ConfigError: `out` is no place for a file.
    """
    if out.is_dir() or not out.parent.is_dir():
        raise ConfigError(f"out={out} must name a file in a folder that exists.")
    out.write_text("\n".join(_lines(comparison)) + "\n", encoding="utf-8")
    return out


def _lines(comparison: Comparison) -> Iterator[str]:
    yield "## Evaluation"
    yield ""
    columns = comparison.columns
    for column in columns:
        role = "reference" if column.is_reference else "compared"
        evaluation = column.evaluation
        yield f"- **{_plain(column.name)}** ({role}): {_plain(evaluation.model)}, " + (
            _plain(evaluation.date)
        )
    names = [_plain(column.name) for column in columns]
    for group in comparison.groups.values():
        yield ""
        yield from _table(group, names, comparison.rows)
    yield ""
    yield retained_sentence(comparison.retained)
    if comparison.levels:
        yield ""
        yield from _levels(comparison, names)
    notes = [
        f"- {_plain(row.name)}: {_plain(n)}"
        for row in comparison.rows
        for n in row.notes
    ]
    if notes:
        yield ""
        yield "Notes:"
        yield ""
        yield from notes
    yield ""
    yield f"In parentheses: items × samples, if more than one. {significance.METHOD}"


def _table(
    group: Group, names: Sequence[str], rows: Sequence[SuiteRow]
) -> Iterator[str]:
    rows = [row for row in rows if row.group == group.name]
    if not rows:
        yield f"No suite of the group {group.name} was evaluated."
        return
    yield _row([group.name, "measured as", "chance", *names])
    yield _row(["---", "---", *["---:"] * (1 + len(names))])
    for row in rows:
        cells = map(_cell, row.suites, row.differences)
        yield _row([_plain(row.name), _metric(row), percent(row.chance), *cells])
    averages = [
        f"**{percent(average.score)}** ({average.num_items:,})" if average else "–"
        for average in group.averages
    ]
    name = f"**average of {len(group.suites)}**"
    yield _row([name, "mean over suites", percent(group.chance), *averages])
    if group.left_out:
        yield ""
        left_out = ", ".join(map(_plain, group.left_out))
        yield f"Not in the average, because not done in all stages: {left_out}."


def _metric(row: SuiteRow) -> str:
    metrics = dict.fromkeys(suite.metric for suite in row.suites if suite)
    return _plain(", ".join(metrics))


def _cell(suite: Suite | None, difference: Difference | None) -> str:
    if suite is None:
        return "–"
    if suite.score is None:
        return suite.status
    mark = f" {difference.mark}" if difference and difference.mark else ""
    samples = f" × {suite.num_samples}" if suite.num_samples > 1 else ""
    status = "" if suite.status == "done" else f", {suite.status}"
    return f"{percent(suite.score)}{mark} ({suite.num_items:,}{samples}{status})"


def retained_sentence(retained: Retained) -> str:
    """Says how much was retained, in one sentence of Markdown."""
    if retained.value is None:
        return f"Retained fraction of general skills: none, because {retained.reason}."
    base, first, last = map(_plain, retained.columns)
    ends = (
        f" (95 % interval {retained.low:.2f} to {retained.high:.2f})"
        if retained.low is not None and retained.high is not None
        else " (no interval: outputs are missing)"
    )
    return (
        f"Retained fraction of general skills: **{retained.value:.3f}**{ends}, "
        f"which is ({last} − {first}) ÷ ({base} − {first})."
    )


def _levels(comparison: Comparison, names: Sequence[str]) -> Iterator[str]:
    yield _row(["reasoning by level", *names])
    yield _row(["---", *["---:"] * len(names)])
    for level, found in comparison.levels.items():
        scores = {
            column.name: f"{percent(average.accuracy)} ({average.num_items:,})"
            for column, average in found
        }
        cells = [scores.get(column.name, "–") for column in comparison.columns]
        yield _row([_plain(level), *cells])


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _plain(text: str) -> str:
    # Labels and reasons are foreign text: neither markup nor a new row of the table.
    text = html.escape(" ".join(text.split()), quote=False)
    return re.sub(r"([\\`*_\[\]|!])", r"\\\1", text)
