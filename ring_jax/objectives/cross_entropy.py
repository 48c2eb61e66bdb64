# SPDX-License-Identifier: Apache-2.0
"""Head and cross-entropy in one pass over chunks of tokens.

The logits of a chunk exist, those of the batch never do: at Ling-lite's vocabulary one
16k-token row would take 8 GB. The gradients of a chunk are formed while its logits are
at hand, so the backward pass multiplies nothing again: three matmuls in all, none
repeated.
"""

import functools

import jax
import jax.numpy as jnp

from ring_jax import sharding


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
      weights_M: f32[M]; not differentiated.
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
    head_DV = head_DV.astype(hidden_MD.dtype)
    sums, ce_M = run(hidden_MD, head_DV, targets_M, weights_M)
    return jnp.sum(sums), jax.lax.stop_gradient(ce_M)


def _on_device(
    hidden_MD: jax.Array,
    head_DV: jax.Array,
    targets_M: jax.Array,
    weights_M: jax.Array,
    *,
    z_loss_coef: float,
    chunk_tokens: int,
) -> tuple[jax.Array, jax.Array]:
    head_DV = sharding.gather_block(head_DV, "DV")
    M = hidden_MD.shape[0]
    C = min(chunk_tokens, M)
    padding = -M % C
    chunks = [
        jnp.pad(x, [(0, padding)] + [(0, 0)] * (x.ndim - 1)).reshape(
            -1, C, *x.shape[1:]
        )
        for x in (hidden_MD, targets_M, weights_M)
    ]
    total, ce_JC = _chunked(z_loss_coef, chunks[0], head_DV, chunks[1], chunks[2])
    return total[None], ce_JC.reshape(-1)[:M]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _chunked(
    z_loss_coef: float,
    hidden_JCD: jax.Array,
    head_DV: jax.Array,
    targets_JC: jax.Array,
    weights_JC: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    def step(total: jax.Array, chunk: tuple) -> tuple[jax.Array, jax.Array]:
        hidden_CD, targets_C, weights_C = chunk
        logits_CV = _logits(hidden_CD, head_DV)
        ce_C, log_partition_C = _cross_entropy(logits_CV, targets_C)
        loss_C = ce_C + z_loss_coef * jnp.square(log_partition_C)
        return total + jnp.sum(weights_C * loss_C), ce_C

    zero = sharding.vary(jnp.zeros((), jnp.float32))
    return jax.lax.scan(step, zero, (hidden_JCD, targets_JC, weights_JC))


def _chunked_forward(
    z_loss_coef: float,
    hidden_JCD: jax.Array,
    head_DV: jax.Array,
    targets_JC: jax.Array,
    weights_JC: jax.Array,
) -> tuple[tuple, tuple]:
    V = head_DV.shape[1]

    def step(carry: tuple, chunk: tuple) -> tuple[tuple, tuple]:
        total, grad_head_DV = carry
        hidden_CD, targets_C, weights_C = chunk
        logits_CV = _logits(hidden_CD, head_DV)
        ce_C, log_partition_C = _cross_entropy(logits_CV, targets_C)
        loss_C = ce_C + z_loss_coef * jnp.square(log_partition_C)
        # d ce / d logits = p - onehot; d z / d logits = 2 logsumexp p.
        probabilities_CV = jnp.exp(logits_CV - log_partition_C[:, None])
        is_target_CV = jnp.arange(V)[None] == targets_C[:, None]
        scale_C = weights_C * (1.0 + 2.0 * z_loss_coef * log_partition_C)
        grad_CV = scale_C[:, None] * probabilities_CV
        grad_CV = jnp.where(is_target_CV, grad_CV - weights_C[:, None], grad_CV)
        grad_CV = grad_CV.astype(hidden_CD.dtype)
        grad_CD = jnp.einsum("CV,DV->CD", grad_CV, head_DV)
        grad_head_DV += jnp.einsum(
            "CD,CV->DV", hidden_CD, grad_CV, preferred_element_type=jnp.float32
        )
        total += jnp.sum(weights_C * loss_C)
        return (total, grad_head_DV), (ce_C, grad_CD)

    start = jnp.zeros((), jnp.float32), jnp.zeros(head_DV.shape, jnp.float32)
    (total, grad_head_DV), (ce_JC, grad_JCD) = jax.lax.scan(
        step, jax.tree.map(sharding.vary, start), (hidden_JCD, targets_JC, weights_JC)
    )
    # The head's own dtype rides along: the backward pass sees residuals, not inputs.
    return (total, ce_JC), (grad_JCD, grad_head_DV, head_DV[:0])


def _chunked_backward(z_loss_coef: float, residuals: tuple, cotangents: tuple) -> tuple:
    del z_loss_coef
    grad_JCD, grad_head_DV, empty_0V = residuals
    scale = cotangents[0]
    grad_hidden = (scale * grad_JCD.astype(jnp.float32)).astype(grad_JCD.dtype)
    return grad_hidden, (scale * grad_head_DV).astype(empty_0V.dtype), None, None


_chunked.defvjp(_chunked_forward, _chunked_backward)


def _logits(hidden_CD: jax.Array, head_DV: jax.Array) -> jax.Array:
    return jnp.einsum(
        "CD,DV->CV", hidden_CD, head_DV, preferred_element_type=jnp.float32
    )


def _cross_entropy(
    logits_CV: jax.Array, targets_C: jax.Array
) -> tuple[jax.Array, jax.Array]:
    log_partition_C = jax.nn.logsumexp(logits_CV, axis=-1)
    target_C = jnp.take_along_axis(logits_CV, targets_C[:, None], axis=1)[:, 0]
    return log_partition_C - target_C, log_partition_C
