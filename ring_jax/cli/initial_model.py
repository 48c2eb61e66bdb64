# SPDX-License-Identifier: Apache-2.0
"""The model that a run starts from: `config.init_from`, a Hugging Face folder."""

from collections.abc import Callable

from ring_jax.checkpoint import import_folder, place
from ring_jax.checkpoint.model_folder import read_config
from ring_jax.config import ConfigError, ModelConfig, RunConfig, model_identity
from ring_jax.model import Transformer, abstract_transformer

CONTEXT_EXTENSION = ("max_positions", "rope_scaling", "rope_theta")
"""Settings in which a run may differ from the model that it starts from."""


def check_initial_model(config: RunConfig) -> None:
    """Reads the folder's settings alone, and compares them with the run's.

    Raises:
      ConfigError: one line that names the file or the setting that is wrong.
    """
    assert config.init_from is not None
    _check_same(config, read_config(config.init_from))


def read_initial_model(config: RunConfig) -> Callable[[], Transformer] | None:
    """Reads and checks the folder now; the parameters go to the mesh when called.

    Raises:
      ConfigError: as `check_initial_model`, and for tensors.
    """
    if config.init_from is None:
        return None
    found, params = import_folder(config.init_from)
    _check_same(config, found)
    return lambda: place(abstract_transformer(config.model), params)


def _check_same(config: RunConfig, found: ModelConfig) -> None:
    theirs, ours = model_identity(found), model_identity(config.model)
    for name in sorted({*theirs, *ours}):
        is_extension = name.startswith(CONTEXT_EXTENSION)
        if theirs.get(name) != ours.get(name) and not is_extension:
            raise ConfigError(
                f"init_from={config.init_from} has model.{name}={theirs.get(name)}; "
                f"this run has {ours.get(name)}. Set config.model to what the folder "
                "holds."
            )
