# SPDX-License-Identifier: Apache-2.0
"""The definition in jnp, differentiable by JAX: what the tests believe."""

import jax
import jax.numpy as jnp


def expert_mlp(
    x_RD: jax.Array,
    gate_up_ED2F: jax.Array,
    down_EFD: jax.Array,
    row_weights_R: jax.Array,
    group_sizes_E: jax.Array,
    *,
    group_offset: int = 0,
) -> jax.Array:
    """Returns y[r] = row_weights[r] (silu(g) u) down[e(r)]; see the package."""
    end_E = jnp.cumsum(group_sizes_E)
    row_R = jnp.arange(x_RD.shape[0])
    y_RD = jnp.zeros_like(x_RD)
    for e, (gate_up_D2F, down_FD) in enumerate(
        zip(gate_up_ED2F, down_EFD, strict=True)
    ):
        end = end_E[e + group_offset]
        begin = end - group_sizes_E[e + group_offset]
        is_own_R = (row_R >= begin) & (row_R < end)
        # Masked before and after, as a product with 0 would keep the NaNs of others.
        own_RD = jnp.where(is_own_R[:, None], x_RD, 0)
        weights_R1 = jnp.where(is_own_R, row_weights_R, 0)[:, None]
        gate_RF, up_RF = own_RD @ gate_up_D2F[:, 0], own_RD @ gate_up_D2F[:, 1]
        y_RD += weights_R1 * ((jax.nn.silu(gate_RF) * up_RF) @ down_FD)
    return y_RD
