# SPDX-License-Identifier: Apache-2.0
"""A whole run: model, mesh, data, stages, evaluation."""

import dataclasses
import difflib
import json
from collections.abc import Mapping

from ring_jax.config.data import DataConfig
from ring_jax.config.errors import ConfigError, require_at_least
from ring_jax.config.evaluate import EvaluateConfig, GenerateConfig, SuitesConfig
from ring_jax.config.model import ModelConfig
from ring_jax.config.train import StageConfig, TrainConfig
from ring_jax.config.tree import from_config_dict


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class MeshConfig:
    """Devices along each mesh axis; one axis may be -1, which takes what is left."""

    slice: int = 1
    """Slices of TPU chips, between which the data centre's network runs."""
    data: int = -1
    """Copies of the weights within a slice."""
    fsdp: int = 1
    """Devices that store a part of each weight, and gather it where it is used."""
    context: int = 1
    """Devices that share each row's tokens, for long rows."""
    expert: int = 1
    """Devices that share the experts."""
    tensor: int = 1
    """Devices that share heads, hidden widths and the vocabulary."""

    def __post_init__(self):
        sizes = dataclasses.astuple(self)
        if any(size != -1 and size < 1 for size in sizes) or sizes.count(-1) > 1:
            raise ConfigError(
                f"sizes {dataclasses.asdict(self)} must be positive; one can be -1."
            )


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class RunConfig:
    """A whole run."""

    seed: int = 0
    num_devices: int = 1
    """Emulated devices on CPU; ignored where an accelerator is present, and in one of
    several processes, where the launcher says how many each has."""
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    evaluate: EvaluateConfig = dataclasses.field(default_factory=EvaluateConfig)
    generate: GenerateConfig = dataclasses.field(default_factory=GenerateConfig)
    suites: SuitesConfig = dataclasses.field(default_factory=SuitesConfig)
    stages: Mapping[str, StageConfig] = dataclasses.field(default_factory=dict)
    init_from: str | None = None
    """A Hugging Face folder to start from; None starts from random weights."""

    def __post_init__(self):
        require_at_least(self, 1, "num_devices")
        if not self.stages:
            raise ConfigError("stages is empty; a run needs at least one stage.")
        for name, stage in self.stages.items():
            if unknown := sorted(set(stage.sources) - set(self.data.sources)):
                near = difflib.get_close_matches(unknown[0], self.data.sources, n=1)
                advice = f"Did you mean `{near[0]}`?" if near else "Declare it there."
                raise ConfigError(
                    f"stages.{name}.mixture names {unknown}, which data.sources lacks. "
                    f"{advice}"
                )
        if self.train.seq_len > self.model.max_positions:
            raise ConfigError(
                f"train.seq_len={self.train.seq_len} is more than "
                f"model.max_positions={self.model.max_positions}."
            )


def run_config_from_json(text: str) -> RunConfig:
    """Reads back what `to_json` wrote for a run."""
    return from_config_dict(RunConfig, json.loads(text))
