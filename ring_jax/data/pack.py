# SPDX-License-Identifier: Apache-2.0
"""Writes the packed rows of a run's stages; `packed_rows` says how they look.

    plan.json       what is packed: a folder that was begun goes on with the same only
    tokenizer/, lengths/    as in a run folder: a run that reads this one counts nothing
    <stage>-00000-of-00007.array_record
    manifest.json   what every shard holds; written last, it means that all is there

A shard is whole windows of a stage, and a function of the plan. So a shard that is
there is never made again, and an interrupted folder ends with the same bytes.
"""

import dataclasses
import hashlib
import itertools
import json
import pathlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from absl import logging

from ring_jax import __version__
from ring_jax.config import TOKEN_CLASSES, RunConfig
from ring_jax.data import gate, packed_rows, packing, prepared
from ring_jax.data.output_folder import agree_on_plan, own_folder, write_whole
from ring_jax.data.packed_rows import FORMAT, MANIFEST, Claim, encode
from ring_jax.data.prepared import PreparedData
from ring_jax.data.sources.record_files import SUFFIX, RecordFiles, write_records
from ring_jax.data.stage_ledger import (
    class_weights_table,
    open_ledger,
    stage_identity,
)
from ring_jax.data.steps import MadeSteps
from ring_jax.data.windows import Windows

TOKENS_PER_SHARD = 1 << 25
"""At least, where a stage has so many: 134 MB."""
OPTIONS = "group_size:1,uncompressed"
"""Of ArrayRecord. Compressed, random ids take 2.8 bytes a token instead of 4.1, and are
read at 159 million a second instead of 495 (one core, 2026-11-23)."""
BYTES_PER_TOKEN = 4.1
"""Of a full packed row, its documents and runs included."""
ROWS_COUNTED = 64
"""Packed rows that are read back together."""


def pack(
    config: RunConfig,
    folder: pathlib.Path,
    *,
    tokens_per_shard: int = TOKENS_PER_SHARD,
) -> dict[str, Any]:
    """Packs all stages of a run into `folder`, or goes on with what was begun there.

    Args:
      config: of the run; its `data.packed` is not read.
      folder: empty, or of an earlier call with the same data.
      tokens_per_shard: room in a shard; it grows to whole windows.

    Returns:
      What `manifest.json` holds.

    Raises:
      ConfigError: the data are refused as `ring train` does, or the folder holds other
        things.
      OSError: the disk is full, or the folder cannot be written.
    """
    data_config = dataclasses.replace(config.data, packed=None)
    config = dataclasses.replace(config, data=data_config)
    data = prepared.read(config, folder, spool_near=folder)
    gate.check(config, data)
    writers = {
        name: StageWriter(config, data, folder, tokens_per_shard, stage=name)
        for name in config.stages
    }
    claims = {name: writer.claim for name, writer in writers.items()}
    head = {"kind": "packed rows", "format": FORMAT}
    plan = head | {"tokens_per_shard": tokens_per_shard, "stages": claims}
    with own_folder(folder, kind="folder of packed rows") as work:
        agree_on_plan(folder, plan)
        prepared.save(data, folder)
        _drop_damaged(folder)
        if not (folder / MANIFEST).exists():
            _check_room(folder, list(writers.values()))
            stages = {name: writer.finish() for name, writer in writers.items()}
            manifest = head | {"ring_jax": __version__, "stages": stages}
            write_whole(folder / MANIFEST, json.dumps(manifest, indent=2) + "\n")
        shutil.rmtree(work)
    return packed_rows.load_manifest(folder)


class StageWriter:
    """A stage on its way into shards."""

    def __init__(
        self,
        config: RunConfig,
        data: PreparedData,
        folder: pathlib.Path,
        tokens_per_shard: int,
        *,
        stage: str,
    ):
        """Plans the shards; nothing is written."""
        self._name, self._folder, self._sources = stage, folder, list(data.sources)
        ledger = open_ledger(config, data.indexes, stage=stage)
        self.claim: Claim = packed_rows.stage_claim(
            stage_identity(config, data, stage=stage),
            ledger,
            num_steps=config.stages[stage].num_steps,
        )
        self._geometry = ledger.geometry
        rows = range(self._geometry.batch_size)
        self._steps = MadeSteps(Windows(ledger), data.rendered, rows)
        self._weights = class_weights_table(config, stage=config.stages[stage])
        window_tokens = self._geometry.num_bins * self._geometry.seq_len
        per_shard = max(1, tokens_per_shard // window_tokens)
        steps = per_shard * self._geometry.window_steps
        self._shards = self._split(steps)

    def _split(self, steps_per_shard: int) -> dict[pathlib.Path, range]:
        num_steps = self.claim["num_steps"]
        firsts = range(0, num_steps, steps_per_shard)
        return {
            self._folder / f"{self._name}-{number:05d}-of-{len(firsts):05d}{SUFFIX}": (
                range(first, min(first + steps_per_shard, num_steps))
            )
            for number, first in enumerate(firsts)
        }

    def missing_bytes(self) -> int:
        """Estimates what is still to be written, from above."""
        steps = sum(len(r) for path, r in self._shards.items() if not path.exists())
        tokens_per_step = self._geometry.batch_size * self._geometry.seq_len
        return int(steps * tokens_per_step * BYTES_PER_TOKEN)

    def finish(self) -> dict[str, Any]:
        """Writes the shards that are missing; returns what the manifest says of all."""
        left_out = {}
        for path, steps in self._shards.items():
            if not path.exists():
                write_records(path, self._records(steps), options=OPTIONS)
                logging.info("pack: %s, %d steps", path.name, len(steps))
            counts = {step: self._steps.num_left_out(step) for step in steps}
            left_out |= {step: count for step, count in counts.items() if count}
        return self.claim | {"left_out": left_out} | self._counted()

    def _records(self, steps: range) -> Iterator[bytes]:
        window_steps = self._geometry.window_steps
        for first in range(steps.start, steps.stop, window_steps):
            window = range(first, min(first + window_steps, steps.stop))
            for rows in self._steps.documents(window):
                yield from map(encode, rows)

    def _counted(self) -> dict[str, Any]:
        """Reads the shards back: what is counted is what lies on the disk."""
        rows_U = np.zeros(len(self._sources), np.int64)
        tokens_UU = np.zeros((len(self._sources), len(TOKEN_CLASSES)), np.int64)
        trained_U = np.zeros(len(self._sources), np.int64)
        for packed in self._read_back():
            batch = packing.to_batch(packed, weights_by_class=self._weights, pad_id=0)
            is_token_BT = packed["segments"] > 0
            sources = packed["sources"][is_token_BT]
            cells = sources * len(TOKEN_CLASSES) + packed["classes"][is_token_BT]
            counted = np.bincount(cells, minlength=tokens_UU.size)
            tokens_UU += counted.reshape(tokens_UU.shape)
            firsts = is_token_BT & (packed["positions"] == 0)
            for totals_U, chosen in ((rows_U, firsts), (trained_U, batch.weights_BT)):
                here = packed["sources"][np.asarray(chosen) > 0]
                totals_U += np.bincount(here, minlength=len(totals_U))
        room = self.claim["num_steps"] * self._geometry.batch_size
        return {
            "num_tokens": int(tokens_UU.sum()),
            "num_trained_tokens": int(trained_U.sum()),
            "fill": float(tokens_UU.sum() / (room * self._geometry.seq_len)),
            "sources": {
                name: {
                    "num_rows": int(rows_U[number]),
                    "num_trained_tokens": int(trained_U[number]),
                    "tokens_by_class": dict(
                        zip(
                            TOKEN_CLASSES[1:],
                            tokens_UU[number, 1:].tolist(),
                            strict=True,
                        )
                    ),
                }
                for number, name in enumerate(self._sources)
            },
            "shards": [_shard(path) for path in self._shards],
        }

    def _read_back(self) -> Iterator[dict[str, np.ndarray]]:
        for path in self._shards:
            try:
                for records in itertools.batched(RecordFiles([path]), ROWS_COUNTED):
                    yield packed_rows.decode(records, seq_len=self._geometry.seq_len)
            except (RuntimeError, ValueError) as error:
                what = " ".join(str(error).split())[:200]
                raise OSError(
                    f"{path} cannot be read back ({what}); delete it and run the same "
                    "command again."
                ) from None


def _drop_damaged(folder: pathlib.Path) -> None:
    """Makes a finished folder an unfinished one where shards are lost or damaged."""
    if not (folder / MANIFEST).is_file():
        return
    stages = packed_rows.load_manifest(folder)["stages"].values()
    for shard in itertools.chain.from_iterable(stage["shards"] for stage in stages):
        path = folder / shard["name"]
        if not path.is_file() or _shard(path) != shard:
            logging.warning("pack: %s is damaged or missing, and made again", path)
            path.unlink(missing_ok=True)
            (folder / MANIFEST).unlink(missing_ok=True)


def _shard(path: pathlib.Path) -> Mapping[str, Any]:
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return {"name": path.name, "num_bytes": path.stat().st_size, "sha256": sha256}


def _check_room(folder: pathlib.Path, stages: Sequence[StageWriter]) -> None:
    """Looks for room before the work, not after hours of it."""
    needed = sum(stage.missing_bytes() for stage in stages)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OSError(
            f"{folder} has {free / 1e9:.3g} GB free, and the packed rows take up to "
            f"{needed / 1e9:.3g} GB; make room, or name a folder on another disk."
        )
