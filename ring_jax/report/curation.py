# SPDX-License-Identifier: Apache-2.0
"""The page of a curation: what went in, what each step removed, what is left."""

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ring_jax.report.page_file import with_commas, write_page


@dataclasses.dataclass(frozen=True)
class CountBar:
    """One bar of a chart: its text, its count and its share of the longest."""

    name: str
    count: int
    percent: float
    slot: int = 1


@dataclasses.dataclass(frozen=True)
class Heat:
    """Rows of each domain by difficulty, each cell with its share of the fullest."""

    bands: Sequence[str]
    domains: Sequence[tuple[str, Sequence[tuple[int, float]], int]]


def write_curation_report(manifest: Mapping[str, Any], out: Path) -> Path:
    """Writes the page of a curation as one HTML file.

    Args:
      manifest: what `manifest.json` holds.
      out: the file to write.

    Returns:
      The file that was written.
    """
    values = {
        "manifest": manifest,
        "steps": list(_steps(manifest)),
        "reasons": list(_reasons(manifest)),
        "heat": _heat(manifest["counts"]),
        "topics": _bars(manifest["topics"], slot=3),
        "sources": manifest["sources"],
        "characters": _bars(manifest["characters"], slot=6),
        "settings": json.dumps(manifest["settings"], indent=1),
    }
    filters = {"count": with_commas}
    return write_page("curation.html.jinja", out, values, filters=filters)


def _steps(manifest: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    total = max(manifest["num_records"], 1)
    for step in manifest["steps"]:
        kept, removed = step["rows_out"], step["rows_in"] - step["rows_out"]
        yield {
            "name": step["name"],
            "kept": kept,
            "removed": removed,
            "kept_percent": round(100 * kept / total, 2),
            "removed_percent": round(100 * removed / total, 2),
        }


def _reasons(manifest: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for step in manifest["steps"]:
        for reason, removed in step["removed"].items():
            yield {"step": step["name"], "reason": reason, **removed}


def _bars(counts: Mapping[str, int], *, slot: int) -> list[CountBar]:
    highest = max(counts.values(), default=0) or 1
    return [
        CountBar(name, count, round(100 * count / highest, 2), slot)
        for name, count in counts.items()
        if count
    ]


def _heat(counts: Mapping[str, Mapping[str, int]]) -> Heat:
    bands = list(next(iter(counts.values()), {}))
    highest = max((n for row in counts.values() for n in row.values()), default=0) or 1
    domains = [
        (
            domain,
            [(row[band], round(100 * row[band] / highest, 1)) for band in bands],
            sum(row.values()),
        )
        for domain, row in counts.items()
    ]
    return Heat(bands, domains)
