# SPDX-License-Identifier: Apache-2.0
"""The panels of a run as a table for the terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

import rich.box
from rich.table import Table

from ring_jax.report import Average, domain_averages, level_averages

CAPTION = (
    "Share right (%), free-running. `guess` is what giving always the most frequent "
    "gold answer scores; `formed` is the last stage's share of well-formed replies."
)


def panel_table(panels: Sequence[Mapping[str, Any]]) -> Table:
    """Lays out panel records: a line per domain and level, a column per stage.

    Args:
      panels: `panel` records of `metrics.jsonl`, in the order of the stages.
    """
    table = Table(
        title="Held-out panel",
        caption=CAPTION,
        caption_justify="left",
        box=rich.box.SIMPLE_HEAD,
    )
    table.add_column("domain", no_wrap=True)
    stages = [str(panel["stage"]) for panel in panels]
    for heading in ("items", "guess", *stages, "formed"):
        table.add_column(heading, justify="right")
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
    accuracies = [average and average.accuracy for average in averages]
    shares = (newest.most_frequent, *accuracies, newest.well_formed)
    cells = [_percent(share) for share in shares]
    table.add_row(name, str(newest.num_items), *cells, style=style)


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f}"
