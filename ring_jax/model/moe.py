# SPDX-License-Identifier: Apache-2.0
"""The routed feed-forward layer: route, dispatch, expert SwiGLU, combine.

Dropless: every routed row is computed. Rows are sorted by expert (`dispatch.py`), and
each goes through the SwiGLU of its expert and is multiplied by its routing weight
(`expert_mlp`). With an expert mesh axis, `expert_parallel.py` brings tokens and experts
together.
"""

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from pallas_kernels.expert_mlp import expert_mlp
from pallas_kernels.grouped_matmul import (
    Quantization,
    RowPlan,
    Tails,
    default_implementation,
    plan_rows,
    unsupported_quantization,
)
from ring_jax import sharding
from ring_jax.config import ConfigError, ModelConfig, MoeConfig
from ring_jax.model.expert_parallel import (
    TRANSPORTS,
    ExpertWeights,
    choose_transport,
)
from ring_jax.model.layer_stack import arrive_forward
from ring_jax.model.layers import GatedMlp, normal, uniform
from ring_jax.model.router import (
    RouterSums,
    RoutingNoise,
    Selection,
    perturb,
    router_sums,
    select_experts,
)
from ring_jax.weight_gather import einsum, operand


class Moe(nnx.Module):
    """Routed SwiGLU experts plus ungated shared experts (arXiv:2503.05139, 2.1)."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        moe, D, std = config.moe, config.model_dim, config.init_std
        E, F = moe.num_experts, moe.expert_dim
        self.config = config
        self.router_DE = uniform("DE", (D, E), D**-0.5, rngs)
        self.gate_up_ED2F = normal("ED2F", (E, D, 2, F), std, rngs)
        self.down_EFD = normal("EFD", (E, F, D), std, rngs)
        width = moe.num_shared_experts * F
        self.shared = GatedMlp(D, width, std=std, rngs=rngs) if width else None

    def __call__[Tree](
        self,
        x_BTD: jax.Array,
        is_token_BT: jax.Array,
        noise: RoutingNoise | None,
        arriving: Tree = None,
    ) -> tuple[jax.Array, RouterSums, Tree]:
        """Returns routed plus shared experts' output, and sums for the statistics.

        `arriving` has arrived when the experts are done (`arrive_forward`).
        """
        x_MD = sharding.flatten_tokens(x_BTD)
        is_token_M = sharding.flatten_tokens(is_token_BT)
        # The matmul runs in the activation's dtype as in the source, all after it in
        # f32.
        with jax.named_scope("route"):
            logits_ME = einsum("MD,DE->ME", x_MD, self.router_DE[...])
            logits_ME = logits_ME.astype(jnp.float32)
            if noise is not None:
                logits_ME = perturb(logits_ME, noise)
            selection = select_experts(logits_ME, is_token_M, config=self.config.moe)
            sums = router_sums(logits_ME, selection, is_token_M)
        out_MD, arriving = self._experts(x_MD, selection, arriving)
        out_BTD = sharding.unflatten_tokens(out_MD, x_BTD)
        if self.shared is not None:
            with jax.named_scope("shared"):
                out_BTD += self.shared(x_BTD)
        return out_BTD, sums, arriving

    def _experts[Tree](
        self, x_MD: jax.Array, selection: Selection, arriving: Tree
    ) -> tuple[jax.Array, Tree]:
        rows, row = sharding.activation("MD"), sharding.activation("MA")
        gate_up, gate_up_layout, copy_gate_up = operand(
            self.gate_up_ED2F[...], "ED2F", x_MD.dtype
        )
        down, down_layout, copy_down = operand(self.down_EFD[...], "EFD", x_MD.dtype)
        layouts = jax.tree.map(lambda x: jax.typeof(x).sharding.spec, arriving)

        def run(
            x_MD: jax.Array,
            selection: Selection,
            gate_up: jax.Array,
            down: jax.Array,
            arriving: Tree,
        ) -> tuple[jax.Array, Tree]:
            experts = ExpertWeights(copy_gate_up(gate_up), copy_down(down))
            return _experts_on_device(
                x_MD, selection, experts, arriving, config=self.config
            )

        run_per_device = sharding.per_device(
            run,
            in_specs=(rows, row, gate_up_layout, down_layout, layouts),
            out_specs=(rows, layouts),
        )
        return run_per_device(x_MD, selection, gate_up, down, arriving)


def _experts_on_device[Tree](
    x_MD: jax.Array,
    selection: Selection,
    experts: ExpertWeights,
    arriving: Tree,
    *,
    config: ModelConfig,
) -> tuple[jax.Array, Tree]:
    """Runs this device's tokens by the transport of choice; sums over `tensor`."""
    transport = _transport(x_MD, config)
    out, bring_back = TRANSPORTS[transport](
        functools.partial(_run_rows, config=config.moe),
        sharding.vary(x_MD, sharding.TENSOR_AXIS),
        selection.expert_ids_MA,
        sharding.vary(selection.weights_MA, sharding.TENSOR_AXIS),
        experts,
    )
    out, arriving = arrive_forward(out, arriving)
    out_MD = bring_back(out).astype(x_MD.dtype)
    return sharding.sum_over(out_MD, sharding.TENSOR_AXIS), arriving


def _transport(x_MD: jax.Array, config: ModelConfig) -> str:
    num_devices = jax.lax.axis_size(sharding.EXPERT_AXIS)
    if num_devices == 1:
        return "fsdp"
    if config.moe.transport != "auto":
        return config.moe.transport
    return choose_transport(
        config,
        num_tokens=x_MD.shape[0],
        num_devices=num_devices,
        itemsize=x_MD.dtype.itemsize,
    )


def _run_rows(
    x_RD: jax.Array,
    gate_up_EDF: jax.Array,
    down_EFD: jax.Array,
    row_weights_R: jax.Array,
    group_sizes_E: jax.Array,
    *,
    tails: Tails = "own",
    config: MoeConfig,
) -> jax.Array:
    E, D = gate_up_EDF.shape[:2]
    gate_up_ED2F = gate_up_EDF.reshape(E, D, 2, -1)
    with jax.named_scope("experts"):
        # Gate and up are always saved: rematerialised layers (`config.train.remat`)
        # compute them once in the backward pass, and others keep everything.
        return expert_mlp(
            x_RD,
            gate_up_ED2F,
            down_EFD,
            row_weights_R,
            _plan_rows(x_RD, gate_up_ED2F, group_sizes_E, tails=tails, config=config),
        )


def _plan_rows(
    x_RD: jax.Array,
    w_ED2F: jax.Array,
    group_sizes_E: jax.Array,
    *,
    tails: Tails,
    config: MoeConfig,
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
        tails=tails,
    )
