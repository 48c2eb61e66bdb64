# SPDX-License-Identifier: Apache-2.0
"""Which experts a token visits, with what weight, and what routing costs.

Source: arXiv:2503.05139, section 2.1, and `modeling_bailing_moe.py` of
inclusionAI/Ling: softmax over all experts in float32, then top-k, then renormalisation.
"""

import dataclasses

import jax
import jax.numpy as jnp

from ring_jax import sharding
from ring_jax.config import MoeConfig


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RouterStats:
    """What one layer's routing reports; stacked, every field has an L in front."""

    load_E: jax.Array
    """f32, share of the routed rows that each expert takes; sums to 1."""
    balance_loss: jax.Array
    """f32[], E * sum_i load_i P_i, P_i the mean probability; 1 when even."""
    z_loss: jax.Array
    """f32[], mean of the squared log-sum-exp of the logits."""
    logit_mean: jax.Array
    """f32[], mean of the logits, for the routing warm-up's running statistics."""
    logit_square: jax.Array
    """f32[], mean of the squared logits."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RouterSums:
    """What each device's tokens add to a layer's statistics; f32, J devices."""

    count_JE: jax.Array
    """Routed rows of each expert."""
    probability_JE: jax.Array
    num_tokens_J: jax.Array
    log_partition_square_J: jax.Array
    logit_J: jax.Array
    logit_square_J: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RoutingNoise:
    """Stochastic routing warm-up of one layer (arXiv:2503.05139, section 2.1)."""

    key: jax.Array
    alpha: jax.Array
    """f32[], from 0 (all noise) to 1 (all signal)."""
    mean: jax.Array
    std: jax.Array
    """f32[], running statistics of the layer's logits."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Selection:
    """The experts of each token."""

    expert_ids_MA: jax.Array
    """i32; E (one past the last expert) for tokens that are padding."""
    weights_MA: jax.Array
    """f32; sums to 1 per token when renormalised, 0 for padding."""


def perturb(logits_ME: jax.Array, noise: RoutingNoise) -> jax.Array:
    """Returns alpha * s + (1 - alpha) * (mu + sigma * eps), eps ~ N(0, I)."""
    eps_ME = jax.random.normal(
        noise.key, logits_ME.shape, out_sharding=sharding.activation("ME")
    )
    random_ME = noise.mean + noise.std * eps_ME
    return noise.alpha * logits_ME + (1.0 - noise.alpha) * random_ME


def select_experts(
    logits_ME: jax.Array, is_token_M: jax.Array, *, config: MoeConfig
) -> Selection:
    """Chooses each token's experts by probability.

    Args:
      logits_ME: f32[M, E].
      is_token_M: bool[M], false for padding, which visits no expert.
      config: the layer's settings.
    """
    probabilities_ME = jax.nn.softmax(logits_ME, axis=-1)
    weights_MA, ids_MA = _top_k(probabilities_ME, config.num_experts_per_token)
    if config.renormalize_weights and config.num_experts_per_token > 1:
        weights_MA /= jnp.sum(weights_MA, axis=-1, keepdims=True)
    return Selection(
        jnp.where(is_token_M[:, None], ids_MA, config.num_experts),
        jnp.where(is_token_M[:, None], weights_MA, 0.0),
    )


def _top_k(values_ME: jax.Array, num_chosen: int) -> tuple[jax.Array, jax.Array]:
    """Returns each row's largest values and where they are, the first of equals first.

    A few passes over E: `jax.lax.top_k` sorts on a TPU, and its gradient is a scatter,
    where a sum over the chosen one has a select for a gradient.
    """
    E = values_ME.shape[1]
    expert_ME = jax.lax.broadcasted_iota(jnp.int32, values_ME.shape, 1)
    left_ME = jax.lax.stop_gradient(values_ME)
    chosen, ids = [], []
    for _ in range(num_chosen):
        # Two plain reductions, which a CPU runs several at a time; argmax is not.
        is_best_ME = left_ME == jnp.max(left_ME, axis=1, keepdims=True)
        id_M = jnp.min(jnp.where(is_best_ME, expert_ME, E), axis=1)
        is_chosen_ME = expert_ME == id_M[:, None]
        chosen.append(jnp.sum(jnp.where(is_chosen_ME, values_ME, 0.0), axis=1))
        ids.append(id_M)
        left_ME = jnp.where(is_chosen_ME, -jnp.inf, left_ME)
    return jnp.stack(chosen, axis=1), jnp.stack(ids, axis=1)


def router_sums(
    logits_ME: jax.Array, selection: Selection, is_token_M: jax.Array
) -> RouterSums:
    """Adds up, on each device for itself, what `router_stats` is made of.

    The choice itself has no gradient; the balance loss acts through the probabilities.
    """
    row = sharding.activation("M")
    run = sharding.per_device(
        _sums_on_device,
        in_specs=(sharding.activation("ME"), sharding.activation("MA"), row),
        out_specs=tuple(map(sharding.activation, ("JE", "JE", "J", "J", "J", "J"))),
    )
    return RouterSums(*run(logits_ME, selection.expert_ids_MA, is_token_M))


def _sums_on_device(
    logits_ME: jax.Array, expert_ids_MA: jax.Array, is_token_M: jax.Array
) -> tuple[jax.Array, ...]:
    """Returns the fields of `RouterSums`, in order."""
    E = logits_ME.shape[1]
    is_token_M = is_token_M.astype(jnp.float32)
    chosen_MAE = expert_ids_MA[..., None] == jnp.arange(E)[None, None]
    probabilities_ME = jax.nn.softmax(logits_ME, axis=-1)
    log_partition_M = jax.nn.logsumexp(logits_ME, axis=-1)
    plain_ME = jax.lax.stop_gradient(logits_ME) * is_token_M[:, None]
    sums = (
        jnp.sum(chosen_MAE, axis=(0, 1), dtype=jnp.float32),
        jnp.sum(probabilities_ME * is_token_M[:, None], axis=0),
        jnp.sum(is_token_M),
        jnp.sum(jnp.square(log_partition_M) * is_token_M),
        jnp.sum(plain_ME),
        jnp.sum(jnp.square(plain_ME)),
    )
    return tuple(total[None] for total in sums)


def router_stats(sums: RouterSums) -> RouterStats:
    """Measures load, balance loss and z-loss over the tokens that are not padding.

    Statistics are global: they span all devices, and under gradient accumulation one
    microbatch (arXiv:2101.03961, equations 4 to 6). Given the sums of stacked layers,
    all of them cross the wire at once.
    """
    count_E = jnp.sum(sums.count_JE, axis=-2)
    E = count_E.shape[-1]
    num_tokens = jnp.maximum(jnp.sum(sums.num_tokens_J, axis=-1), 1.0)
    total = jnp.maximum(jnp.sum(count_E, axis=-1, keepdims=True), 1.0)
    load_E = count_E / total
    mean_E = jnp.sum(sums.probability_JE, axis=-2) / num_tokens[..., None]
    squares = jnp.sum(sums.log_partition_square_J, axis=-1)
    num_logits = num_tokens * E
    return RouterStats(
        load_E=load_E,
        balance_loss=E * jnp.sum(load_E * mean_E, axis=-1),
        z_loss=squares / num_tokens,
        logit_mean=jnp.sum(sums.logit_J, axis=-1) / num_logits,
        logit_square=jnp.sum(sums.logit_square_J, axis=-1) / num_logits,
    )
