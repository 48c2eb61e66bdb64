# SPDX-License-Identifier: Apache-2.0
"""From logits to the next token: the most probable, or one drawn at a temperature."""

import dataclasses

import jax
import jax.numpy as jnp

from ring_jax import sharding
from ring_jax.config import ConfigError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampler:
    """How a token is chosen."""

    temperature: float = 0.0
    """Divides the logits before drawing; 0 takes the most probable token."""
    seed: int = 0
    """Of the draws; a prompt's draws depend on it and on the prompt's own number."""

    def __post_init__(self):
        if not 0 <= self.temperature < float("inf"):
            raise ConfigError(
                f"temperature={self.temperature} must be finite and at least 0."
            )


def choose(
    logits_BV: jax.Array,
    *,
    temperature: float,
    step_key: jax.Array,
    numbers_B: jax.Array,
) -> jax.Array:
    """Chooses one token per row.

    Args:
      logits_BV: f32[B, V]; -inf for what must never be chosen.
      temperature: as in `Sampler`.
      step_key: of this step; unused at temperature 0.
      numbers_B: i32[B], number of each row's prompt among all prompts.

    Returns:
      i32[B].
    """
    if temperature == 0.0:
        return jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
    # A key per prompt, so that a draw does not depend on who shares the batch.
    noise_BV = jax.vmap(_gumbel, in_axes=(None, 0, None))(
        step_key, sharding.replicated(numbers_B), logits_BV.shape[-1]
    )
    noise_BV = jax.reshard(noise_BV, sharding.activation("BV"))
    # The largest of logits plus Gumbel noise is a draw from their softmax.
    drawn_BV = logits_BV / temperature + noise_BV
    return jnp.argmax(drawn_BV, axis=-1).astype(jnp.int32)


def _gumbel(key: jax.Array, number: jax.Array, size: int) -> jax.Array:
    return jax.random.gumbel(jax.random.fold_in(key, number), (size,))
