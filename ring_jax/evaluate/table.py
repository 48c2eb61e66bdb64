# SPDX-License-Identifier: Apache-2.0
"""The panels of a run as one table for the terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from ring_jax.report.panels import (
    REASONING,
    domain_averages,
    general_average,
    level_averages,
)


def panel_table(panels: Sequence[Mapping[str, Any]]) -> Table:
    """Sets the stages of a run side by side.

    Args:
      panels: the run's panel records, `{"stage": ..., "rows": [...]}`, in order.

    Returns:
      A row per reasoning level and other domain, and the average of the latter:
      items, the score of the most frequent answer, each stage's accuracy, and the last
      stage's share of well-formed replies. All are means over items, in percent.
    """
    table = Table(title="Held-out, free-running accuracy (%)")
    table.add_column("domain", no_wrap=True)
    for heading in ("items", "most\nfrequent"):
        table.add_column(heading, justify="right")
    for panel in panels:
        table.add_column(panel["stage"], justify="right", overflow="fold")
    table.add_column("well-\nformed", justify="right")
    by_stage = [_averages(panel["rows"]) for panel in panels]
    for name, last in by_stage[-1].items():
        if last.accuracy is not None:
            table.add_row(
                name,
                str(last.num_items),
                _percent(last.most_frequent),
                *(_percent(averages[name].accuracy) for averages in by_stage),
                _percent(last.well_formed),
            )
    return table


def _averages(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    graded = [row for row in rows if row["accuracy"] is not None]
    named = {
        f"{domain} {level}": average
        for (domain, level), average in level_averages(graded).items()
        if domain == REASONING
    }
    for domain, average in domain_averages(graded).items():
        if domain != REASONING:
            named[domain] = average
    return named | {"general (all but reasoning)": general_average(graded)}


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"
