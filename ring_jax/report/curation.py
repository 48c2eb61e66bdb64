# SPDX-License-Identifier: Apache-2.0
"""The page of a curation: what went in, what each step removed, what is left."""

import dataclasses
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2


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
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "template"),
        # Removed rows are foreign text, some of it hostile: all of it is escaped.
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(count=_with_commas)
    text = environment.get_template("curation.html.jinja").render(
        manifest=manifest,
        steps=list(_steps(manifest)),
        reasons=list(_reasons(manifest)),
        heat=_heat(manifest["counts"]),
        topics=_bars(manifest["topics"], slot=3),
        sources=manifest["sources"],
        characters=_bars(manifest["characters"], slot=6),
        settings=json.dumps(manifest["settings"], indent=1),
    )
    unfinished = out.with_name(f".{out.name}.unfinished")
    unfinished.write_text(text, encoding="utf-8")
    os.replace(unfinished, out)
    return out


def _with_commas(count: int) -> str:
    return f"{count:,}"


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
