# SPDX-License-Identifier: Apache-2.0
"""The arguments of a training step as shapes and layouts, without any array."""

import dataclasses

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh, NamedSharding

from ring_jax import sharding
from ring_jax.batch import Batch
from ring_jax.config import MeshConfig, RunConfig
from ring_jax.train.optimizer import make_optimizer
from ring_jax.train.state import TrainState, init_state


def abstract_mesh_of(config: MeshConfig) -> AbstractMesh:
    """Returns a mesh of a config's sizes; an axis of -1 has one device."""
    sizes = dataclasses.asdict(config)
    return sharding.abstract_mesh(**{axis: max(1, n) for axis, n in sizes.items()})


def abstract_state(config: RunConfig) -> TrainState:
    """Returns the state of the mesh in force, each leaf with its layout."""
    optimizer = make_optimizer(config.train.optimizer, config.stages)
    return jax.eval_shape(lambda: init_state(config, optimizer))


def abstract_batch(config: RunConfig, mesh: Mesh | AbstractMesh) -> Batch:
    """Returns a batch of the mesh in force, laid out as `ring_jax.train` places it."""
    shape = (config.train.global_batch_size, config.train.seq_len)
    layout = NamedSharding(mesh, sharding.whole_rows())
    arrays = {}
    for field in dataclasses.fields(Batch):
        dtype = jnp.float32 if field.name.startswith("weights") else jnp.int32
        arrays[field.name] = jax.ShapeDtypeStruct(shape, dtype, sharding=layout)
    return Batch(**arrays)
