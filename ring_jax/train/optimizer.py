# SPDX-License-Identifier: Apache-2.0
"""AdamW with warm-up, cosine decay, a decay mask and clipping, one schedule a stage."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from ring_jax.config import OptimizerConfig, StageConfig
from ring_jax.model.transformer import Transformer


def learning_rate(stages: Mapping[str, StageConfig], step: jax.Array) -> jax.Array:
    """Returns the learning rate of a global step (0-based); f32[].

    Each stage warms up linearly from 0 and decays by a cosine to its final fraction.
    """
    rate, first = jnp.zeros((), jnp.float32), 0
    for stage in stages.values():
        schedule = optax.warmup_cosine_decay_schedule(
            init_value=0.0,
            peak_value=stage.learning_rate,
            warmup_steps=min(stage.warmup_steps, stage.num_steps - 1),
            decay_steps=stage.num_steps,
            end_value=stage.learning_rate * stage.final_learning_rate_fraction,
        )
        # One step ahead: a first update at rate 0 would be a step lost.
        rate = jnp.where(step >= first, schedule(step - first + 1), rate)
        first += stage.num_steps
    return rate.astype(jnp.float32)


def make_optimizer(
    config: OptimizerConfig, stages: Mapping[str, StageConfig]
) -> optax.GradientTransformation:
    """Builds AdamW (arXiv:1711.05101): clip, moments, decay of matrices, rate.

    Moments are float32 and laid out like their parameters.
    """

    def negative_rate(step: Any) -> Any:
        return -learning_rate(stages, step)

    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.scale_by_adam(b1=config.b1, b2=config.b2, eps=config.eps),
        optax.add_decayed_weights(config.weight_decay, mask=decay_mask),
        optax.scale_by_schedule(negative_rate),
    )


def decay_mask(model: Transformer) -> Transformer:
    """Marks what decays: matrices do; norms and biases do not, stacked or not."""

    def is_matrix(path: tuple, _: jax.Array) -> bool:
        name = "".join(str(key) for key in path)
        return not ("norm" in name or "bias" in name)

    return jax.tree_util.tree_map_with_path(is_matrix, model)
