# SPDX-License-Identifier: Apache-2.0
"""The definition in jnp, with the logits of all tokens: what the tests believe."""

import jax
import jax.numpy as jnp

from pallas_kernels.linear_cross_entropy.types import (
    Frozen,
    SecondTarget,
    TokenResults,
    TopK,
)


def linear_cross_entropy(
    hidden_MD: jax.Array,
    head_DV: jax.Array,
    targets_M: jax.Array,
    second: SecondTarget | None = None,
) -> TokenResults:
    """Returns each token's results; see the package."""
    logits_MV = _logits(hidden_MD, head_DV)
    log_probs_MV = jax.nn.log_softmax(logits_MV)
    is_target_MV = jnp.arange(head_DV.shape[1])[None] == targets_M[:, None]
    return TokenResults(
        log_prob_M=jnp.sum(jnp.where(is_target_MV, log_probs_MV, 0.0), axis=1),
        log_partition_M=jax.nn.logsumexp(logits_MV, axis=1),
        divergence_M=_divergence(log_probs_MV, second),
    )


def _divergence(
    log_probs_MV: jax.Array, second: SecondTarget | None
) -> jax.Array | None:
    match second:
        case None:
            return None
        case Frozen():
            logits_MV = jax.lax.stop_gradient(_logits(second.hidden_MD, second.head_DV))
            frozen_MV = jax.nn.log_softmax(logits_MV)
            return jnp.sum(jnp.exp(frozen_MV) * (frozen_MV - log_probs_MV), axis=1)
        case TopK():
            return _top_k_divergence(log_probs_MV, second)


def _top_k_divergence(log_probs_MV: jax.Array, teacher: TopK) -> jax.Array:
    columns_11V = jnp.arange(log_probs_MV.shape[1])[None, None]
    is_named_MOV = teacher.ids_MO[:, :, None] == columns_11V
    is_rest_MV = ~jnp.any(is_named_MOV, axis=1)
    student_MO = jnp.sum(jnp.where(is_named_MOV, log_probs_MV[:, None, :], 0.0), axis=2)
    student_M = jax.nn.logsumexp(log_probs_MV, axis=1, where=is_rest_MV)
    probs_MO = jnp.where(teacher.ids_MO >= 0, jnp.exp(teacher.log_probs_MO), 0.0)
    rest_M = 1.0 - jnp.sum(probs_MO, axis=1)
    named_M = jnp.sum(probs_MO * (teacher.log_probs_MO - student_MO), axis=1)
    return named_M + rest_M * (jnp.log(rest_M) - student_M)


def _logits(hidden_MD: jax.Array, head_DV: jax.Array) -> jax.Array:
    dtype = jnp.promote_types(hidden_MD.dtype, jnp.float32)
    head_DV = head_DV.astype(hidden_MD.dtype).astype(dtype)
    return jnp.dot(hidden_MD.astype(dtype), head_DV, precision="highest")
