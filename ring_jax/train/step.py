# SPDX-License-Identifier: Apache-2.0
"""One optimizer step: pure, and everything it donates is returned."""

import dataclasses
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec as P

from ring_jax import sharding
from ring_jax.batch import Batch
from ring_jax.config import ConfigError, ModelConfig, RunConfig
from ring_jax.model.router import RoutingNoise
from ring_jax.model.transformer import Transformer
from ring_jax.objectives.training_loss import LossStats, next_tokens, training_loss
from ring_jax.train.state import TrainState, add_tokens

STATISTICS_DECAY = 0.9
"""Of the running router statistics; they settle within some ten steps."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class StepMetrics:
    """What a step reports, as arrays on the device."""

    loss: jax.Array
    grad_norm: jax.Array
    num_trained_tokens: jax.Array
    """u32[2], the state's counter after the step."""
    stats: LossStats


type TrainStep = Callable[[TrainState, Batch], tuple[TrainState, StepMetrics]]


@dataclasses.dataclass(frozen=True)
class RoutingWarmup:
    """The steps over which random routing gives way to the router's own."""

    first_step: int
    num_steps: int


def check_routed(config: ModelConfig) -> None:
    """Refuses a model that has nothing to route: losses and statistics are of routers.

    Raises:
      ConfigError: all layers are dense.
    """
    if config.is_dense:
        raise ConfigError(
            f"model: all {config.num_layers} layers are dense, and a run trains routed "
            "layers; make them with `ring import --config=configs/upcycle/FILE.py`."
        )


def make_train_step(
    config: RunConfig,
    optimizer: optax.GradientTransformation,
    *,
    warmup: RoutingWarmup | None = None,
) -> TrainStep:
    """Builds the compiled step; stages share it, since the schedule reads `state.step`.

    The state is donated: pass it on, do not use it again.

    Raises:
      ConfigError: the model has no routed layer.
    """
    check_routed(config.model)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, StepMetrics]:
        noise = None if warmup is None else _routing_noise(state, config, warmup)
        loss, stats, grads = _accumulate(state.model, batch, config, noise)
        # optax types a tree of parameters as arrays; ours is a module, also a tree.
        params: Any = state.model
        with jax.named_scope("optimizer"):
            updates, opt_state = optimizer.update(grads, state.opt_state, params)
            params = optax.apply_updates(params, updates)
        keep = STATISTICS_DECAY
        router = stats.router
        new_state = TrainState(
            step=state.step + 1,
            num_trained_tokens=add_tokens(
                state.num_trained_tokens, stats.num_trained_tokens
            ),
            model=cast(Transformer, params),
            opt_state=opt_state,
            logit_mean_L=keep * state.logit_mean_L + (1 - keep) * router.logit_mean,
            logit_square_L=(
                keep * state.logit_square_L + (1 - keep) * router.logit_square
            ),
        )
        metrics = StepMetrics(
            loss=loss,
            grad_norm=optax.tree.norm(grads),
            num_trained_tokens=new_state.num_trained_tokens,
            stats=stats,
        )
        return new_state, metrics

    return jax.jit(train_step, donate_argnums=0)


def _accumulate(
    model: Transformer, batch: Batch, config: RunConfig, noise: RoutingNoise | None
) -> tuple[jax.Array, LossStats, Any]:
    """Sums loss, statistics and gradients over the microbatches."""
    num_parts = config.train.num_microbatches
    total_weight = jnp.maximum(jnp.sum(next_tokens(batch).weights_BT), 1e-6)

    def part_loss(
        model: Transformer, part: Batch, noise: RoutingNoise | None
    ) -> tuple[jax.Array, LossStats]:
        return training_loss(
            model,
            part,
            config=config.train,
            num_sources=len(config.data.sources),
            total_weight=total_weight,
            share=1.0 / num_parts,
            noise=noise,
        )

    gradient = jax.value_and_grad(part_loss, has_aux=True)
    if num_parts == 1:
        (loss, stats), grads = gradient(model, batch, noise)
        return loss, stats, grads

    def add_part(sums: tuple, inputs: tuple) -> tuple[tuple, None]:
        part, index = inputs
        part_noise = noise if noise is None else _fold(noise, index)
        # libtpu 0.0.50 fails to compile a loop whose all-reduces feed these additions
        # (RET_CHECK in while_loop_all_reduce_code_motion.cc).
        found = jax.lax.optimization_barrier(gradient(model, part, part_noise))
        return jax.tree.map(jnp.add, sums, found), None

    parts = jax.tree.map(lambda x: _split(x, num_parts), batch)
    first = jax.tree.map(lambda x: x[0], parts)
    shapes = jax.eval_shape(gradient, model, first, noise)
    zeros = jax.tree.map(
        lambda s: jnp.zeros(s.shape, s.dtype, out_sharding=s.sharding), shapes
    )
    sums, _ = jax.lax.scan(add_part, zeros, (parts, jnp.arange(num_parts)))
    (loss, stats), grads = sums
    return loss, stats, grads


def _split(x_BT: jax.Array, num_parts: int) -> jax.Array:
    """Deals rows to parts, each device keeping its own: [parts, B/parts, T]."""
    B, T = x_BT.shape
    rows, tokens = sharding.whole_rows()
    strided = x_BT.reshape(
        B // num_parts, num_parts, T, out_sharding=P(rows, None, tokens)
    )
    return strided.swapaxes(0, 1)


def _routing_noise(
    state: TrainState, config: RunConfig, warmup: RoutingWarmup
) -> RoutingNoise:
    L = state.logit_mean_L.shape[0]
    routing_key = jax.random.fold_in(jax.random.key(config.seed), state.step)
    progress = (state.step - warmup.first_step) / warmup.num_steps
    variance_L = state.logit_square_L - jnp.square(state.logit_mean_L)
    return RoutingNoise(
        key=jax.random.split(routing_key, L),
        alpha=jnp.full((L,), jnp.minimum(progress, 1.0), jnp.float32),
        mean=state.logit_mean_L,
        std=jnp.sqrt(jnp.maximum(variance_L, 0.0)),
    )


def _fold(noise: RoutingNoise, index: jax.Array) -> RoutingNoise:
    keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(noise.key, index)
    return dataclasses.replace(noise, key=keys)
