# SPDX-License-Identifier: Apache-2.0
"""The model of a run folder, without the optimizer that trained it."""

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
    config: ModelConfig
    params: dict[str, jax.Array]
    """f32, by path, on the first device."""


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
    return TrainedModel(record["step"], _model_config(record), params)


def _select(record: Mapping[str, Any]) -> dict[str, jax.ShapeDtypeStruct]:
    return {
        PREFIX + path: jax.ShapeDtypeStruct(shape, jnp.float32)
        for path, shape in parameter_shapes(_model_config(record)).items()
    }


def _model_config(record: Mapping[str, Any]) -> ModelConfig:
    if record["model"] is None:
        raise ConfigError(
            f"checkpoint: step {record['step']} does not say of which model it is."
        )
    return from_config_dict(ModelConfig, record["model"], "checkpoint: model")
