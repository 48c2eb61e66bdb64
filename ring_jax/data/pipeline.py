# SPDX-License-Identifier: Apache-2.0
"""From prepared data to batches: what a stage's ledger says, packed and prefetched."""

import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import grain
import numpy as np
from absl import flags, logging

from ring_jax.batch import Batch
from ring_jax.config import ConfigError, RunConfig
from ring_jax.data import chat, evaluation_gate, gate, packed_rows, packing
from ring_jax.data import prepared as prepared_data
from ring_jax.data.ledger import Ledger
from ring_jax.data.mixture_table import Change, entry_from_json
from ring_jax.data.prepared import PreparedData
from ring_jax.data.stage_ledger import (
    class_weights_table,
    continued,
    differences,
    open_ledger,
    stage_identity,
)
from ring_jax.data.steps import MadeSteps, Steps
from ring_jax.data.windows import MAX_DELAY, Windows

NUM_PREFETCHED = 4
"""Batches made ahead by a thread while a step runs."""


def prepare(
    config: RunConfig,
    workdir: str | os.PathLike[str],
    *,
    kept_in: str | os.PathLike[str] | None = None,
) -> PreparedData:
    """Reads and tokenizes what a run trains on, and lets it through the start gate.

    Writes `<workdir>/tokenizer/tokenizer.json` and `<workdir>/lengths/`, the length
    index of each source, last, when all checks have passed.

    Args:
      config: of the run.
      workdir: the folder to write to.
      kept_in: a run folder to look for known lengths of rows; None means `workdir`.

    Raises:
      ConfigError: as `prepared.read`, `gate.check` and `evaluation_gate.check` do, or
        the run folder has another tokenizer.
    """
    data = prepared_data.read(config, kept_in or workdir)
    gate.check(config, data)
    packed_rows.check(config, data)
    overlaps = evaluation_gate.check(config, data, kept_in or workdir)
    prepared_data.save(data, workdir)
    evaluation_gate.save(overlaps, workdir)
    return data


def heldout_batches(
    config: RunConfig, prepared: PreparedData, *, source: str
) -> list[Batch]:
    """Packs the held-out rows of a source, with the class weights of the config."""
    rows = chat.render_rows(
        prepared.sources[source].heldout,
        prepared.tokenizer,
        template=config.data.template,
    )
    return packing.pack_all(
        rows,
        source=prepared.source_index(source),
        batch_size=config.train.global_batch_size,
        seq_len=config.train.seq_len,
        weights_by_class=packing.weights_table(config.data.class_weights),
        pad_id=config.model.pad_id,
    )


class TrainBatches(Iterator[Batch]):
    """The batches of one stage, without end; numpy arrays, made ahead.

    A batch is a function of the ledger's table and of its step. So the state is the
    number of batches that were handed out, and the table (beside a count for people, of
    rows left out); it does not depend on how many processes share a batch, nor on how
    many workers make them.
    """

    def __init__(
        self,
        config: RunConfig,
        prepared: PreparedData,
        *,
        stage: str,
        rows: Sequence[int] | None = None,
        record: Callable[[Ledger], None] | None = None,
    ):
        """Opens a stage at its beginning.

        Args:
          config: of the run.
          prepared: its data, the same in every process.
          stage: name of the stage.
          rows: which rows of each batch to hand out, ascending; None means all.
          record: takes the ledger before the first batch that follows it, so that a
            run folder tells what its run does; None where there is no folder.
        """
        if rows is None:
            rows = range(config.train.global_batch_size)
        self._config, self._prepared, self._rows = config, prepared, tuple(rows)
        self._record = record
        self._identity = stage_identity(config, prepared, stage=stage)
        self._num_steps = config.stages[stage].num_steps
        self._of_config = open_ledger(config, prepared.indexes, stage=stage)
        self._ledger = self._of_config
        weights = class_weights_table(config, stage=config.stages[stage])
        self._to_batch = _ToBatch(weights, config.model.pad_id)
        self._position = 0
        self._num_left_out = 0
        self._iterator: grain.DatasetIterator[tuple[Batch, int]] | None = None

    @property
    def ledger(self) -> Ledger:
        """What the batches follow."""
        return self._ledger

    def __next__(self) -> Batch:
        if self._iterator is None:
            self._tell()
            self._iterator = self._open(self._position)
        batch, num_left_out = next(self._iterator)
        if num_left_out:
            self._num_left_out += num_left_out
            logging.warning(
                "step %d: %d rows found no room in %d windows and are left out, %d so "
                "far; a lower data.packing.fill gives them room",
                self._position,
                num_left_out,
                MAX_DELAY,
                self._num_left_out,
            )
        self._position += 1
        return batch

    def get_state(self) -> dict[str, Any]:
        """Tells where the next batch begins."""
        return {
            "position": self._position,
            "left_out": self._num_left_out,
            "table": [entry.to_json() for entry in self._ledger.table],
            "identity": self._identity,
        }

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Continues where `get_state` was asked.

        Changes that the config adds behind that place are taken over.

        Raises:
          ConfigError: the state is of another stage or of other data, or the config
            changes the mixture of steps that are done; names what differs.
        """
        changed = differences(state["identity"], self._identity)
        is_allowed = self._config.data.on_change == "allow"
        if changed and not is_allowed:
            raise ConfigError(
                f"data: changed since the checkpoint: {'; '.join(changed)}. Undo "
                "the change, use a new workdir, or set data.on_change=allow."
            )
        position = state["position"]
        if changed:
            logging.warning("data changed, as allowed: %s", "; ".join(changed))
        else:
            table = [entry_from_json(entry) for entry in state["table"]]
            self._ledger = continued(self._of_config, table, position=position)
        self._num_left_out = state["left_out"]
        self._restart(position)

    def change_mixture(self, change: Change) -> int:
        """Changes the mixture while the run goes on; every process must ask the same.

        Args:
          change: begins at `start_step`, or as soon as it can if that has passed.

        Returns:
          The step of the stage at which it begins.

        Raises:
          ConfigError: the batches are read from packed rows, which hold one mixture.
        """
        if self._config.data.packed is not None:
            raise ConfigError(
                f"data.packed={self._config.data.packed} holds one mixture; unset it, "
                "and run the same command again, to change the mixture of a run."
            )
        window_steps = self._ledger.geometry.window_steps
        last_window = self._ledger.table[-1].start_window
        soonest = max(self._position, (last_window + 1) * window_steps)
        start_step = max(change.start_step, soonest)
        change = dataclasses.replace(change, start_step=start_step, origin="run")
        self._ledger = self._ledger.extended(change)
        self._restart(self._position)
        self._tell()
        return self._ledger.table[-1].start_window * window_steps

    def close(self) -> None:
        """Stops what makes batches ahead; `next` would start it again."""
        if self._iterator is not None:
            self._iterator.close()
        # Its destructor closes again, which fails once Python has begun to shut down.
        self._iterator = None

    def _restart(self, position: int) -> None:
        self.close()
        self._position = position

    def _tell(self) -> None:
        if self._record is not None:
            self._record(self._ledger)

    def _steps(self) -> Steps:
        data = self._config.data
        if data.packed is None:
            windows = Windows(self._ledger)
            return MadeSteps(windows, self._prepared.rendered, self._rows)
        # Again, as the table may have changed while the run went on.
        claim = packed_rows.stage_claim(
            self._identity, self._ledger, num_steps=self._num_steps
        )
        opened = packed_rows.open_stage(data.packed, claim, data=data)
        return packed_rows.PackedSteps(opened, self._rows)

    def _open(self, position: int) -> grain.DatasetIterator:
        steps = _From(self._steps(), position)
        # One thread prefetches whole batches below; more would only make single ones.
        dataset = grain.MapDataset.source(steps).to_iter_dataset(
            grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
        )
        if num_workers := self._config.data.num_workers:
            if not flags.FLAGS.is_parsed():
                # Worker processes get the flags of absl, which no command of ours has.
                flags.FLAGS.mark_as_parsed()
            dataset = dataset.mp_prefetch(
                grain.MultiprocessingOptions(num_workers=num_workers)
            )
        dataset = grain.experimental.ThreadPrefetchIterDataset(
            dataset.map(self._to_batch), prefetch_buffer_size=NUM_PREFETCHED
        )
        return iter(dataset)


class _From:
    """Packed arrays of the steps from `first` on, as a random-access source."""

    def __init__(self, steps: Steps, first: int):
        self._steps, self._first = steps, first

    def __len__(self) -> int:
        return len(self._steps) - self._first

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return self._steps[self._first + index]


class _ToBatch(grain.transforms.Map):
    def __init__(self, weights_by_class: np.ndarray, pad_id: int):
        self._weights_by_class = weights_by_class
        self._pad_id = pad_id

    def map(self, packed: Mapping[str, np.ndarray]) -> tuple[Batch, int]:
        batch = packing.to_batch(
            packed, weights_by_class=self._weights_by_class, pad_id=self._pad_id
        )
        return batch, int(packed["left_out"][0])
