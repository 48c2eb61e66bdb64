# SPDX-License-Identifier: Apache-2.0
"""A tiny model and packed rows for the tests of the model room."""

import dataclasses

import jax
import numpy as np
import pytest

from ring_jax import sharding
from ring_jax.config import ModelConfig, MoeConfig
from ring_jax.model import Transformer, init_transformer

TINY = ModelConfig(
    vocab_size=64,
    model_dim=32,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    mlp_dim=48,
    num_dense_layers=1,
    moe=MoeConfig(
        num_experts=8, num_experts_per_token=2, num_shared_experts=1, expert_dim=16
    ),
    init_std=0.2,
    eos_id=0,
    pad_id=0,
)


@dataclasses.dataclass(frozen=True)
class PackedRows:
    """Host arrays; `on_mesh` places them on the mesh in force."""

    ids_BT: np.ndarray
    segments_BT: np.ndarray
    positions_BT: np.ndarray

    def on_mesh(self, *, columns: slice = slice(None)) -> dict[str, jax.Array]:
        layout = sharding.activation("BT")
        return {
            field.name: jax.reshard(getattr(self, field.name)[:, columns], layout)
            for field in dataclasses.fields(self)
        }

    def run(self, model: Transformer, **options) -> tuple:
        return model(**self.on_mesh(), **options)


def pack(lengths: list[list[int]], *, num_tokens: int, seed: int = 0) -> PackedRows:
    """Rows of documents of the given lengths, padded to `num_tokens`."""
    shape = (len(lengths), num_tokens)
    segments, positions = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    for row, documents in enumerate(lengths):
        start = 0
        for number, length in enumerate(documents, start=1):
            segments[row, start : start + length] = number
            positions[row, start : start + length] = np.arange(length)
            start += length
    ids = np.random.default_rng(seed).integers(1, TINY.vocab_size, shape)
    return PackedRows(ids.astype(np.int32), segments, positions)


@pytest.fixture(scope="session")
def tiny() -> ModelConfig:
    return TINY


@pytest.fixture
def packed() -> PackedRows:
    return pack([[9, 5], [16]], num_tokens=16)


@pytest.fixture
def tiny_model(mesh) -> Transformer:
    del mesh
    return jax.jit(lambda: init_transformer(TINY, jax.random.key(0)))()


@pytest.fixture(scope="session")
def make_rows():
    return pack
