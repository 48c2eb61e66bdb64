# SPDX-License-Identifier: Apache-2.0
"""A run's held-out rows as suites: what the model was trained for, in new problems."""

import collections
import dataclasses
from collections.abc import Iterable, Mapping, Sequence

from absl import logging

from ring_jax.config import ConfigError, RunConfig, SuiteConfig, SuitesConfig
from ring_jax.data.chat_format import ChatFormat
from ring_jax.data.chat_template import Failure
from ring_jax.data.schema import Row

type Heldout = Mapping[str, Sequence[Row]]
"""Source -> its held-out rows that can be asked."""

HELDOUT = "heldout"
"""The kind of these suites, and the group of all of them."""
PREFIX = f"{HELDOUT}_"
REASONING = "reasoning"
CAPABILITIES = {"tool": "tool use"}
"""Domain of rows -> capability, where it has another name."""


def choose_heldout(config: RunConfig, rows: Heldout, chat: ChatFormat) -> Heldout:
    """Chooses the held-out rows of each source that are asked.

    They are the first `evaluate.items_per_source` that name a verifier, without those
    whose prompt is longer than `evaluate.max_prompt_tokens`. A source that no verifier
    grades has none, and is left out.

    Args:
      config: of the run.
      rows: source -> all its held-out rows.
      chat: how the model is spoken to.

    Raises:
      ConfigError: all prompts of a source are too long.
    """
    chosen = {}
    for source, of_source in rows.items():
        graded = [row for row in of_source if row.verifier and row.messages]
        items = _with_own_ids(graded[: config.evaluate.items_per_source])
        if items:
            chosen[source] = _fitting(items, source, config, chat)
    return chosen


def with_heldout(config: RunConfig, heldout: Heldout) -> SuitesConfig:
    """Adds a suite of the held-out rows of each source to those of a run.

    Sources that generate one task at several levels are one suite, `heldout_<task>`;
    any other is `heldout_<source>`. The run's own suites keep their names.
    """
    sources: dict[str, list[str]] = {}
    for source in heldout:
        settings = config.data.sources[source]
        is_level = settings.task and settings.level
        name = settings.task if is_level else source
        sources.setdefault(f"{PREFIX}{name}", []).append(source)
    suites = {
        name: _suite(config, of_suite, heldout) for name, of_suite in sources.items()
    }
    return dataclasses.replace(config.suites, own=suites | dict(config.suites.own))


def _suite(config: RunConfig, sources: Sequence[str], heldout: Heldout) -> SuiteConfig:
    domains = collections.Counter(
        row.domain for source in sources for row in heldout[source]
    )
    ((domain, _),) = domains.most_common(1)
    return SuiteConfig(
        kind=HELDOUT,
        sources=",".join(sources),
        group="reasoning" if domain == REASONING else "general",
        capability=CAPABILITIES.get(domain, domain),
        max_new_tokens=config.evaluate.max_new_tokens,
    )


def _fitting(
    rows: Sequence[Row], source: str, config: RunConfig, chat: ChatFormat
) -> list[Row]:
    limit = config.evaluate.max_prompt_tokens
    prompts = chat.prompts([row.messages[:-1] for row in rows])
    lengths = [0 if isinstance(ids, Failure) else len(ids) for ids in prompts]
    fitting = [row for row, n in zip(rows, lengths, strict=True) if n <= limit]
    if not fitting:
        raise ConfigError(
            f"data.sources.{source}: its held-out prompts have at least {min(lengths)} "
            f"tokens, more than evaluate.max_prompt_tokens={limit}; raise it."
        )
    if num_long := len(rows) - len(fitting):
        logging.info("evaluate: left out %d long prompts of %s", num_long, source)
    return fitting


def _with_own_ids(rows: Iterable[Row]) -> list[Row]:
    """Tells rows of one id apart: several traces of a problem may have its id."""
    counts: collections.Counter[str] = collections.Counter()
    named = []
    for row in rows:
        counts[row.id] += 1
        number = counts[row.id]
        row_id = row.id if number == 1 else f"{row.id}#{number}"
        named.append(dataclasses.replace(row, id=row_id))
    return named
