# SPDX-License-Identifier: Apache-2.0
"""The model of a run folder, without the optimizer that trained it."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ring_jax.checkpoint.huggingface import parameter_shapes
from ring_jax.checkpoint.store import read_newest
from ring_jax.config import ConfigError, ModelConfig, from_config_dict

PREFIX = "model."
"""Where a training state keeps its model."""


class TrainedModel(NamedTuple):
    """A model as the newest good checkpoint holds it."""

    step: int
    digest: str
    """Of all its parameters; see `ModelIdentity`."""
    config: ModelConfig
    params: dict[str, jax.Array]
    """f32, by path, on the first device."""


class ModelIdentity(NamedTuple):
    """What tells the model of a checkpoint from any other."""

    step: int
    digest: str
    """Of all its parameters, whatever their layout."""


def newest_identity(checkpoints: str | Path) -> ModelIdentity:
    """Reads which model the newest good checkpoint holds, and no parameter.

    Raises:
      ConfigError, StorageError: as `read_trained_model`.
    """
    record, _ = read_newest(checkpoints, lambda record: {})
    return ModelIdentity(record["step"], _digest(record))


def read_trained_model(checkpoints: str | Path) -> TrainedModel:
    """Reads the newest model of a run that verifies; changes nothing on disk.

    Args:
      checkpoints: a run's `checkpoints/`.

    Raises:
      ConfigError: when there is no checkpoint of a model.
      StorageError: when no step verifies.
    """
    record, arrays = read_newest(checkpoints, _select)
    params = {path.removeprefix(PREFIX): array for path, array in arrays.items()}
    digest = _digest(record)
    return TrainedModel(record["step"], digest, _model_config(record), params)


def _select(record: Mapping[str, Any]) -> dict[str, jax.ShapeDtypeStruct]:
    return {
        PREFIX + path: jax.ShapeDtypeStruct(shape, jnp.float32)
        for path, shape in parameter_shapes(_model_config(record)).items()
    }


def _digest(record: Mapping[str, Any]) -> str:
    total = hashlib.blake2b(digest_size=16)
    for path, array in sorted(record["arrays"].items()):
        if path.startswith(PREFIX):
            total.update(f"{path} {array['digest']}\n".encode())
    return total.hexdigest()


def _model_config(record: Mapping[str, Any]) -> ModelConfig:
    if record["model"] is None:
        raise ConfigError(
            f"checkpoint: step {record['step']} does not say of which model it is."
        )
    return from_config_dict(ModelConfig, record["model"], "checkpoint: model")
