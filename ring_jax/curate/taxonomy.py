# SPDX-License-Identifier: Apache-2.0
"""Topics of rows by keywords, and which topics are missing.

`taxonomy.json` names nodes as `field/level/topic` (mathematics by school level,
programming by kind of task, sciences by subject, as the paper's taxonomy does) with the
words that show them. It is a coarse instrument, meant for counts over thousands of
rows: it says where data are missing, not what one row is.
"""

import collections
import dataclasses
import json
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence

from ring_jax.config import TaxonomyConfig
from ring_jax.curate.rows import prompt_text
from ring_jax.data.schema import Row

UNTAGGED = "untagged"
MAX_TAGS = 3
"""Nodes of a row: those with the most different keywords in its prompt."""
MAX_CHARACTERS = 4000
"""Of the prompt that are looked at."""


@dataclasses.dataclass(frozen=True, slots=True)
class Taxonomy:
    """Nodes, and one pattern that finds all their keywords at once."""

    nodes: tuple[str, ...]
    by_keyword: Mapping[str, tuple[str, ...]]
    pattern: re.Pattern[str]


def load_taxonomy(config: TaxonomyConfig) -> Taxonomy:
    """Reads the built-in nodes, with those of the config in addition or instead."""
    path = pathlib.Path(__file__).with_name("taxonomy.json")
    nodes = {**json.loads(path.read_text(encoding="utf-8")), **config.nodes}
    by_keyword: dict[str, tuple[str, ...]] = {}
    for node, keywords in nodes.items():
        for keyword in filter(None, map(str.strip, keywords.casefold().split(","))):
            by_keyword[keyword] = (*by_keyword.get(keyword, ()), node)
    # Longest first: "linear equation" must not be taken for "linear".
    ordered = sorted(by_keyword, key=_longest_first)
    pattern = "|".join(_bounded(keyword) for keyword in ordered)
    return Taxonomy(tuple(nodes), by_keyword, re.compile(pattern or r"(?!)"))


def _longest_first(keyword: str) -> tuple[int, str]:
    return -len(keyword), keyword


def _bounded(keyword: str) -> str:
    # Chinese has no blanks, so no word boundaries either.
    left = r"(?<!\w)" if keyword[0].isascii() and keyword[0].isalnum() else ""
    right = r"(?!\w)" if keyword[-1].isascii() and keyword[-1].isalnum() else ""
    return left + re.escape(keyword) + right


def tag(rows: Sequence[Row], *, taxonomy: Taxonomy) -> list[Row]:
    """Writes each row's nodes into `metadata.topics`."""
    return [
        dataclasses.replace(
            row, metadata={**row.metadata, "topics": topics(row, taxonomy)}
        )
        for row in rows
    ]


def topics(row: Row, taxonomy: Taxonomy) -> list[str]:
    """Names a row's nodes, the best supported first; `untagged` where none fits."""
    text = prompt_text(row)[:MAX_CHARACTERS].casefold()
    found = dict.fromkeys(taxonomy.pattern.findall(text))
    counts = collections.Counter(
        node for keyword in found for node in taxonomy.by_keyword[keyword]
    )
    return [node for node, _ in counts.most_common(MAX_TAGS)] or [UNTAGGED]


def gaps(
    counts: Mapping[str, int], *, nodes: Iterable[str], min_rows: int
) -> dict[str, int]:
    """Lists the nodes with fewer rows than `min_rows`."""
    return {
        node: counts.get(node, 0) for node in nodes if counts.get(node, 0) < min_rows
    }
