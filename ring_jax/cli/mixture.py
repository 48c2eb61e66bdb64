# SPDX-License-Identifier: Apache-2.0
"""What a step of a run reads: planned and packed shares, computed without a row."""

import pathlib
from collections.abc import Mapping
from typing import Any

import rich.box
import rich.console
import rich.table

from ring_jax.config import TOKEN_CLASSES, ConfigError, RunConfig
from ring_jax.data import mixture_file, prepared
from ring_jax.data.ledger import Ledger
from ring_jax.data.stage_ledger import open_ledger
from ring_jax.data.windows import Windows

CLASSES = TOKEN_CLASSES[1:]


def print_mixture(
    config: RunConfig,
    workdir: pathlib.Path | None,
    *,
    step: int,
    console: rich.console.Console,
) -> dict[str, Any]:
    """Prints the table of a step's stage, and what the step and those before it hold.

    Args:
      config: of the run.
      workdir: a run folder, whose length indexes are used when it has them.
      step: of the run, counted from 0 over all stages.
      console: where to.

    Returns:
      The same figures, for scripts.

    Raises:
      ConfigError: the run has no such step, or its data are refused.
    """
    stage, stage_step = _stage_of(config, step)
    opened = None
    if workdir is not None:
        opened = mixture_file.saved_ledger(config, workdir, stage=stage)
    if opened is None:
        opened = open_ledger(
            config, prepared.read(config, workdir).indexes, stage=stage
        )
    summary = _summary(opened, stage_step)
    console.print(_table_of_changes(opened, stage))
    console.print(_table_of_sources(summary["sources"]))
    console.print(
        f"step {step} is step {stage_step} of stage {stage}: {summary['tokens']:,} "
        f"tokens, {summary['trained_tokens']:,} trained, {_percent(summary['fill'])} "
        f"full; {summary['trained_tokens_before']:,} trained in the stage before it"
    )
    return {"step": step, "stage": stage, "stage_step": stage_step, **summary}


def _summary(opened: Ledger, stage_step: int) -> dict[str, Any]:
    windows = Windows(opened)
    shares = opened.shares(stage_step // opened.geometry.window_steps)
    here, before = windows.composition(stage_step), windows.totals(stage_step)
    tokens = sum(share.tokens for share in here.values())
    return {
        "tokens": tokens,
        "fill": tokens / (opened.geometry.batch_size * opened.geometry.seq_len),
        "trained_tokens": sum(share.trained for share in here.values()),
        "trained_tokens_before": sum(place.trained for place in before.values()),
        "sources": {
            name: {
                "planned_share": shares.get(name, 0.0),
                "rows": share.rows,
                "tokens": share.tokens,
                "trained_tokens": share.trained,
                "trained_tokens_before": before[name].trained,
                "tokens_by_class": share.by_class,
            }
            for name, share in here.items()
        },
    }


def _table_of_sources(sources: Mapping[str, Mapping[str, Any]]) -> rich.table.Table:
    table = _table("source", "planned", "this step", "before", "rows", *CLASSES)
    sums = {
        key: sum(source[key] for source in sources.values())
        for key in ("trained_tokens", "trained_tokens_before")
    }
    for name, source in sources.items():
        table.add_row(
            name,
            _percent(source["planned_share"]),
            *(_percent(source[key] / max(1, total)) for key, total in sums.items()),
            f"{source['rows']:,}",
            *(f"{source['tokens_by_class'][name]:,}" for name in CLASSES),
        )
    return table


def _stage_of(config: RunConfig, step: int) -> tuple[str, int]:
    left = step
    for name, stage in config.stages.items():
        if 0 <= left < stage.num_steps:
            return name, left
        left -= stage.num_steps
    total = sum(stage.num_steps for stage in config.stages.values())
    raise ConfigError(f"--step={step}: the run has steps 0 to {total - 1}.")


def _table_of_changes(opened: Ledger, stage: str) -> rich.table.Table:
    table = _table(
        f"{stage}: from step", "shares", "schedule", "curriculum", "fill", "reason"
    )
    for entry in opened.table:
        change, curriculum = entry.change, entry.change.curriculum
        total = sum(change.mixture.values())
        shares = (
            f"{name} {_percent(share / total)}"
            for name, share in change.mixture.items()
        )
        pace = (
            f", from {curriculum.start:g} in {curriculum.over_steps} steps"
            if curriculum.over_steps
            else ""
        )
        table.add_row(
            str(entry.start_window * opened.geometry.window_steps),
            ", ".join(shares),
            f"{change.schedule} {change.over_steps or ''}".strip(),
            f"{curriculum.lowest:g} to {curriculum.highest:g}{pace}",
            _percent(entry.fill),
            change.reason,
        )
    return table


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"


def _table(*headers: str) -> rich.table.Table:
    table = rich.table.Table(box=rich.box.SIMPLE_HEAD, pad_edge=False)
    for header in headers:
        table.add_column(header, overflow="fold")
    return table
