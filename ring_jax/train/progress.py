# SPDX-License-Identifier: Apache-2.0
"""What a person sees while a stage trains: a bar on a terminal, lines in a log."""

import logging
import pathlib
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from ring_jax import processes
from ring_jax.train.metrics import describe

LINES_PER_STAGE = 10
"""How often a stage speaks where there is no terminal to redraw."""


class StageProgress:
    """Shows one stage; a context manager."""

    def __init__(
        self, stage: str, *, console: Console, first_step: int, num_steps: int
    ):
        self._console, self._stage = console, stage
        self._num_steps, self._last_line = num_steps, first_step
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task(
            stage, total=num_steps, completed=first_step, figures="compiling"
        )

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def advance(self, step: int) -> None:
        """Moves the bar to a finished step of the stage."""
        self._bar.update(self._task, completed=step)

    def show(self, record: dict[str, Any]) -> None:
        """Shows the figures of a train record."""
        rate = record.get("throughput/tokens_per_second")
        figures = f"loss {record['train/loss']:.3f}"
        self._bar.update(
            self._task, figures=figures + (f"  {rate:,.0f} tok/s" if rate else "")
        )
        step = record["stage_step"]
        is_due = step - self._last_line >= self._num_steps / LINES_PER_STAGE
        if not self._console.is_terminal and (is_due or step == self._num_steps):
            line = describe(record, num_steps=self._num_steps)
            self._console.print(line, highlight=False)
            self._last_line = step


def log_to_file(path: pathlib.Path) -> logging.Logger:
    """Returns the logger whose lines land in a run's `log.txt`, in the first process.

    So do the kernels' own, which say what a step is made of.
    """
    handler = logging.NullHandler()
    if processes.is_first():
        handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    logger, kernels = map(logging.getLogger, ("ring_jax.run", "pallas_kernels"))
    for each in (logger, kernels):
        each.setLevel(logging.INFO)
        each.propagate = False
        for earlier in list(each.handlers):
            earlier.close()
            each.removeHandler(earlier)
        each.addHandler(handler)
    return logger
