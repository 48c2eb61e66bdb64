# SPDX-License-Identifier: Apache-2.0
"""What a curation was made from, what it removed and why, and what is left.

It holds no time and no path of a machine: the same inputs give the same bytes.
"""

import collections
import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from ring_jax import __version__
from ring_jax.config import ConfigError, CurateConfig
from ring_jax.curate import duplicates, taxonomy
from ring_jax.curate.chunks import Chunk
from ring_jax.curate.contamination import EvaluationSet
from ring_jax.curate.difficulty import BANDS
from ring_jax.curate.embeddings import deciding_settings
from ring_jax.curate.quarantine import Quarantine
from ring_jax.curate.read import OpenSource, SourceFile
from ring_jax.curate.shards import Tally
from ring_jax.curate.similarity import Items

MANIFEST = "manifest.json"
REPORT = "report.html"
FORMAT = 1
"""Of manifest and shards; a change that readers must know of raises it."""

Manifest = Mapping[str, Any]


@dataclasses.dataclass(frozen=True, slots=True)
class Opened:
    """All that a curation reads."""

    sources: Sequence[OpenSource]
    evaluation_sets: Sequence[EvaluationSet]
    items: Items | None = None
    """Evaluation items that rows are compared with by meaning, if they are."""


def make_plan(config: CurateConfig, opened: Opened) -> dict[str, Any]:
    """Returns all that decides the result: what a folder that was begun must agree on.

    Where and by how many workers it is made, and where the files lie, do not decide.
    """
    return {
        "ring_jax": __version__,
        "format": FORMAT,
        "settings": settings(config),
        "files": {
            **{
                f"sources.{source.name}": _files(source.files)
                for source in opened.sources
            },
            **{
                f"evaluation_sets.{known.name}": _files(known.files)
                for known in opened.evaluation_sets
            },
        },
    }


def settings(config: CurateConfig) -> dict[str, Any]:
    """Returns the settings that decide the result."""
    tree = dataclasses.asdict(config)
    del tree["output_dir"], tree["scale"], tree["verification"]["num_workers"]
    tree["embeddings"] = deciding_settings(config.embeddings)
    for source in (*tree["sources"].values(), *tree["evaluation_sets"].values()):
        source["path"] = source["path"] and pathlib.Path(source["path"]).name
    return tree


def _files(files: Sequence[SourceFile]) -> dict[str, str]:
    return {f"{number} {file.name}": file.sha256 for number, file in enumerate(files)}


def load_manifest(folder: pathlib.Path) -> Manifest:
    """Reads the manifest of a finished curation.

    Raises:
      ConfigError: there is none, or it cannot be read.
    """
    path = folder / MANIFEST
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{folder} holds no finished curation.") from None
    except ValueError as error:
        raise ConfigError(f"{path} is not JSON ({error}); restore it.") from None


def make_manifest(
    config: CurateConfig,
    opened: Opened,
    chunks: Sequence[Chunk],
    quarantine: Quarantine,
    *,
    shards: Mapping[str, Sequence[pathlib.Path]],
    tally: Tally,
) -> Manifest:
    """Puts together what the manifest says; every record is accounted for once."""
    num_rows = sum(tally.cells.values())
    num_records = sum(chunk.num_records for chunk in chunks)
    num_removed = sum(quarantine.counts.values())
    assert num_records == num_rows + num_removed, (num_records, num_rows, num_removed)
    known = taxonomy.load_taxonomy(config.taxonomy).nodes
    return {
        "ring_jax": __version__,
        "format": FORMAT,
        "num_records": num_records,
        "num_rows": num_rows,
        "num_quarantined": num_removed,
        "sources": {
            source.name: _source(source, chunks, quarantine, shards, tally)
            for source in opened.sources
        },
        "evaluation_sets": {
            known.name: {
                "num_items": len(known.items),
                "num_by_words_only": _by_words_only(known, opened.items),
                "files": [dataclasses.asdict(file) for file in known.files],
            }
            for known in opened.evaluation_sets
        },
        "steps": _steps(chunks, quarantine, num_rows=num_rows),
        "counts": _counts(tally),
        "characters": dict(tally.characters),
        "licences": dict(sorted(tally.licences.items())),
        "topics": dict(tally.topics.most_common()),
        "gaps": taxonomy.gaps(
            tally.topics, nodes=known, min_rows=config.taxonomy.min_rows
        )
        if config.taxonomy.check == "tag"
        else {},
        "settings": settings(config),
    }


def _by_words_only(known: EvaluationSet, items: Items | None) -> int:
    return items.num_left_out[known.name] if items else len(known.items)


def _source(
    source: OpenSource,
    chunks: Sequence[Chunk],
    quarantine: Quarantine,
    shards: Mapping[str, Sequence[pathlib.Path]],
    tally: Tally,
) -> dict[str, Any]:
    removed = {
        f"{step}/{reason}": count
        for (name, step, reason), count in sorted(quarantine.counts.items())
        if name == source.name
    }
    num_records = sum(c.num_records for c in chunks if c.source == source.name)
    return {
        "kind": source.config.kind,
        "version": source.config.version,
        "licence": source.config.licence,
        "packages": sorted(tally.packages[source.name]),
        "files": [dataclasses.asdict(file) for file in source.files],
        "num_records": num_records,
        "num_rows": num_records - sum(removed.values()),
        "removed": removed,
        "shards": [_shard(path) for path in shards[source.name]],
    }


def _shard(path: pathlib.Path) -> dict[str, Any]:
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return {"name": path.name, "num_bytes": path.stat().st_size, "sha256": sha256}


def _steps(
    chunks: Sequence[Chunk], quarantine: Quarantine, *, num_rows: int
) -> list[dict[str, Any]]:
    num_in: collections.Counter[str] = collections.Counter()
    num_out: collections.Counter[str] = collections.Counter()
    for chunk in chunks:
        for name, step in chunk.steps.items():
            num_in[name] += step["rows_in"]
            num_out[name] += step["rows_out"]
    num_in[duplicates.STEP] = sum(chunk.num_rows for chunk in chunks)
    num_out[duplicates.STEP] = num_rows
    return [
        {
            "name": name,
            "rows_in": rows_in,
            "rows_out": num_out[name],
            "removed": _removed(name, quarantine),
        }
        for name, rows_in in num_in.items()
    ]


def _removed(step: str, quarantine: Quarantine) -> dict[str, Any]:
    counts: collections.Counter[str] = collections.Counter()
    for (_, name, reason), count in quarantine.counts.items():
        if name == step:
            counts[reason] += count
    return {
        reason: {"count": count, "examples": quarantine.examples[step, reason]}
        for reason, count in counts.most_common()
    }


def _counts(tally: Tally) -> dict[str, dict[str, int]]:
    domains = sorted({domain for domain, _ in tally.cells})
    return {
        domain: {band: tally.cells[domain, band] for band in BANDS}
        for domain in domains
    }
