# SPDX-License-Identifier: Apache-2.0
"""The ledger of a stage: as the config says it, and as a run goes on with it."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ring_jax.config import (
    TOKEN_CLASSES,
    ConfigError,
    RunConfig,
    StageConfig,
    flatten_settings,
)
from ring_jax.data import packing
from ring_jax.data.ledger import Change, Entry, Geometry, Ledger
from ring_jax.data.length_index import LengthIndex
from ring_jax.data.prepared import PreparedData


def class_weights_table(config: RunConfig, *, stage: StageConfig) -> np.ndarray:
    """Computes the loss weight of each token class in a stage: f32[6]."""
    weights = dict(config.data.class_weights)
    if missing := sorted(set(TOKEN_CLASSES[1:]) - set(weights)):
        raise ConfigError(f"data.class_weights lacks {missing}; give each a weight.")
    if stage.train_prompts:
        weights["prompt"] = max(1.0, weights["prompt"])
    return packing.weights_table(weights)


def stage_identity(
    config: RunConfig, prepared: PreparedData, *, stage: str
) -> dict[str, Any]:
    """Lists, by dotted name, all that the batches of a stage follow from but its table.

    A run that continues must find the same; what differs is told by name.
    """
    packing_settings = {
        "algorithm": config.data.packing.algorithm,
        "window_rows": config.data.packing.window_rows,
        "fill": config.data.packing.fill,
        "batch_size": config.train.global_batch_size,
        "seq_len": config.train.seq_len,
    }
    weights = class_weights_table(config, stage=config.stages[stage]).tolist()
    return flatten_settings(
        {
            "stage": stage,
            "seed": config.seed,
            "tokenizer": prepared.tokenizer_digest,
            "template": config.data.template,
            "class_weights": dict(zip(TOKEN_CLASSES[1:], weights[1:], strict=True)),
            "packing": packing_settings,
            "sources": {
                name: {
                    "rows": len(prepared.rendered[name]),
                    "tokens": prepared.row_digests[name],
                    "lengths": index.digest,
                }
                for name, index in prepared.indexes.items()
            },
        }
    )


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Tells, by name, in what two identities differ."""
    return [
        f"{key}: {before.get(key)!r} -> {now.get(key)!r}"
        for key in [*now, *(key for key in before if key not in now)]
        if before.get(key) != now.get(key)
    ]


def open_ledger(
    config: RunConfig, indexes: Mapping[str, LengthIndex], *, stage: str
) -> Ledger:
    """Makes the ledger of a stage as the config says it, without changes of a run.

    Args:
      config: of the run.
      indexes: of all its sources, in the order of the config.
      stage: name of the stage.
    """
    settings = config.stages[stage]
    weights = class_weights_table(config, stage=settings)
    batch_size = config.train.global_batch_size
    geometry = Geometry(
        batch_size=batch_size,
        seq_len=config.train.seq_len,
        window_steps=-(-config.data.packing.window_rows // batch_size),
        algorithm=config.data.packing.algorithm,
        fill=config.data.packing.fill,
        trained_classes=tuple((weights[1:] > 0).tolist()),
        seed=f"{config.seed}/{stage}",
        no_room=config.data.packing.no_room,
    )
    opened = Ledger(indexes, geometry, [])
    for change in _changes(settings):
        opened = opened.extended(change)
    return opened


def _changes(stage: StageConfig) -> list[Change]:
    first = Change(
        start_step=0,
        mixture=stage.mixture,
        curriculum=stage.curriculum,
        reason="the stage begins",
    )
    return [
        first,
        *(
            Change(
                start_step=change.step,
                mixture=change.mixture,
                schedule=change.schedule,
                over_steps=change.over_steps,
                curriculum=change.curriculum,
                reason=change.reason or name,
            )
            for name, change in stage.mixture_changes.items()
        ),
    ]


def continued(config: Ledger, table: Sequence[Entry], *, position: int) -> Ledger:
    """Returns a saved table with the config's changes behind a position.

    Raises:
      ConfigError: the config differs in what has begun.
    """
    window_steps = config.geometry.window_steps
    next_window = -(-position // window_steps)

    def is_past(entry: Entry) -> bool:
        return entry.start_window < max(1, next_window)

    past = [entry for entry in table if is_past(entry)]
    before = [entry.change for entry in past if entry.change.origin == "config"]
    now = [entry.change for entry in config.table if is_past(entry)]
    if before != now:
        raise ConfigError(
            f"data: the mixture of steps before {next_window * window_steps} is done "
            f"and cannot change: it was {_told(before)}, the config says {_told(now)}; "
            "put a change behind it in mixture_changes, or use a new workdir."
        )
    future = [e.change for e in config.table if not is_past(e)]
    future += [e.change for e in table if not is_past(e) and e.change.origin == "run"]
    continued = Ledger(config.indexes, config.geometry, past)
    for change in sorted(future, key=lambda change: change.start_step):
        continued = continued.extended(change)
    return continued


def _told(changes: Sequence[Change]) -> str:
    return "; ".join(
        f"{dict(change.mixture)} ({change.schedule}) from step {change.start_step}"
        for change in changes
    )
