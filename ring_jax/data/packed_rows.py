# SPDX-License-Identifier: Apache-2.0
"""Packed rows in shards: what `ring pack` wrote, and stages read instead of packing.

A folder holds `<stage>-00000-of-00007.array_record` and `manifest.json`. A record is
one packed row; record `step * global_batch_size + line` of a stage is row `line` of the
step's batch. It is one array of little-endian i32, not compressed, so that it is read
without a copy:

    S, R, N                 documents, runs of one class, tokens
    S lengths               tokens of each document
    S sources               number of each document's source, as batches carry it
    R lengths, R classes    runs of tokens of one class, over the whole packed row
    N ids

Segments and positions follow from the documents' lengths, classes from the runs, and
weights from the classes by the stage's table: 4 bytes a token instead of 24. Bits that
storage has lost fail ArrayRecord's checksums when they are read.

A stage's claim is all that its batches follow from: the identity of its data
(`stage_identity`) and its table of changes. A folder is read only for an equal claim.
"""

import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import numpy as np

from ring_jax.config import ConfigError, DataConfig, RunConfig, flatten_settings
from ring_jax.data.chat import Rendered
from ring_jax.data.ledger import Ledger
from ring_jax.data.output_folder import PLAN
from ring_jax.data.prepared import PreparedData
from ring_jax.data.sources.record_files import RecordFiles
from ring_jax.data.stage_ledger import differences, open_ledger, stage_identity
from ring_jax.data.steps import Steps

MANIFEST = "manifest.json"
FORMAT = 1
"""Of records and manifest; a change that readers must know of raises it."""
ARRAYS = ("ids", "segments", "positions", "classes", "sources")
MAX_DIFFERENCES = 6
"""Told in a refusal; the others are counted."""

type Claim = dict[str, Any]


@dataclasses.dataclass(frozen=True, slots=True)
class PackedStage:
    """A stage of a folder that was checked: its records, and what goes with them."""

    records: RecordFiles
    num_steps: int
    batch_size: int
    seq_len: int
    left_out: Mapping[int, int]
    """First step of a window -> rows for which it was the last that could hold them."""


def stage_claim(
    identity: Mapping[str, Any], ledger: Ledger, *, num_steps: int
) -> Claim:
    """Lists what packed rows are made from.

    Args:
      identity: of the stage, from `stage_identity`.
      ledger: of the stage; what its entries hold beside the changes follows from them.
      num_steps: steps of the stage.
    """
    window_steps = ledger.geometry.window_steps
    return {
        "identity": dict(identity),
        "table": [
            {"first_step": entry.start_window * window_steps}
            | dataclasses.asdict(entry.change)
            for entry in ledger.table
        ],
        "num_steps": num_steps,
        "batch_size": ledger.geometry.batch_size,
        "seq_len": ledger.geometry.seq_len,
    }


def check(config: RunConfig, data: PreparedData) -> None:
    """Checks before the first step that a run can read the folder that it names.

    Raises:
      ConfigError: as `open_stage` does, for any of its stages.
    """
    if config.data.packed is not None:
        for name, stage in config.stages.items():
            identity = stage_identity(config, data, stage=name)
            ledger = open_ledger(config, data.indexes, stage=name)
            claim = stage_claim(identity, ledger, num_steps=stage.num_steps)
            open_stage(config.data.packed, claim, data=config.data)


def open_stage(
    folder: str | os.PathLike[str], claim: Claim, *, data: DataConfig
) -> PackedStage:
    """Opens the shards of a stage.

    Args:
      folder: that `ring pack` wrote.
      claim: of the stage as the run has it.
      data: settings of the run, for whether rows may be left out.

    Raises:
      ConfigError: the folder is not finished, damaged or of other data; tells what
        differs.
    """
    folder = pathlib.Path(folder)
    stage = claim["identity"]["stage"]
    stages = load_manifest(folder)["stages"]
    if stage not in stages:
        _refuse(folder, f"has no stage {stage}, it has {list(stages)}")
    packed = stages[stage]
    num_steps = claim["num_steps"]
    found = differences(_flat(packed, num_steps), _flat(_plain(claim), num_steps))
    if found:
        more = len(found) - MAX_DIFFERENCES
        shown = "; ".join(found[:MAX_DIFFERENCES]) + (f"; {more} more" * (more > 0))
        _refuse(folder, f"holds other data for stage {stage}: {shown}")
    if packed["num_steps"] < num_steps:
        _refuse(
            folder,
            f"holds {packed['num_steps']} steps of stage {stage}, of {num_steps}",
        )
    left_out = {int(step): count for step, count in packed["left_out"].items()}
    if left_out and data.packing.no_room == "refuse":
        _refuse(
            folder,
            f"leaves {sum(left_out.values())} rows of stage {stage} out that found no "
            'room, and data.packing.no_room="refuse"',
        )
    return PackedStage(
        records=_open_shards(folder, packed),
        num_steps=packed["num_steps"],
        batch_size=packed["batch_size"],
        seq_len=packed["seq_len"],
        left_out=left_out,
    )


def load_manifest(folder: pathlib.Path) -> dict[str, Any]:
    """Reads the manifest of a finished folder.

    Raises:
      ConfigError: the folder is missing, was not finished, or is of another format.
    """
    path = folder / MANIFEST
    if not path.is_file():
        if (folder / PLAN).is_file():
            _refuse(folder, "was begun and not finished")
        _refuse(folder, "holds no packed rows")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        found = manifest["kind"], manifest["format"]
    except (ValueError, KeyError, TypeError) as error:
        _refuse(folder, f"has a {MANIFEST} that is not of ring pack ({error!r})")
    if found != ("packed rows", FORMAT):
        _refuse(folder, f"holds {found[0]} of format {found[1]}, not {FORMAT}")
    return manifest


def encode(row: Sequence[tuple[int, Rendered]]) -> bytes:
    """Writes a packed row as a record.

    Args:
      row: source and tokens of each document; there may be none.
    """
    nothing = np.zeros(0, np.int32)
    ids_T = np.concatenate([nothing, *(document.ids for _, document in row)])
    classes_T = np.concatenate([nothing, *(document.classes for _, document in row)])
    starts = np.flatnonzero(np.diff(classes_T, prepend=-1))
    runs = np.diff(starts, append=len(classes_T))
    parts = [
        [len(row), len(runs), len(ids_T)],
        [len(document.ids) for _, document in row],
        [source for source, _ in row],
        runs,
        classes_T[starts],
        ids_T,
    ]
    return b"".join(np.asarray(part, "<i4").tobytes() for part in parts)


def decode(records: Sequence[bytes], *, seq_len: int) -> dict[str, np.ndarray]:
    """Reads records as the arrays of `packing.stack`.

    Raises:
      ValueError: a record is not of this format.
    """
    shape = len(records), seq_len
    arrays = {name: np.zeros(shape, np.int32) for name in ARRAYS}
    for line, record in enumerate(records):
        values = np.frombuffer(record, "<i4")
        documents, runs, tokens = _sizes(values, seq_len=seq_len)
        ends = np.cumsum([3, documents, documents, runs, runs]).tolist()
        _, lengths, sources, run_lengths, run_classes, ids = np.split(values, ends)
        if lengths.sum() != tokens or run_lengths.sum() != tokens:
            raise ValueError(f"lengths of {tokens} tokens do not add up")
        starts = np.cumsum(lengths) - lengths
        here = np.index_exp[line, :tokens]
        arrays["ids"][here] = ids
        arrays["segments"][here] = np.repeat(np.arange(1, documents + 1), lengths)
        arrays["positions"][here] = np.arange(tokens) - np.repeat(starts, lengths)
        arrays["classes"][here] = np.repeat(run_classes, run_lengths)
        arrays["sources"][here] = np.repeat(sources, lengths)
    return arrays


class PackedSteps(Steps):
    """Steps read from shards; a process reads the records of its own rows."""

    def __init__(self, stage: PackedStage, rows: Sequence[int]):
        """Takes an opened stage, and which packed rows of each step, ascending."""
        self._stage, self._rows = stage, rows

    def __len__(self) -> int:
        return self._stage.num_steps

    def __getitem__(self, step: int) -> dict[str, np.ndarray]:
        first = step * self._stage.batch_size
        records = self._stage.records
        numbers = [first + row for row in self._rows]
        try:
            arrays = decode(records.take(numbers), seq_len=self._stage.seq_len)
        except (RuntimeError, ValueError) as error:
            what = " ".join(str(error).split())[:200]
            raise OSError(
                f"packed rows at {records.where(first)} (step {step}) cannot be read "
                f"({what}); the shard is damaged: pack again."
            ) from None
        return arrays | {"left_out": np.full(1, self._stage.left_out.get(step, 0))}


def _sizes(values: np.ndarray, *, seq_len: int) -> tuple[int, int, int]:
    if len(values) < 3:
        raise ValueError("a record has no head")
    documents, runs, tokens = values[:3].tolist()
    size = 3 + 2 * documents + 2 * runs + tokens
    if min(documents, runs, tokens) < 0 or tokens > seq_len or size != len(values):
        raise ValueError(
            f"a record of {len(values)} values says {documents} documents, {runs} runs "
            f"and {tokens} tokens of {seq_len}"
        )
    return documents, runs, tokens


def _flat(claim: Claim, num_steps: int) -> dict[str, Any]:
    """Returns, by dotted name, what the first `num_steps` steps of a stage follow from.

    Batch size and length of rows are part of the identity.
    """
    entries = [e for e in claim["table"] if e["first_step"] < num_steps]
    mixture = {f"mixture[{number}]": entry for number, entry in enumerate(entries)}
    return flatten_settings(dict(claim["identity"]) | mixture)


def _plain(claim: Claim) -> Claim:
    return json.loads(json.dumps(claim))


def _open_shards(folder: pathlib.Path, packed: Mapping[str, Any]) -> RecordFiles:
    for shard in packed["shards"]:
        path = folder / shard["name"]
        size = path.stat().st_size if path.is_file() else None
        if size != shard["num_bytes"]:
            _refuse(
                folder,
                f"lacks {shard['name']}"
                if size is None
                else f"has {size} bytes of {shard['name']}, not {shard['num_bytes']}",
            )
    try:
        return RecordFiles([folder / shard["name"] for shard in packed["shards"]])
    except RuntimeError as error:
        _refuse(folder, f"has a damaged shard, {' '.join(str(error).split())[:200]}")


def _refuse(folder: pathlib.Path, what: str) -> NoReturn:
    raise ConfigError(
        f"data.packed: {folder} {what}; run `ring pack` with this config (into an "
        "empty folder if another config's rows are there), or unset data.packed."
    ) from None
