# SPDX-License-Identifier: Apache-2.0
"""The routed feed-forward layer: route, dispatch, expert SwiGLU, combine.

Dropless: every routed row is computed. Rows are sorted by expert and multiplied by one
grouped matmul a projection. With an expert mesh axis, each device gathers the tokens of
its group, computes the rows of its own experts, and the sums are scattered back.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from flax import nnx

from pallas_kernels.grouped_matmul import grouped_matmul
from ring_jax import sharding
from ring_jax.config import ModelConfig, MoeConfig
from ring_jax.model.layers import GatedMlp, normal, swiglu, uniform
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
        logits_ME = einsum("MD,DE->ME", x_MD, self.router_DE[...]).astype(jnp.float32)
        if noise is not None:
            logits_ME = perturb(logits_ME, noise)
        with jax.named_scope("route"):
            selection = select_experts(logits_ME, is_token_M, config=self.config)
            stats = router_stats(logits_ME, selection, is_token_M)
        out_MD = self._experts(x_MD, selection)
        out_BTD = sharding.unflatten_tokens(out_MD, x_BTD)
        return out_BTD if self.shared is None else out_BTD + self.shared(x_BTD), stats

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
    E, D, _, F = gate_up_ED2F.shape
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
    matmul = functools.partial(grouped_matmul, implementation=_implementation(config))
    with jax.named_scope("experts"):
        gate_up_RF = matmul(x_RD, gate_up_ED2F.reshape(E, D, 2 * F), plan.group_sizes_E)
        hidden_RF = swiglu(gate_up_RF.reshape(-1, 2, F))
        y_RD = matmul(hidden_RF, down_EFD, plan.group_sizes_E)
    with jax.named_scope("combine"):
        out_MD = _combine(y_RD, weights_MA, plan)
    if not has_all_experts:
        out_MD = jax.lax.psum_scatter(
            out_MD, EXPERT_AXIS, scatter_dimension=0, tiled=True
        )
    return out_MD.astype(x_MD.dtype)


def _implementation(config: MoeConfig) -> str | None:
    return None if config.implementation == "auto" else config.implementation


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
    """Copies each token's row to the sorted rows of its experts; [R, D].

    The gradient gathers too (each token sums its A rows): a scatter-add would
    serialise.
    """
    num_slots = plan.order_R.size // x_MD.shape[0]
    return x_MD[plan.order_R // num_slots]


def _dispatch_forward(x_MD: jax.Array, plan: _Plan) -> tuple[jax.Array, tuple]:
    return _dispatch(x_MD, plan), (plan, x_MD[:, :0])


def _dispatch_backward(residuals: tuple, grad_RD: jax.Array) -> tuple:
    plan, empty_M0 = residuals
    M, D = empty_M0.shape[0], grad_RD.shape[1]
    grad_MAD = grad_RD[plan.inverse_R].reshape(M, -1, D)
    return jnp.sum(grad_MAD.astype(jnp.float32), axis=1).astype(grad_RD.dtype), None


_dispatch.defvjp(_dispatch_forward, _dispatch_backward)


def _combine(y_RD: jax.Array, weights_MA: jax.Array, plan: _Plan) -> jax.Array:
    """Returns sum_a weight[m, a] * y[row of (m, a)] in float32; [M, D]."""
    M, A = weights_MA.shape
    y_MAD = _unsort(y_RD, plan).reshape(M, A, -1).astype(jnp.float32)
    return jnp.einsum("MAD,MA->MD", y_MAD, weights_MA)


@jax.custom_vjp
def _unsort(y_RD: jax.Array, plan: _Plan) -> jax.Array:
    """Puts sorted rows back into (token, slot) order; a permutation both ways."""
    return y_RD[plan.inverse_R]


def _unsort_forward(y_RD: jax.Array, plan: _Plan) -> tuple[jax.Array, _Plan]:
    return _unsort(y_RD, plan), plan


def _unsort_backward(plan: _Plan, grad_RD: jax.Array) -> tuple:
    return grad_RD[plan.order_R], None


_unsort.defvjp(_unsort_forward, _unsort_backward)
