# SPDX-License-Identifier: Apache-2.0
"""The items of a suite: rows as they are asked, the same ones each time."""

import collections
import dataclasses
import pathlib
import types
from collections.abc import Callable, Mapping
from typing import NamedTuple

from ring_jax.config import ConfigError, SourceConfig, SuiteConfig
from ring_jax.data import evaluation_files, sources
from ring_jax.data.evaluation_files import FILE_SETS
from ring_jax.data.evaluation_rows import read_rows
from ring_jax.data.evaluation_sets import PACKAGED
from ring_jax.data.schema import Row, row_from_json
from ring_jax.data.sources.reasoning_tasks import TASKS
from ring_jax.data.sources.split import digest
from ring_jax.evaluate.heldout import HELDOUT, Heldout

NO_ROWS: Heldout = types.MappingProxyType({})
"""Of a run that is not asked for its own rows."""


class AskedSuite(NamedTuple):
    """A suite with its items."""

    config: SuiteConfig
    rows: list[Row]


def read_suites(
    suites: Mapping[str, SuiteConfig], heldout: Heldout = NO_ROWS
) -> dict[str, AskedSuite]:
    """Reads the items of suites by name; see `read_items`."""
    return {
        name: AskedSuite(suite, read_items(name, suite, heldout))
        for name, suite in suites.items()
    }


def read_items(name: str, suite: SuiteConfig, heldout: Heldout = NO_ROWS) -> list[Row]:
    """Reads the items of a suite, asked in the suite's words.

    Args:
      name: of the suite.
      suite: its settings.
      heldout: the run's own held-out rows, for suites of them.

    Raises:
      ConfigError: the kind is unknown; a package or a file is missing (names where it
        goes); an item has no verifier; two items have one id.
    """
    if suite.kind not in READERS:
        raise ConfigError(
            f"suite {name}: kind={suite.kind!r} must be one of {list(READERS)}."
        )
    rows = READERS[suite.kind](name, suite, heldout)
    if suite.num_items is not None and suite.kind not in ("reasoning_gym", HELDOUT):
        rows = _some(rows, suite.num_items, seed=suite.seed)
    counts = collections.Counter(row.id for row in rows)
    if twice := [row_id for row_id, count in counts.items() if count > 1]:
        raise ConfigError(f"suite {name}: has {twice[0]!r} more than once; rename one.")
    for row in rows:
        if not row.verifier or not row.messages:
            raise ConfigError(
                f"suite {name}: row {row.id} has no verifier or no messages; an item "
                "needs both."
            )
    if not rows:
        raise ConfigError(f"suite {name}: has no item.")
    return [_asked(row, suite.prompt) for row in rows]


def level_of(row: Row) -> str:
    """Names how hard an item is: its level, or the third of its difficulty."""
    if row.level or not row.difficulty:
        return row.level
    thirds = ("easy", "medium", "hard")
    return thirds[min(int(row.difficulty * 3), 2)]


def chance_of(row: Row) -> float | None:
    """Returns the share of right answers of who guesses; None where nobody can."""
    choices = row.metadata.get("choices")
    if row.verifier != "choice" or not choices:
        return None
    return 1.0 / len(choices)


def _some(rows: list[Row], num_items: int, *, seed: int) -> list[Row]:
    """Draws rows by a hash of their ids, and keeps their order."""
    drawn = sorted(rows, key=lambda row: digest(f"{seed}/{row.id}"))[:num_items]
    ids = {row.id for row in drawn}
    return [row for row in rows if row.id in ids]


def _asked(row: Row, prompt: str) -> Row:
    *before, question, reply = row.messages
    said = prompt.replace("{question}", question.content)
    question = dataclasses.replace(question, content=said)
    return dataclasses.replace(row, messages=(*before, question, reply))


def _read_heldout(name: str, suite: SuiteConfig, heldout: Heldout) -> list[Row]:
    sources = [source for source in suite.sources.split(",") if source]
    if absent := [source for source in sources if source not in heldout]:
        raise ConfigError(
            f"suite {name}: source {absent[0]!r} has no held-out rows with a verifier; "
            f"those that have some: {', '.join(heldout) or 'none'}."
        )
    return [row for source in sources for row in heldout[source][: suite.num_items]]


def _read_packaged(name: str, suite: SuiteConfig, heldout: Heldout) -> list[Row]:
    del name, heldout
    return read_rows(suite.kind)


def _read_published(name: str, suite: SuiteConfig, heldout: Heldout) -> list[Row]:
    del heldout
    if not suite.path:
        raise ConfigError(f"suite {name}: set its path to the set's file or folder.")
    return evaluation_files.read(suite.kind, suite.path)


def _read_gym(name: str, suite: SuiteConfig, heldout: Heldout) -> list[Row]:
    del heldout
    if suite.task not in TASKS:
        raise ConfigError(
            f"suite {name}: task={suite.task!r} must be one of {sorted(TASKS)}."
        )
    rows = []
    for level in TASKS[suite.task].levels:
        source = SourceConfig(
            kind="reasoning_gym",
            task=suite.task,
            level=level,  # pyright: ignore[reportArgumentType]  # the schema checks it
            num_rows=1,  # a source has one; only problems that are never trained count
            num_heldout=suite.num_items or 32,
        )
        rows += sources.read(source, name=f"{name}_{level}", seed=suite.seed).heldout
    return rows


def _read_file(name: str, suite: SuiteConfig, heldout: Heldout) -> list[Row]:
    del heldout
    path = pathlib.Path(suite.path or "")
    if not path.is_file():
        raise ConfigError(
            f"suite {name}: path={suite.path!r} is no file; put its items there as "
            "JSON lines of the row schema: messages, answer, verifier."
        )
    defaults = {
        "source": name,
        "domain": suite.capability or name,
        "licence": "NOASSERTION",
        "package": f"{path.name}==local",
    }
    with path.open("rb") as lines:
        return [
            row_from_json(line, where=f"{path.name}:{number}", defaults=defaults)
            for number, line in enumerate(lines, 1)
            if line.strip()
        ]


READERS: Mapping[str, Callable[[str, SuiteConfig, Heldout], list[Row]]] = {
    "rows": _read_file,
    HELDOUT: _read_heldout,
    "reasoning_gym": _read_gym,
    **dict.fromkeys([*PACKAGED, "bfcl_live"], _read_packaged),
    **dict.fromkeys(FILE_SETS, _read_published),
}
"""Kind -> function of the suite's name and settings, and of held-out rows."""
