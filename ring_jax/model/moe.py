# SPDX-License-Identifier: Apache-2.0
"""The routed feed-forward layer: route, dispatch, expert SwiGLU, combine.

Dropless: every routed row is computed. Rows are sorted by expert, and each goes through
the SwiGLU of its expert and is multiplied by its routing weight (`expert_mlp`). With an
expert mesh axis, each device gathers the tokens of its group, computes the rows of its
own experts, which it sorts first, and the sums are scattered back.

Nothing scatters into an array of rows, forward or backward: a scatter-add would
serialise. What moves rows is a gather, and so is its gradient.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from flax import nnx

from pallas_kernels.expert_mlp import expert_mlp
from pallas_kernels.grouped_matmul import (
    Quantization,
    RowPlan,
    default_implementation,
    plan_rows,
    unsupported_quantization,
)
from ring_jax import sharding
from ring_jax.config import ConfigError, ModelConfig, MoeConfig
from ring_jax.model.layers import GatedMlp, normal, uniform
from ring_jax.model.router import (
    RouterStats,
    RoutingNoise,
    Selection,
    perturb,
    router_stats,
    select_experts,
)
from ring_jax.sharding import EXPERT_AXIS, einsum


class Moe(nnx.Module):
    """Routed SwiGLU experts plus ungated shared experts (arXiv:2503.05139, 2.1)."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        moe, D, std = config.moe, config.model_dim, config.init_std
        E, F = moe.num_experts, moe.expert_dim
        self.config = moe
        self.router_DE = uniform("DE", (D, E), D**-0.5, rngs)
        self.gate_up_ED2F = normal("ED2F", (E, D, 2, F), std, rngs)
        self.down_EFD = normal("EFD", (E, F, D), std, rngs)
        width = moe.num_shared_experts * F
        self.shared = GatedMlp(D, width, std=std, rngs=rngs) if width else None

    def __call__(
        self, x_BTD: jax.Array, is_token_BT: jax.Array, noise: RoutingNoise | None
    ) -> tuple[jax.Array, RouterStats]:
        """Returns routed plus shared experts' output, and the routing statistics."""
        x_MD = sharding.flatten_tokens(x_BTD)
        is_token_M = sharding.flatten_tokens(is_token_BT)
        # The matmul runs in the activation's dtype as in the source, all after it in
        # f32.
        with jax.named_scope("route"):
            logits_ME = einsum("MD,DE->ME", x_MD, self.router_DE[...])
            logits_ME = logits_ME.astype(jnp.float32)
            if noise is not None:
                logits_ME = perturb(logits_ME, noise)
            selection = select_experts(logits_ME, is_token_M, config=self.config)
            stats = router_stats(logits_ME, selection, is_token_M)
        out_MD = self._experts(x_MD, selection)
        out_BTD = sharding.unflatten_tokens(out_MD, x_BTD)
        if self.shared is not None:
            with jax.named_scope("shared"):
                out_BTD += self.shared(x_BTD)
        return out_BTD, stats

    def _experts(self, x_MD: jax.Array, selection: Selection) -> jax.Array:
        rows, row = sharding.activation("MD"), sharding.activation("MA")
        run = sharding.per_device(
            functools.partial(_experts_on_device, config=self.config),
            in_specs=(rows, row, row, sharding.weight("ED2F"), sharding.weight("EFD")),
            out_specs=rows,
        )
        dtype = x_MD.dtype
        return run(
            x_MD,
            selection.expert_ids_MA,
            selection.weights_MA,
            self.gate_up_ED2F[...].astype(dtype),
            self.down_EFD[...].astype(dtype),
        )


def _experts_on_device(
    x_MD: jax.Array,
    expert_ids_MA: jax.Array,
    weights_MA: jax.Array,
    gate_up_ED2F: jax.Array,
    down_EFD: jax.Array,
    *,
    config: MoeConfig,
) -> jax.Array:
    """Runs the experts that live on this device for the tokens of its expert group."""
    gate_up_ED2F = sharding.gather_block(gate_up_ED2F, "ED2F", keep="E")
    down_EFD = sharding.gather_block(down_EFD, "EFD", keep="E")
    E = gate_up_ED2F.shape[0]
    has_all_experts = config.num_experts == E
    if not has_all_experts:
        gather = functools.partial(
            jax.lax.all_gather, axis_name=EXPERT_AXIS, axis=0, tiled=True
        )
        x_MD, weights_MA = gather(x_MD), gather(weights_MA)
        local_ids_MA = gather(expert_ids_MA) - E * jax.lax.axis_index(EXPERT_AXIS)
        is_local_MA = (local_ids_MA >= 0) & (local_ids_MA < E)
        expert_ids_MA = jnp.where(is_local_MA, local_ids_MA, E)
        weights_MA = jnp.where(is_local_MA, weights_MA, 0.0)
    with jax.named_scope("dispatch"):
        plan = _plan_dispatch(expert_ids_MA, num_experts=E)
        x_RD = _dispatch(x_MD, plan)
        row_weights_R = _sort(weights_MA.reshape(-1), plan)
    with jax.named_scope("experts"):
        # Gate and up are always saved: rematerialised layers (`config.train.remat`)
        # compute them once in the backward pass, and others keep everything.
        y_RD = expert_mlp(
            x_RD,
            gate_up_ED2F,
            down_EFD,
            row_weights_R,
            _plan_rows(x_RD, gate_up_ED2F, plan.group_sizes_E, config=config),
        )
    with jax.named_scope("combine"):
        out_MD = _combine(y_RD, plan, x_MD.shape[0])
    if not has_all_experts:
        out_MD = jax.lax.psum_scatter(
            out_MD, EXPERT_AXIS, scatter_dimension=0, tiled=True
        )
    return out_MD.astype(x_MD.dtype)


def _plan_rows(
    x_RD: jax.Array, w_ED2F: jax.Array, group_sizes_E: jax.Array, *, config: MoeConfig
) -> RowPlan:
    """Returns how the products over the sorted rows are computed, as configured."""
    implementation, quantization = config.implementation, None
    if implementation == "auto":
        implementation = default_implementation(x_RD, w_ED2F)
    if config.quantization != "none":
        # Rounding to the nearest needs no key, which each layer would have to be given.
        quantization = Quantization(config.quantization)
        if reason := unsupported_quantization(implementation, quantization):
            raise ConfigError(f"model.moe.quantization: {reason}.")
    return plan_rows(
        group_sizes_E,
        num_rows=x_RD.shape[0],
        implementation=implementation,
        quantization=quantization,
    )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Plan:
    """Where each routed row goes: row r of the sorted order is pair `order_R[r]`."""

    order_R: jax.Array
    """i32, flattened (token, slot) pair of each sorted row."""
    inverse_R: jax.Array
    """i32, sorted row of each pair."""
    group_sizes_E: jax.Array


def _plan_dispatch(expert_ids_MA: jax.Array, *, num_experts: int) -> _Plan:
    R = expert_ids_MA.size
    expert_ids_R = expert_ids_MA.reshape(R)
    # One packed integer sorts faster than a pair, and ties keep token order.
    assert (num_experts + 1) * R < 2**31, "routed rows per device overflow the sort key"
    order_R = jnp.sort(expert_ids_R * R + jnp.arange(R)) % R
    inverse_R = jnp.argsort(order_R)
    is_expert_RE = expert_ids_R[:, None] == jnp.arange(num_experts)[None]
    return _Plan(order_R, inverse_R, jnp.sum(is_expert_RE, axis=0, dtype=jnp.int32))


@jax.custom_vjp
def _dispatch(x_MD: jax.Array, plan: _Plan) -> jax.Array:
    """Copies each token's row to the sorted rows of its experts; [R, D]."""
    num_slots = plan.order_R.size // x_MD.shape[0]
    return x_MD[plan.order_R // num_slots]


def _dispatch_forward(x_MD: jax.Array, plan: _Plan) -> tuple[jax.Array, tuple]:
    return _dispatch(x_MD, plan), (plan, x_MD[:, :0])


def _dispatch_backward(residuals: tuple, grad_RD: jax.Array) -> tuple:
    plan, empty_M0 = residuals
    return _sum_slots(grad_RD, plan, empty_M0.shape[0]).astype(grad_RD.dtype), None


_dispatch.defvjp(_dispatch_forward, _dispatch_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _combine(y_RD: jax.Array, plan: _Plan, num_tokens: int) -> jax.Array:
    """Sums each token's A rows in float32; [M, D]. The transpose of `_dispatch`."""
    return _sum_slots(y_RD, plan, num_tokens)


def _combine_forward(y_RD, plan, num_tokens) -> tuple[jax.Array, tuple]:
    return _combine(y_RD, plan, num_tokens), (plan, y_RD[:0])


def _combine_backward(num_tokens, residuals, grad_MD) -> tuple:
    del num_tokens
    plan, empty_0D = residuals
    return _dispatch(grad_MD.astype(empty_0D.dtype), plan), None


_combine.defvjp(_combine_forward, _combine_backward)


def _sum_slots(y_RD: jax.Array, plan: _Plan, num_tokens: int) -> jax.Array:
    y_MAD = y_RD[plan.inverse_R].reshape(num_tokens, -1, y_RD.shape[1])
    return jnp.sum(y_MAD.astype(jnp.float32), axis=1)


@jax.custom_vjp
def _sort(values_R: jax.Array, plan: _Plan) -> jax.Array:
    """Puts one value a pair into the order of the sorted rows."""
    return values_R[plan.order_R]


def _sort_forward(values_R: jax.Array, plan: _Plan) -> tuple[jax.Array, _Plan]:
    return _sort(values_R, plan), plan


def _sort_backward(plan: _Plan, grad_R: jax.Array) -> tuple:
    return grad_R[plan.inverse_R], None


_sort.defvjp(_sort_forward, _sort_backward)
