# SPDX-License-Identifier: Apache-2.0
"""The evaluations of a run's stages as a table for the terminal."""

import rich.box
from rich.table import Table

from ring_jax.report import Comparison, Group, retained_sentence

CAPTION = (
    "Share right (%), free-running; an average counts every suite alike. `guess` is "
    "what ignoring the question scores; `formed` is the last stage's share of "
    "well-formed replies."
)


def score_table(comparison: Comparison) -> Table:
    """Lays out averages: a line per group, level and capability, a column per stage."""
    table = Table(
        title="Evaluation",
        caption=f"{CAPTION} {_plain(retained_sentence(comparison.retained))}",
        caption_justify="left",
        box=rich.box.SIMPLE_HEAD,
        pad_edge=False,
    )
    table.add_column("group", no_wrap=True)
    stages = [column.name for column in comparison.columns]
    for heading in ("items", "guess", *stages, "formed"):
        table.add_column(heading, justify="right")
    for name, group in comparison.groups.items():
        _add(table, name, group, comparison, style="bold")
        capabilities = _capabilities(comparison, group)
        for capability in capabilities if len(capabilities) > 1 else ():
            _add(table, f"  {capability.name}", capability, comparison)
        if name == "reasoning":
            _add_levels(table, comparison)
    return table


def _capabilities(comparison: Comparison, group: Group) -> list[Group]:
    known = set(group.suites)
    return [c for c in comparison.capabilities if c.suites and known >= set(c.suites)]


def _add(
    table: Table, name: str, group: Group, comparison: Comparison, *, style: str = ""
) -> None:
    newest = group.averages[-1]
    if newest is None:
        return
    scores = [average.score if average else None for average in group.averages]
    shares = [group.chance, *scores, _well_formed(group, comparison)]
    table.add_row(name, str(newest.num_items), *map(_percent, shares), style=style)


def _add_levels(table: Table, comparison: Comparison) -> None:
    for level, found in comparison.levels.items():
        scores = {column.name: score.accuracy for column, score in found}
        shares = [scores.get(column.name) for column in comparison.columns]
        cells = [_percent(None), *map(_percent, shares), _percent(None)]
        table.add_row(f"  {level}", str(found[-1][1].num_items), *cells)


def _well_formed(group: Group, comparison: Comparison) -> float | None:
    suites = comparison.columns[-1].evaluation.suites
    shares = [suites[name].malformed_share for name in group.suites if name in suites]
    known = [1 - share for share in shares if share is not None]
    return sum(known) / len(known) if known else None


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f}"


def _plain(sentence: str) -> str:
    return sentence.replace("*", "")
