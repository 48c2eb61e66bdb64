# SPDX-License-Identifier: Apache-2.0
"""What training carries from step to step, and a checkpoint holds."""

import dataclasses
from typing import Any, cast

import jax
import jax.numpy as jnp
import optax

from ring_jax.config import RunConfig
from ring_jax.model.transformer import Transformer, init_transformer


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything that a step changes."""

    step: jax.Array
    """i32[], finished steps, over all stages."""
    num_trained_tokens: jax.Array
    """u32[2], low and high word: int64 is off in JAX, and pods pass 2**32 tokens."""
    model: Transformer
    opt_state: optax.OptState
    logit_mean_L: jax.Array
    logit_square_L: jax.Array
    """f32[L], running statistics of the router's logits, for its warm-up."""


def init_state(
    config: RunConfig, optimizer: optax.GradientTransformation
) -> TrainState:
    """Creates the state on the mesh in force; call it under `jax.jit`."""
    model = init_transformer(config.model, jax.random.key(config.seed))
    return state_of(model, config, optimizer)


def state_of(
    model: Transformer, config: RunConfig, optimizer: optax.GradientTransformation
) -> TrainState:
    """Wraps given parameters in a state at step 0."""
    num_routed = config.model.num_layers - config.model.num_dense_layers
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        num_trained_tokens=jnp.zeros((2,), jnp.uint32),
        model=model,
        opt_state=optimizer.init(cast(Any, model)),
        logit_mean_L=jnp.zeros((num_routed,), jnp.float32),
        logit_square_L=jnp.ones((num_routed,), jnp.float32),
    )


def add_tokens(words: jax.Array, count: jax.Array) -> jax.Array:
    """Adds to a u32[2] counter, carrying into the high word."""
    low = words[0] + count.astype(jnp.uint32)
    return jnp.stack([low, words[1] + (low < words[0]).astype(jnp.uint32)])
