# SPDX-License-Identifier: Apache-2.0
"""Columns of a published set, brought to the names that its form knows.

So that a new set is a few lines of a config, and no code of its own.
"""

import re
from collections.abc import Mapping
from typing import Any

from ring_jax.config import ConfigError, RawSourceConfig
from ring_jax.curate.answers import final_answer
from ring_jax.curate.rows import RawRecord, Rejection, excerpt

STEP = "normalise"

_MARKED = re.compile(r"^####[ \t]*(\S.*?)\s*\Z", re.MULTILINE)


def columns_of(config: RawSourceConfig) -> tuple[str, ...]:
    """Names the columns that `config` reads; none: all of them."""
    if not config.fields:
        return ()
    paths = [*config.fields.values(), *config.only, config.answer_in]
    return tuple(sorted({path.partition(".")[0] for path in paths} - {""}))


def take_columns(
    record: RawRecord, config: RawSourceConfig, *, source: str
) -> Mapping[str, Any] | Rejection:
    """Gives a record's columns the names of its form; turns away what is not wanted.

    Raises:
      ConfigError: the difficulty is a word that `config.difficulties` does not know.
    """
    for column, wanted in config.only.items():
        if (value := str(_find(record.fields, column))) != wanted:
            return Rejection(
                step=STEP,
                reason="not_selected",
                id=record.where,
                source=source,
                detail=f"{column}={value[:80]!r}, wanted is {wanted!r}",
                excerpt=excerpt(repr(dict(record.fields))[:4000]),
            )
    taken = dict(record.fields)
    if config.fields:
        found = {ours: _find(record.fields, c) for ours, c in config.fields.items()}
        taken = {ours: value for ours, value in found.items() if value is not None}
    if config.answer_in and "answer" not in taken:
        text = _find(record.fields, config.answer_in)
        if isinstance(text, str) and (answer := gold_answer(text)):
            taken["answer"] = answer
    if config.difficulties and "difficulty" in taken:
        taken["difficulty"] = _grade(str(taken["difficulty"]), config, record.where)
    return taken


def _find(fields: Mapping[str, Any], path: str) -> Any:
    """Follows a path such as `reward_model.ground_truth`; None where it ends."""
    value: Any = fields
    for name in path.split("."):
        if not isinstance(value, Mapping):
            return None
        value = value.get(name)
    return value


def _grade(word: str, config: RawSourceConfig, where: str) -> float:
    if word not in config.difficulties:
        raise ConfigError(
            f"{where}: difficulty={word!r} is none of {sorted(config.difficulties)}."
        )
    return config.difficulties[word]


def gold_answer(solution: str) -> str:
    """Returns the answer that a solution ends in; empty where it states none.

    That is what follows `####` in its last line, as in GSM8K, or `final_answer`.
    """
    if marked := _MARKED.search(solution):
        return marked[1]
    answer = final_answer(solution)
    # All of a solution is no answer.
    return "" if answer == solution.strip() else answer
