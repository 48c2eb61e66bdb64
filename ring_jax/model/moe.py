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
from ring_jax.model.layers import GatedMlp, normal, uniform
from ring_jax.model.router import (
    RouterSums,
    RoutingNoise,
    Selection,
    perturb,
    router_sums,
    select_experts,
)
from ring_jax.sharding import einsum


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

    def __call__(
        self, x_BTD: jax.Array, is_token_BT: jax.Array, noise: RoutingNoise | None
    ) -> tuple[jax.Array, RouterSums]:
        """Returns routed plus shared experts' output, and sums for the statistics."""
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
        out_MD = self._experts(x_MD, selection)
        out_BTD = sharding.unflatten_tokens(out_MD, x_BTD)
        if self.shared is not None:
            with jax.named_scope("shared"):
                out_BTD += self.shared(x_BTD)
        return out_BTD, sums

    def _experts(self, x_MD: jax.Array, selection: Selection) -> jax.Array:
        rows, row = sharding.activation("MD"), sharding.activation("MA")
        run = sharding.per_device(
            functools.partial(_experts_on_device, config=self.config),
            in_specs=(rows, row, row, sharding.weight("ED2F"), sharding.weight("EFD")),
            out_specs=rows,
        )
        return run(
            x_MD,
            selection.expert_ids_MA,
            selection.weights_MA,
            self.gate_up_ED2F[...],
            self.down_EFD[...],
        )


def _experts_on_device(
    x_MD: jax.Array,
    expert_ids_MA: jax.Array,
    weights_MA: jax.Array,
    gate_up_ED2F: jax.Array,
    down_EFD: jax.Array,
    *,
    config: ModelConfig,
) -> jax.Array:
    """Gathers what the transport wants gathered, and runs this device's tokens."""
    transport = _transport(x_MD, config)
    keep = "" if transport == "fsdp" else "E"
    gather = functools.partial(sharding.gather_block, dtype=x_MD.dtype, keep=keep)
    # Joined before it is gathered: [2, F] would lie in tiles of two rows.
    E, D = gate_up_ED2F.shape[:2]
    gate_up_EDF = gate_up_ED2F.astype(x_MD.dtype).reshape(E, D, -1)
    experts = ExpertWeights(gather(gate_up_EDF, "EDF"), gather(down_EFD, "EFD"))
    out_MD = TRANSPORTS[transport](
        functools.partial(_run_rows, config=config.moe),
        sharding.vary(x_MD, sharding.TENSOR_AXIS),
        expert_ids_MA,
        sharding.vary(weights_MA, sharding.TENSOR_AXIS),
        experts,
    )
    return sharding.sum_over(out_MD.astype(x_MD.dtype), sharding.TENSOR_AXIS)


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
            _plan_rows(x_RD, gate_up_ED2F, group_sizes_E, config=config),
        )


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
