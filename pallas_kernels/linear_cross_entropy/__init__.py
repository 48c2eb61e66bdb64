# SPDX-License-Identifier: Apache-2.0
"""Head, softmax and cross-entropy in one pass that never holds all logits.

    logits[m, v]     = sum_d hidden[m, d] head[d, v]
    log_partition[m] = log sum_v exp logits[m, v]
    log_prob[m]      = logits[m, target[m]] - log_partition[m]
    divergence[m]    = KL(p[m] || softmax(logits[m])), p a second target distribution

`linear_cross_entropy_sum` is what training minimises: the weights of all terms are
known beforehand, so gradients are formed in the forward pass, by three matmuls.
`linear_cross_entropy` is what an objective needs that combines tokens before it weighs
them, such as DPO or a policy gradient: results of each token, differentiable with any
cotangent, by four matmuls. Letters: M tokens, D width, V vocabulary, O outcomes that a
teacher names for a token.

A head that is normalised (norm_head of Baichuan 2) divides channel d of the head by a
norm: scale channel d of `hidden` instead, which is the same product and needs no copy
of the head; the gradient flows through the scale as JAX derives it.

Vocabulary in shards: inside `jax.shard_map`, `axis_name` names the mesh axis over which
V is cut, in order; tokens are the same on all its devices, and so are the results. The
gradient of `hidden` is summed over the axis, the head's is each device's own.
"""

import jax
import jax.numpy as jnp

from pallas_kernels.linear_cross_entropy import xla
from pallas_kernels.linear_cross_entropy.types import (
    Frozen,
    SecondTarget,
    TokenResults,
    TokenWeights,
    TopK,
)

CHUNK_TOKENS = 512

__all__ = [
    "CHUNK_TOKENS",
    "Frozen",
    "SecondTarget",
    "TokenResults",
    "TokenWeights",
    "TopK",
    "linear_cross_entropy",
    "linear_cross_entropy_sum",
]


def linear_cross_entropy(
    hidden_MD: jax.Array,
    head_DV: jax.Array,
    targets_M: jax.Array,
    *,
    second: SecondTarget | None = None,
    chunk_tokens: int = CHUNK_TOKENS,
    axis_name: str | None = None,
) -> TokenResults:
    """Computes the results of each token; keeps a few numbers a token for the backward.

    A token whose cotangents are all 0 has no part in any gradient, even if it holds
    NaN.

    Args:
      hidden_MD: float[M, D].
      head_DV: float[D, V]. It is used in hidden's dtype, products are summed in
        float32; its gradient is summed in float32 and given in its own dtype, so
        float32 master weights lose nothing.
      targets_M: int[M]; one outside [0, V) is no target, its log_prob is NaN.
      second: another distribution to compare with, a `TopK` or a `Frozen`.
      chunk_tokens: tokens whose logits, float32, exist at once, at most.
      axis_name: the mesh axis over which the vocabulary is cut, inside `shard_map`.

    Returns:
      The results, f32[M], differentiable in hidden and head.

    Raises:
      ValueError: shapes or dtypes that do not fit, or tokens or a head that are not
        laid out over `axis_name` as above.
    """
    arrays = _checked("linear_cross_entropy", hidden_MD, head_DV, targets_M, axis_name)
    _check_second("linear_cross_entropy", hidden_MD, head_DV, second)
    _check_chunk("linear_cross_entropy", chunk_tokens)
    return xla.token_results(
        *arrays, second, chunk_tokens=chunk_tokens, axis_name=axis_name
    )


def linear_cross_entropy_sum(
    hidden_MD: jax.Array,
    head_DV: jax.Array,
    targets_M: jax.Array,
    weights: TokenWeights,
    *,
    second: SecondTarget | None = None,
    chunk_tokens: int = CHUNK_TOKENS,
    axis_name: str | None = None,
) -> tuple[jax.Array, TokenResults]:
    """Computes the weighted sum of all tokens' terms, and its gradients with it.

    sum_m  weights.cross_entropy[m] * -log_prob[m] + weights.z_loss[m] *
    log_partition[m]**2 + weights.divergence[m] * divergence[m]. A token whose weights
    are all 0 has no part in the sum nor in any gradient, even if it holds NaN.

    Args:
      hidden_MD: float[M, D].
      head_DV: float[D, V], as for `linear_cross_entropy`.
      targets_M: int[M]; one outside [0, V) must have no weight.
      weights: of the terms; not differentiated.
      second: as for `linear_cross_entropy`.
      chunk_tokens: as for `linear_cross_entropy`.
      axis_name: as for `linear_cross_entropy`.

    Returns:
      The sum, f32[], differentiable in hidden and head, and the results of each token,
      which are not differentiated.

    Raises:
      ValueError: as for `linear_cross_entropy`; weights that do not fit.
    """
    name = "linear_cross_entropy_sum"
    arrays = _checked(name, hidden_MD, head_DV, targets_M, axis_name)
    _check_second(name, hidden_MD, head_DV, second)
    _check_chunk(name, chunk_tokens)
    if (weights.divergence_M is not None) != (second is not None):
        raise ValueError(
            f"{name}: weights.divergence_M and second come together, one is None."
        )
    for field, weight in vars(weights).items():
        if weight is not None and weight.shape != targets_M.shape:
            raise ValueError(
                f"{name}: weights.{field} is {weight.shape}; give one for each of "
                f"{targets_M.shape[0]} tokens."
            )
    total, results = xla.weighted_sum(
        *arrays, weights, second, chunk_tokens=chunk_tokens, axis_name=axis_name
    )
    return total, jax.lax.stop_gradient(results)


def _checked(
    operation: str,
    hidden_MD: jax.Array,
    head_DV: jax.Array,
    targets_M: jax.Array,
    axis_name: str | None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Checks the three arrays, and marks the first two as varying alike."""
    shapes = (
        f"hidden {hidden_MD.shape}, head {head_DV.shape}, targets {targets_M.shape}"
    )
    if (hidden_MD.ndim, head_DV.ndim, targets_M.ndim) != (2, 2, 1):
        raise ValueError(f"{operation}: {shapes} must be [M, D], [D, V] and [M].")
    if hidden_MD.shape != (targets_M.shape[0], head_DV.shape[0]) or not targets_M.size:
        raise ValueError(
            f"{operation}: {shapes}: M (at least 1) and D must agree in [M, D], [D, V] "
            "and [M]."
        )
    if not jnp.issubdtype(targets_M.dtype, jnp.integer):
        raise ValueError(f"{operation}: targets are {targets_M.dtype}; give integers.")
    if axis_name is not None:
        _check_axis(operation, hidden_MD, head_DV, axis_name)
    return *_vary_alike(hidden_MD, head_DV), targets_M


def _check_axis(
    operation: str, hidden_MD: jax.Array, head_DV: jax.Array, axis_name: str
) -> None:
    if jax.lax.axis_size(axis_name) == 1:
        return
    if axis_name not in jax.typeof(head_DV).manual_axis_type.varying:
        raise ValueError(
            f"{operation}: the head is the same on all devices of axis {axis_name!r}; "
            "cut its V over the axis in in_specs, and leave shard_map's check_vma on."
        )
    if axis_name in jax.typeof(hidden_MD).manual_axis_type.varying:
        raise ValueError(
            f"{operation}: hidden differs over axis {axis_name!r}, which cuts the "
            "vocabulary; gather the tokens over it first."
        )


def _check_second(
    operation: str,
    hidden_MD: jax.Array,
    head_DV: jax.Array,
    second: SecondTarget | None,
) -> None:
    M, V = hidden_MD.shape[0], head_DV.shape[1]
    match second:
        case TopK(ids_MO, log_probs_MO):
            shapes = f"ids {ids_MO.shape}, log_probs {log_probs_MO.shape}"
            if ids_MO.ndim != 2 or ids_MO.shape != log_probs_MO.shape:
                raise ValueError(f"{operation}: TopK {shapes} must both be [M, O].")
            if ids_MO.shape[0] != M or not jnp.issubdtype(ids_MO.dtype, jnp.integer):
                raise ValueError(
                    f"{operation}: TopK {shapes} of {ids_MO.dtype} must be integers "
                    f"for M={M} tokens."
                )
        case Frozen(frozen_MD, frozen_DV):
            shapes = f"hidden {frozen_MD.shape}, head {frozen_DV.shape}"
            if frozen_MD.shape != (M, frozen_DV.shape[0]) or frozen_DV.shape[1] != V:
                raise ValueError(
                    f"{operation}: Frozen {shapes} must be [M, D], [D, V] with M={M}, "
                    f"V={V} and a D of its own."
                )


def _check_chunk(operation: str, chunk_tokens: int) -> None:
    if chunk_tokens < 1:
        raise ValueError(f"{operation}: chunk_tokens={chunk_tokens} must be above 0.")


def _vary_alike(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Marks two arrays as varying over every mesh axis that one of them varies over.

    The mark's transpose sums a gradient over the axes that its array does not vary
    over: that of hidden over the vocabulary's, that of the head over the tokens'.
    """
    varying_a, varying_b = (jax.typeof(x).manual_axis_type.varying for x in (a, b))
    return (
        jax.lax.pcast(a, tuple(varying_b - varying_a), to="varying"),
        jax.lax.pcast(b, tuple(varying_a - varying_b), to="varying"),
    )
