# SPDX-License-Identifier: Apache-2.0
"""The panels of a run as a table for the terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

import rich.box
from rich.table import Table

from ring_jax.report import Average, domain_averages, level_averages

CAPTION = (
    "share right, free-running; in brackets the share well-formed. "
    "`most frequent` is what giving always the most frequent gold answer scores."
)


def panel_table(panels: Sequence[Mapping[str, Any]]) -> Table:
    """Lays out panel records: a line per domain and level, a column per stage.

    Args:
      panels: `panel` records of `metrics.jsonl`, in the order of the stages.
    """
    table = Table(title="Held-out panel", caption=CAPTION, box=rich.box.SIMPLE_HEAD)
    table.add_column("domain")
    table.add_column("items", justify="right")
    table.add_column("most frequent", justify="right")
    for panel in panels:
        table.add_column(str(panel["stage"]), justify="right")
    by_domain = [domain_averages(panel["rows"]) for panel in panels]
    by_level = [level_averages(panel["rows"]) for panel in panels]
    for domain in by_domain[-1] if by_domain else ():
        averages = [averages.get(domain) for averages in by_domain]
        _add(table, domain, averages, style="bold")
        for key in by_level[-1]:
            if key[0] == domain:
                _add(table, f"  {key[1]}", [levels.get(key) for levels in by_level])
    return table


def _add(
    table: Table, name: str, averages: Sequence[Average | None], *, style: str = ""
) -> None:
    newest = averages[-1]
    # A domain that no verifier grades (plain text) has a loss only, and no line here.
    if newest is None or newest.accuracy is None:
        return
    cells = [_cell(average) for average in averages]
    frequent = _percent(newest.most_frequent)
    table.add_row(name, str(newest.num_items), frequent, *cells, style=style)


def _cell(average: Average | None) -> str:
    if average is None or average.accuracy is None:
        return "–"
    return f"{_percent(average.accuracy)} ({_percent(average.well_formed)})"


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.0f} %"
