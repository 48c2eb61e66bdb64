# SPDX-License-Identifier: Apache-2.0
"""Verified reasoning problems with derivations, from reasoning-gym."""

import collections
import dataclasses
import math
from collections.abc import Iterator
from typing import Any

from ring_jax.config import ConfigError, SourceConfig
from ring_jax.data.schema import Message, Row
from ring_jax.data.sources import packages
from ring_jax.data.sources.reasoning_tasks import TASKS, Problem
from ring_jax.data.sources.split import SourceRows, digest, is_heldout

MAX_ANSWER_SHARE = 0.15
"""No answer is given by more of the rows: guessing it must not look like reasoning."""
MAX_DRAWS_PER_ROW = 30
"""Problems drawn for each row wanted, before the reader gives what it has."""
# Metadata that no verifier reads; some of it is not JSON.
UNGRADED_KEYS = ("difficulty", "variables", "answer_cot")
DIFFICULTY = {"easy": 0.0, "medium": 0.5, "hard": 1.0}


def read_reasoning(config: SourceConfig, *, name: str, seed: int) -> SourceRows:
    """Draws problems of one task and level, each verified before it is accepted.

    Training rows keep the task's own distribution, repeats included; held-out rows are
    distinct and come from problems that are never trained.

    Raises:
      ConfigError: the task or level is unknown, or reasoning-gym is missing.
    """
    package = packages.installed("reasoning-gym", licence="Apache-2.0")
    rows = {"train": [], "heldout": []}
    wanted = {"train": config.num_rows, "heldout": config.num_heldout}
    counts = {part: collections.Counter() for part in rows}
    seen: set[str] = set()
    for entry, problem in _draw(config, name=name, seed=seed):
        if all(len(rows[part]) >= wanted[part] for part in rows):
            break
        part = "heldout" if is_heldout(f"{config.task}:{problem.prompt}") else "train"
        is_repeat = part == "heldout" and problem.prompt in seen
        cap = math.ceil(MAX_ANSWER_SHARE * wanted[part])
        is_common = counts[part][problem.answer] >= cap
        if len(rows[part]) >= wanted[part] or is_repeat or is_common:
            continue
        counts[part][problem.answer] += 1
        seen.add(problem.prompt)
        row_id = f"{name}/{part}/{len(rows[part])}"
        origin = {"id": row_id, "source": name, **dataclasses.asdict(package)}
        rows[part].append(_row(entry, problem, config=config, origin=origin))
    return SourceRows(rows["train"], rows["heldout"])


def _draw(
    config: SourceConfig, *, name: str, seed: int
) -> Iterator[tuple[dict[str, Any], Problem]]:
    settings = level_settings(config, name)
    import reasoning_gym  # an optional dependency; the caller has checked it

    num_draws = MAX_DRAWS_PER_ROW * (config.num_rows + config.num_heldout * 8)
    # Items are functions of seed + index: hashed, so that two sources of one task with
    # neighbouring seeds do not walk through the same problems.
    start = digest(f"{seed}/{config.task}/{config.level}/{name}") >> 16
    dataset = reasoning_gym.create_dataset(
        config.task, size=max(num_draws, 1), seed=start, **settings
    )
    write = TASKS[config.task].write
    for index in range(num_draws):
        entry = dataset[index]
        if (problem := write(entry)) is None:
            continue
        # A few entries contradict their own answer; they must not be taught.
        if dataset.score_answer(problem.native_answer or problem.answer, entry) >= 1.0:
            yield entry, problem


def level_settings(config: SourceConfig, name: str) -> dict[str, Any]:
    """Looks up the generator's settings of a task's level.

    Raises:
      ConfigError: the task or the level is unknown.
    """
    if config.task not in TASKS:
        raise ConfigError(
            f"data.sources.{name}.task={config.task!r} must be one of {sorted(TASKS)}."
        )
    levels = TASKS[config.task].levels
    if config.level not in levels:
        raise ConfigError(
            f"data.sources.{name}.level={config.level!r}: {config.task} has "
            f"{list(levels)}."
        )
    return dict(levels[config.level])


def _row(
    entry: dict[str, Any],
    problem: Problem,
    *,
    config: SourceConfig,
    origin: dict[str, Any],
) -> Row:
    metadata = {k: v for k, v in entry["metadata"].items() if k not in UNGRADED_KEYS}
    return Row(
        messages=(
            Message("user", problem.prompt),
            Message("assistant", problem.answer, think=problem.think),
        ),
        domain="reasoning",
        task=config.task,
        level=config.level,
        difficulty=DIFFICULTY[config.level],
        answer=problem.answer,
        verifier=f"reasoning_gym/{config.task}",
        metadata={"entry": {"answer": entry["answer"], "metadata": metadata}},
        **origin,
    )
