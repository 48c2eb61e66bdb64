# SPDX-License-Identifier: Apache-2.0
"""A run that is small enough to be compiled for a TPU in a minute."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from ring_jax.config import (
    DataConfig,
    MeshConfig,
    ModelConfig,
    MoeConfig,
    RunConfig,
    SourceConfig,
    StageConfig,
    TrainConfig,
)


@pytest.fixture
def small_run() -> Callable[..., RunConfig]:
    """Makes a run of five layers for four devices; keywords change `train`."""

    def make(*, mesh: MeshConfig | None = None, **train: Any) -> RunConfig:
        # Of XLA alone: the kernels for TPUs are minutes to compile. Five layers, since
        # fewer are unrolled.
        model = ModelConfig(
            vocab_size=2048,
            model_dim=256,
            num_layers=5,
            num_heads=4,
            num_kv_heads=2,
            head_dim=128,
            attention_implementation="xla",
            moe=MoeConfig(
                num_experts=8,
                num_experts_per_token=2,
                expert_dim=256,
                implementation="xla",
            ),
            eos_id=1,
            pad_id=1,
        )
        settings = TrainConfig(global_batch_size=8, seq_len=256)
        return RunConfig(
            model=model,
            mesh=mesh or MeshConfig(data=1, fsdp=4),
            data=DataConfig(sources={"a": SourceConfig()}),
            train=dataclasses.replace(settings, **train),
            stages={"only": StageConfig(mixture={"a": 1.0}, num_steps=10)},
        )

    return make
