# SPDX-License-Identifier: Apache-2.0
"""What one training step minimises, and what it reports."""

import dataclasses

import jax
import jax.numpy as jnp

from pallas_kernels.attention import zigzag
from ring_jax import sharding
from ring_jax.batch import Batch
from ring_jax.config import TOKEN_CLASSES, LossConfig, TrainConfig
from ring_jax.model.router import RouterStats, RoutingNoise
from ring_jax.model.transformer import Transformer
from ring_jax.objectives.cross_entropy import linear_cross_entropy


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LossStats:
    """What a batch, or a part of it, reports; parts add up field by field."""

    cross_entropy: jax.Array
    """f32[], this part's share of the weighted mean over the whole batch."""
    source_sums: jax.Array
    """f32[2, num_sources]: weighted cross-entropy and weight of each source."""
    class_sums: jax.Array
    """f32[2, num_classes]: plain cross-entropy and number of targets of each token
    class, whatever they weigh; padding has none."""
    num_trained_tokens: jax.Array
    """i32[], targets with a weight above 0."""
    router: RouterStats
    """This part's share of the mean over parts; every field has a leading L."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Targets:
    """What each position must predict: the next token of its own document."""

    ids_BT: jax.Array
    weights_BT: jax.Array
    classes_BT: jax.Array
    """0 where there is nothing to predict."""
    sources_BT: jax.Array


def next_tokens(batch: Batch) -> Targets:
    """Shifts a batch from "this token" to "the token to predict"."""
    is_same_BT = _next(batch.segments_BT) == batch.segments_BT
    is_trained_BT = is_same_BT & (batch.segments_BT > 0)
    return Targets(
        ids_BT=_next(batch.ids_BT),
        weights_BT=jnp.where(is_trained_BT, _next(batch.weights_BT), 0.0),
        classes_BT=jnp.where(is_trained_BT, _next(batch.classes_BT), 0),
        sources_BT=batch.sources_BT,
    )


def training_loss(
    model: Transformer,
    batch: Batch,
    *,
    config: TrainConfig,
    num_sources: int,
    total_weight: jax.Array,
    share: float,
    noise: RoutingNoise | None,
) -> tuple[jax.Array, LossStats]:
    """Computes a (micro)batch's share of the loss of the whole batch.

    Cross-entropy and z-loss are sums divided by the weight of the *whole* batch, so
    that gradient accumulation gives the gradient of the whole batch however tokens fall
    into its parts. Router losses are means over the parts (a routing statistic of one
    part at a time, as in expert-parallel training).

    Args:
      model: the parameters, float32.
      batch: the part, its rows whole on each device (`sharding.whole_rows`).
      config: dtype, remat and loss coefficients.
      num_sources: number of sources in the run.
      total_weight: f32[], sum of the target weights of the whole batch.
      share: 1 / number of parts.
      noise: routing warm-up, or None.

    Returns:
      The part's share of the total loss, and its statistics.
    """
    batch, targets = split_rows((batch, next_tokens(batch)))
    dtype = jnp.dtype(config.compute_dtype)
    hidden_BTD, router = model(
        batch.ids_BT,
        segments_BT=batch.segments_BT,
        positions_BT=batch.positions_BT,
        dtype=dtype,
        remat=config.remat,
        noise=noise,
    )
    assert router is not None  # `check_routed` has seen to it
    scaled_BTD = hidden_BTD.astype(jnp.float32) * model.head_scale()[None, None]
    weights_M = sharding.flatten_tokens(targets.weights_BT)
    with jax.named_scope("cross_entropy"):
        loss_sum, ce_M = linear_cross_entropy(
            sharding.flatten_tokens(scaled_BTD.astype(dtype)),
            model.head_weight(),
            sharding.flatten_tokens(targets.ids_BT),
            weights_M,
            z_loss_coef=config.loss.z_loss_coef,
            chunk_tokens=config.loss.head_chunk_tokens,
        )
    loss = loss_sum / total_weight + share * router_loss(router, config.loss)
    weighted_M = ce_M * weights_M
    is_target_M = sharding.flatten_tokens(targets.classes_BT) > 0
    stats = LossStats(
        cross_entropy=jnp.sum(weighted_M) / total_weight,
        source_sums=_sums_by(targets.sources_BT, weighted_M, weights_M, num_sources),
        class_sums=_sums_by(
            targets.classes_BT,
            jnp.where(is_target_M, ce_M, 0.0),
            is_target_M.astype(jnp.float32),
            len(TOKEN_CLASSES),
        ),
        num_trained_tokens=jnp.sum(weights_M > 0, dtype=jnp.int32),
        router=jax.tree.map(lambda x: share * x, router),
    )
    return loss, stats


def split_rows[Tree](tree: Tree) -> Tree:
    """Gives each device of the context axis its part of every row, in zigzag order."""
    num_shards = jax.sharding.get_abstract_mesh().shape[sharding.CONTEXT_AXIS]
    layout = sharding.activation("BT")
    return jax.tree.map(lambda x: jax.reshard(zigzag(x, num_shards), layout), tree)


def router_loss(router: RouterStats, config: LossConfig) -> jax.Array:
    """Returns balance and z-loss of the router, means over layers, weighted; f32[]."""
    balance = config.balance_coef * jnp.mean(router.balance_loss)
    return balance + config.router_z_coef * jnp.mean(router.z_loss)


def _next(x_BT: jax.Array) -> jax.Array:
    """Returns each position's right neighbour; the last position gets 0."""
    last_B1 = jnp.zeros_like(x_BT[:, :1])
    return jnp.concatenate([x_BT[:, 1:], last_B1], axis=1)


def _sums_by(
    group_BT: jax.Array, values_M: jax.Array, weights_M: jax.Array, num_groups: int
) -> jax.Array:
    group_M = sharding.flatten_tokens(group_BT)
    is_group_MU = group_M[:, None] == jnp.arange(num_groups)[None]
    values_2M = jnp.stack([values_M, weights_M])
    return jnp.einsum(
        "ZM,MU->ZU",
        values_2M,
        is_group_MU.astype(jnp.float32),
        out_sharding=sharding.activation("ZU"),
    )
