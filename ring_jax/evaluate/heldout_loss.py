# SPDX-License-Identifier: Apache-2.0
"""Teacher-forced loss on held-out rows, by source."""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from ring_jax import sharding
from ring_jax.batch import Batch
from ring_jax.config import RunConfig, TrainConfig
from ring_jax.data.pipeline import heldout_batches
from ring_jax.data.prepared import PreparedData
from ring_jax.model import Transformer
from ring_jax.objectives import training_loss


class HeldoutLoss:
    """Mean cross-entropy of each source's held-out rows, in nats per weighted token."""

    def __init__(self, config: RunConfig, data: PreparedData):
        """Packs the rows of all sources into as few batches as hold them."""
        self._train = config.train
        self._sources = list(data.sources)
        by_source = [
            batch
            for source in self._sources
            for batch in heldout_batches(config, data, source=source)
        ]
        self._batches = _regroup(by_source, batch_size=config.train.global_batch_size)

    def __call__(self, model: Transformer) -> dict[str, float | None]:
        """Measures every source; None where no held-out token has a weight."""
        sums_2U = np.zeros((2, len(self._sources)))
        for batch in self._batches:
            sums = source_sums(model, on_mesh(batch), self._train, len(self._sources))
            sums_2U += jax.device_get(sums)
        return {
            source: float(total / weight) if weight else None
            for source, total, weight in zip(self._sources, *sums_2U, strict=True)
        }


@functools.partial(jax.jit, static_argnums=(2, 3))
def source_sums(
    model: Transformer, batch: Batch, config: TrainConfig, num_sources: int
) -> jax.Array:
    """Returns f32[2, U]: weighted cross-entropy and weight of each source."""
    _, stats = training_loss(
        model,
        batch,
        config=config,
        num_sources=num_sources,
        total_weight=jnp.ones(()),
        share=1.0,
        noise=None,
    )
    return stats.source_sums


def _regroup(batches: Sequence[Batch], *, batch_size: int) -> list[Batch]:
    """Drops empty packed rows and deals the others out again; the last batch is padded.

    A source fills a few packed rows of its last batch, so that without this most of
    the time would go into padding.
    """
    kept = [_used_rows(batch) for batch in batches]
    if not kept:
        return []
    rows = jax.tree.map(lambda *parts: np.concatenate(parts), *kept)
    missing = -rows.ids_BT.shape[0] % batch_size
    rows = jax.tree.map(lambda x_BT: np.pad(x_BT, ((0, missing), (0, 0))), rows)
    starts = range(0, rows.ids_BT.shape[0], batch_size)
    return [
        jax.tree.map(lambda x_BT, start=start: x_BT[start : start + batch_size], rows)
        for start in starts
    ]


def _used_rows(batch: Batch) -> Batch:
    is_used_B = np.any(batch.segments_BT > 0, axis=1)
    return jax.tree.map(lambda x_BT: x_BT[is_used_B], batch)


def on_mesh(batch: Batch) -> Batch:
    """Lays a batch of arrays on this process over the mesh that is in force."""
    layout = sharding.on_mesh(sharding.whole_rows(), jax.sharding.get_mesh())
    arrays = {
        field.name: jax.make_array_from_callback(
            (x_BT := getattr(batch, field.name)).shape, layout, x_BT.__getitem__
        )
        for field in dataclasses.fields(batch)
    }
    return Batch(**arrays)
