# SPDX-License-Identifier: Apache-2.0
"""A curation from end to end: chunks, duplicates among all of them, shards, manifest.

  1. Each source is cut into chunks of raw records. A chunk passes every step that looks
     at one row alone (`make_steps`), and is finished on disk.
  2. Duplicates are found among the keys of all chunks, in the order of the sources.
  3. What is left is written as shards; the manifest comes last, and means that the
     folder is complete.

Every part is a function of the settings and of files that have names and digests: an
interrupted curation goes on where it stopped, and ends with the same bytes.
"""

import collections
import contextlib
import dataclasses
import functools
import json
import pathlib
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
from absl import logging

from ring_jax.config import ConfigError, CurateConfig
from ring_jax.curate import (
    answers,
    contamination,
    difficulty,
    duplicates,
    purify,
    screen,
    similarity,
    taxonomy,
    verification,
)
from ring_jax.curate.chunks import Chunk, ChunkJob, chunk_jobs
from ring_jax.curate.contamination import EvaluationSet, read_evaluation_set
from ring_jax.curate.embeddings import open_embedder
from ring_jax.curate.engines import Engine, open_engine
from ring_jax.curate.manifest import (
    MANIFEST,
    REPORT,
    Manifest,
    Opened,
    load_manifest,
    make_manifest,
    make_plan,
)
from ring_jax.curate.quarantine import Quarantine
from ring_jax.curate.read import OpenSource, open_source
from ring_jax.curate.rows import Step
from ring_jax.curate.shards import Tally, shard_jobs
from ring_jax.curate.workbench import Workbench
from ring_jax.data.output_folder import agree_on_plan, own_folder, write_whole
from ring_jax.report import write_curation_report
from ring_jax.verify import Sandbox


def curate(config: CurateConfig, folder: pathlib.Path) -> Manifest:
    """Curates into `folder`, or goes on with what was begun there.

    Returns:
      What `manifest.json` holds; that of the folder where it is complete already.

    Raises:
      ConfigError: a source is missing, damaged or empty, or the folder belongs to
        another curation.
      OSError: the disk is full, or a folder cannot be written.
    """
    opened = Opened(open_sources(config), open_evaluation_sets(config))
    with own_folder(folder, kind="curation") as work:
        agree_on_plan(folder, make_plan(config, opened))
        if (folder / MANIFEST).exists():
            shutil.rmtree(work)
            return load_manifest(folder)
        items = _open_items(config, opened, work.resolve())
        steps = functools.partial(open_steps, config, opened.evaluation_sets, items)
        make_workbench = functools.partial(Workbench, config, steps)
        with open_engine(config.scale, make_workbench) as engine:
            # Where a worker starts, a relative path is another one.
            jobs = _chunk_jobs(config, opened, work.resolve())
            chunks = list(_finished(engine.run(jobs)))
            removed = duplicates.find_duplicates(
                _all_keys(chunks, work), config=config.duplicates
            )
            opened = dataclasses.replace(opened, items=items)
            manifest = _write_all(
                config, opened, chunks, removed, engine=engine, folder=folder.resolve()
            )
    shutil.rmtree(work)
    return manifest


def open_sources(config: CurateConfig) -> list[OpenSource]:
    """Finds and checks every source before anything is written."""
    return [
        open_source(
            source, name=name, seed=config.seed, max_row_bytes=config.max_row_bytes
        )
        for name, source in config.sources.items()
    ]


def open_evaluation_sets(config: CurateConfig) -> list[EvaluationSet]:
    """Reads what must not be trained on; every item of it must be readable."""
    return [
        read_evaluation_set(
            source, name=name, seed=config.seed, max_row_bytes=config.max_row_bytes
        )
        for name, source in config.evaluation_sets.items()
    ]


def _open_items(
    config: CurateConfig, opened: Opened, work: pathlib.Path
) -> similarity.Items | None:
    if config.similarity.check == "keep":
        return None
    return similarity.open_items(config, opened.evaluation_sets, work=work)


@contextlib.contextmanager
def open_steps(
    config: CurateConfig,
    evaluation_sets: Sequence[EvaluationSet],
    items: similarity.Items | None = None,
) -> Iterator[Mapping[str, Step]]:
    """Gives the steps that `config` asks for, in order, and ends what they started.

    The cheap ones come first; duplicates are no step of a chunk. Without `items`, rows
    are not compared by meaning.
    """
    with contextlib.ExitStack() as stack:
        yield dict(_steps(config, evaluation_sets, items, stack))


def _steps(
    config: CurateConfig,
    evaluation_sets: Sequence[EvaluationSet],
    items: similarity.Items | None,
    stack: contextlib.ExitStack,
) -> Iterator[tuple[str, Step]]:
    yield screen.STEP, functools.partial(screen.screen, config=config.screen)
    yield purify.STEP, functools.partial(purify.purify, config=config.purify)
    if config.contamination.check == "drop":
        index = contamination.index_of(evaluation_sets, config=config.contamination)
        find = functools.partial(contamination.find_contamination, index=index)
        yield contamination.STEP, find
    settings = config.verification
    sandbox = stack.enter_context(  # its workers start when they are first asked
        Sandbox(
            num_workers=settings.num_workers,
            timeout_seconds=settings.timeout_seconds,
            max_memory_bytes=settings.max_memory_bytes,
        )
    )
    if config.consistency.check == "drop":
        agree = functools.partial(
            answers.keep_consistent, sandbox=sandbox, config=config.consistency
        )
        yield answers.STEP, agree
    if config.verification.check == "drop":
        judge = functools.partial(verification.verify, sandbox=sandbox, config=settings)
        yield verification.STEP, judge
    if items:
        embed = stack.enter_context(open_embedder(config.embeddings, items.folder))
        compare = functools.partial(
            similarity.find_similar,
            items=items,
            embed=embed,
            config=config.similarity,
        )
        yield similarity.STEP, compare
    yield (
        "difficulty",
        functools.partial(difficulty.grade_difficulty, config=config.difficulty),
    )
    if config.taxonomy.check == "tag":
        known = taxonomy.load_taxonomy(config.taxonomy)
        yield "taxonomy", functools.partial(taxonomy.tag, taxonomy=known)


def _chunk_jobs(
    config: CurateConfig, opened: Opened, work: pathlib.Path
) -> Iterator[ChunkJob]:
    for source in opened.sources:
        yield from chunk_jobs(source, chunk_rows=config.chunk_rows, folder=work)


def _finished(chunks: Iterable[Chunk]) -> Iterator[Chunk]:
    totals: collections.Counter[str] = collections.Counter()
    for chunk in chunks:
        if not chunk.folder.exists():
            raise ConfigError(
                f"scale: a worker wrote {chunk.folder}, which is not to be seen here; "
                "name a folder that all machines of the cluster share."
            )
        totals[chunk.source] += chunk.num_records
        logging.info("curate: %s, %d records read", chunk.source, totals[chunk.source])
        yield chunk


def _all_keys(chunks: Sequence[Chunk], work: pathlib.Path) -> duplicates.Keys:
    """Joins the keys of all chunks; the signatures in one file, not in memory."""
    every = [chunk.keys() for chunk in chunks]
    path = work / "signatures.bin"
    with path.open("wb") as file:
        for keys in every:
            file.write(np.ascontiguousarray(keys.signatures).data)
    shape = (sum(len(keys.keys) for keys in every), every[0].signatures.shape[1])
    signatures = (
        np.memmap(path, np.uint32, "r", shape=shape)
        if shape[0]
        else np.empty(shape, np.uint32)
    )
    return duplicates.Keys(np.concatenate([keys.keys for keys in every]), signatures)


def _write_all(
    config: CurateConfig,
    opened: Opened,
    chunks: Sequence[Chunk],
    removed: Mapping[int, duplicates.Duplicate],
    *,
    engine: Engine,
    folder: pathlib.Path,
) -> Manifest:
    tally, shown = Tally(), {}
    jobs = list(shard_jobs(chunks, removed, num_rows=config.shard_rows, folder=folder))
    with Quarantine(folder, num_examples=config.num_examples) as quarantine:
        for chunk in chunks:
            for rejection in chunk.rejections():
                quarantine.add(rejection)
        for written in engine.run(jobs):
            tally.merge(written.tally)
            # The earlier row of a pair was met in this shard or an earlier one.
            shown |= written.shown
            for earlier, rejection in written.rejections:
                quarantine.add(dataclasses.replace(rejection, other=shown[earlier]))
    shards = {source.name: [] for source in opened.sources}
    for job in jobs:
        if job.path:
            shards[job.source].append(job.path)
    manifest = make_manifest(
        config, opened, chunks, quarantine, shards=shards, tally=tally
    )
    write_curation_report(manifest, folder / REPORT)
    write_whole(folder / MANIFEST, json.dumps(manifest, indent=2) + "\n")
    return manifest
