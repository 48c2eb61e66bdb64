# SPDX-License-Identifier: Apache-2.0
"""A run that steps in milliseconds, and batches made on the spot."""

import dataclasses
from typing import Any

import numpy as np
import pytest

from ring_jax.batch import Batch
from ring_jax.config import (
    DataConfig,
    LossConfig,
    RunConfig,
    SourceConfig,
    StageConfig,
    TrainConfig,
)
from tests.small_model import small_model

MODEL = small_model(vocab_size=64, max_positions=64, init_std=0.1)
STAGE = StageConfig(mixture={"a": 1.0}, num_steps=6, learning_rate=1e-2, warmup_steps=2)


@pytest.fixture(scope="session")
def tiny_run() -> RunConfig:
    return RunConfig(
        model=MODEL,
        data=DataConfig(sources={"a": SourceConfig(), "b": SourceConfig()}),
        train=TrainConfig(
            global_batch_size=8,
            seq_len=16,
            compute_dtype="float32",
            remat="none",
            log_every_steps=1,
            checkpoint_every_steps=2,
            loss=LossConfig(head_chunk_tokens=32),
            peak_flops_per_second=1e12,
        ),
        stages={
            "first": STAGE,
            "second": dataclasses.replace(STAGE, routing_warmup_steps=4),
        },
    )


def host_batch(seed: int, *, batch_size: int = 8, seq_len: int = 16) -> Batch:
    """Two documents and some padding per row, with uneven weights."""
    rng = np.random.default_rng(seed)
    shape = (batch_size, seq_len)
    segments = np.zeros(shape, np.int32)
    positions = np.zeros(shape, np.int32)
    for row in range(batch_size):
        cut = int(rng.integers(4, seq_len - 4))
        end = int(rng.integers(cut + 2, seq_len + 1))
        segments[row, :cut], segments[row, cut:end] = 1, 2
        positions[row, :cut] = np.arange(cut)
        positions[row, cut:end] = np.arange(end - cut)
    weights = rng.uniform(0, 1, shape).astype(np.float32)
    weights[rng.uniform(size=shape) < 0.3] = 0.0
    fields: dict[str, Any] = dict(
        ids_BT=rng.integers(2, 64, shape).astype(np.int32),
        segments_BT=segments,
        positions_BT=positions,
        classes_BT=rng.integers(1, 6, shape).astype(np.int32),
        sources_BT=rng.integers(0, 2, shape).astype(np.int32),
        weights_BT=weights,
    )
    return Batch(**fields)


class CountedBatches:
    """Batches that are a function of their number: the state is that number."""

    def __init__(self, salt: int):
        self.salt, self.next = salt, 0

    def __next__(self) -> Batch:
        self.next += 1
        return host_batch(1000 * self.salt + self.next)

    def get_state(self) -> dict:
        return {"next": self.next}

    def set_state(self, state: dict) -> None:
        self.next = state["next"]

    def close(self) -> None:
        pass


@pytest.fixture(scope="session")
def make_batch():
    return host_batch


@pytest.fixture(scope="session")
def open_counted():
    def open_batches(stage: str) -> CountedBatches:
        return CountedBatches(len(stage))

    return open_batches
