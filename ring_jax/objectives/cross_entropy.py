# SPDX-License-Identifier: Apache-2.0
"""`pallas_kernels.linear_cross_entropy` on a mesh: each device its own tokens."""

import functools

import jax
import jax.numpy as jnp

from pallas_kernels import linear_cross_entropy as kernel
from ring_jax import sharding
from ring_jax.weight_gather import gather_block


def linear_cross_entropy(
    hidden_MD: jax.Array,
    head_DV: jax.Array,
    targets_M: jax.Array,
    weights_M: jax.Array,
    *,
    z_loss_coef: float,
    chunk_tokens: int,
) -> tuple[jax.Array, jax.Array]:
    """Computes sum_m weights[m] * (ce[m] + z_loss_coef * logsumexp[m]**2).

    Args:
      hidden_MD: [M, D], what the head reads, already scaled by `head_scale`.
      head_DV: f32[D, V]; the product runs in the dtype of `hidden_MD`, summed in
      float32.
      targets_M: i32[M].
      weights_M: f32[M]; not differentiated. A token of weight 0 counts nothing, even
      if it holds NaN.
      z_loss_coef: of the squared log-partition (arXiv:2204.02311, section 5).
      chunk_tokens: tokens of one device whose logits exist at once.

    Returns:
      The weighted sum, f32[], differentiable in `hidden_MD` and `head_DV`, and the
      plain cross-entropy of each token, f32[M], which is not.
    """
    token, row = sharding.activation("M"), sharding.activation("MD")
    run = sharding.per_device(
        functools.partial(
            _on_device, z_loss_coef=z_loss_coef, chunk_tokens=chunk_tokens
        ),
        in_specs=(row, sharding.weight("DV"), token, token),
        out_specs=(token, token),
    )
    sums, ce_M = run(hidden_MD, head_DV, targets_M, weights_M)
    return jnp.sum(sums), ce_M


def _on_device(
    hidden_MD: jax.Array,
    head_DV: jax.Array,
    targets_M: jax.Array,
    weights_M: jax.Array,
    *,
    z_loss_coef: float,
    chunk_tokens: int,
) -> tuple[jax.Array, jax.Array]:
    total, results = kernel.linear_cross_entropy_sum(
        hidden_MD,
        gather_block(head_DV, "DV", dtype=hidden_MD.dtype),
        targets_M,
        kernel.TokenWeights(weights_M, z_loss_M=z_loss_coef * weights_M),
        chunk_tokens=chunk_tokens,
        axis_name=sharding.if_split(sharding.TENSOR_AXIS),
    )
    return total[None], results.loss()
