# SPDX-License-Identifier: Apache-2.0
"""Causal attention inside the documents of packed rows, grouped-query.

    out[b, t, n] = sum_s p[s] value[b, s, k],  p = softmax_s(query[b, t, n] key[b, s, k]
                                                             / sqrt(H)),  k = n // G

over the positions s <= t of t's document, which is a run of equal segment ids. Segment
0 is padding: its outputs and its gradients are 0, and what it holds, NaN included,
reaches nothing. Letters: B rows, T positions, N query heads, K key/value heads,
G = N / K, H the width of a head.

Inside `jax.shard_map` each device attends within its own rows; where rows are too long
for one, `context_attention` splits them over a mesh axis.
"""

from types import ModuleType
from typing import Literal

import jax
import jax.numpy as jnp

from pallas_kernels.attention import reference, tpu, xla
from pallas_kernels.attention.context import Context, unzigzag, zigzag
from pallas_kernels.choice import log_choice
from pallas_kernels.varying import vary_alike

Implementation = Literal["tpu", "xla", "reference"]

# In order of preference. Each module has `packed_attention` and `unsupported`.
IMPLEMENTATIONS: dict[str, ModuleType] = {
    "tpu": tpu,
    "xla": xla,
    "reference": reference,
}

__all__ = [
    "IMPLEMENTATIONS",
    "Implementation",
    "context_attention",
    "default_implementation",
    "packed_attention",
    "unsupported",
    "unzigzag",
    "zigzag",
]


def packed_attention(
    query_BTNH: jax.Array,
    key_BTKH: jax.Array,
    value_BTKH: jax.Array,
    segments_BT: jax.Array,
    *,
    implementation: str | None = None,
) -> jax.Array:
    """Attends among the tokens of each document, each to those up to itself.

    Reverse mode works once (but with `reference`, to any order).

    Args:
      query_BTNH: float[B, T, N, H].
      key_BTKH: [B, T, K, H] in query's dtype; N is a multiple of K.
      value_BTKH: like key.
      segments_BT: int[B, T]; 0 is padding.
      implementation: a key of `IMPLEMENTATIONS`; None takes `default_implementation`.

    Returns:
      [B, T, N, H] in query's dtype, softmax and sums in float32; 0 in padding.

    Raises:
      ValueError: shapes or dtypes that do not fit, or an unknown implementation.
      NotImplementedError: the named implementation cannot run these inputs.
    """
    arrays = query_BTNH, key_BTKH, value_BTKH, segments_BT
    return _attend(arrays, Context(), implementation)


def context_attention(
    query_BTNH: jax.Array,
    key_BTKH: jax.Array,
    value_BTKH: jax.Array,
    segments_BT: jax.Array,
    *,
    axis_name: str,
    implementation: str | None = None,
) -> jax.Array:
    """Does what `packed_attention` does, for rows that are split over a mesh axis.

    For the body of `jax.shard_map`. A device has the T tokens of each row that `zigzag`
    gave it. Keys and values of whole rows are gathered in both passes, and the sums of
    their gradients scattered: memory is linear in the row.

    Args:
      query_BTNH: float[B, T, N, H], T even.
      key_BTKH: [B, T, K, H], as for `packed_attention`.
      value_BTKH: like key.
      segments_BT: int[B, T]; documents may reach over any number of parts.
      axis_name: mesh axis over which rows are split; of size 1, this is
        `packed_attention`.
      implementation: a key of `IMPLEMENTATIONS`; None takes `default_implementation`.

    Returns:
      [B, T, N, H], the part of the device.

    Raises:
      ValueError: as `packed_attention`, or T does not make two chunks.
      NotImplementedError: the named implementation cannot run these inputs.
    """
    context = Context(axis_name, jax.lax.axis_size(axis_name))
    if context.num_shards > 1 and query_BTNH.shape[1] % 2:
        raise ValueError(
            f"context_attention: {query_BTNH.shape[1]} positions a device are not the "
            "two chunks of a zigzag part; pad rows to a multiple of twice the devices "
            "that share them."
        )
    arrays = query_BTNH, key_BTKH, value_BTKH, segments_BT
    return _attend(arrays, context, implementation)


def _attend(
    arrays: tuple[jax.Array, ...], context: Context, implementation: str | None
) -> jax.Array:
    _check(*arrays)
    query_BTNH, key_BTKH = arrays[:2]
    key_BSKH = jax.eval_shape(context.row, key_BTKH)
    module = _module(implementation, query_BTNH, key_BSKH)
    if query_BTNH.size == 0:
        return query_BTNH
    query_BTNH, key_BTKH, value_BTKH, segments_BT = vary_alike(*arrays)
    # Weights of unseen keys are 0, but 0 * NaN is NaN; the mask of the output has a
    # transpose that does the same for what comes back.
    is_token_BT11 = (segments_BT != 0)[:, :, None, None]
    query_BTNH, key_BTKH, value_BTKH = (
        jnp.where(is_token_BT11, x, 0) for x in (query_BTNH, key_BTKH, value_BTKH)
    )
    out_BTNH = module.packed_attention(
        query_BTNH, key_BTKH, value_BTKH, segments_BT, context
    )
    return jnp.where(is_token_BT11, out_BTNH, 0)


def default_implementation(query_BTNH: jax.Array, key_BTKH: jax.Array) -> str:
    """Returns the first of `IMPLEMENTATIONS` that can run these operands."""
    return next(
        name for name in IMPLEMENTATIONS if not unsupported(name, query_BTNH, key_BTKH)
    )


def unsupported(
    implementation: str, query_BTNH: jax.Array, key_BTKH: jax.Array
) -> str | None:
    """Returns why an implementation cannot run these operands; None if it can."""
    return IMPLEMENTATIONS[implementation].unsupported(query_BTNH, key_BTKH)


def _module(
    implementation: str | None, query_BTNH: jax.Array, key_BTKH: jax.Array
) -> ModuleType:
    name = implementation or default_implementation(query_BTNH, key_BTKH)
    if name not in IMPLEMENTATIONS:
        raise ValueError(
            f"packed_attention: implementation={name!r} must be one of "
            f"{[*IMPLEMENTATIONS]}."
        )
    if reason := unsupported(name, query_BTNH, key_BTKH):
        raise NotImplementedError(f"packed_attention: {name} cannot run: {reason}.")
    log_choice("packed_attention", name)
    return IMPLEMENTATIONS[name]


def _check(
    query: jax.Array, key: jax.Array, value: jax.Array, segments: jax.Array
) -> None:
    arrays = {"query": query, "key": key, "value": value, "segments": segments}
    given = ", ".join(f"{name} {x.dtype}{x.shape}" for name, x in arrays.items())
    if (
        (query.ndim, key.ndim) != (4, 4)
        or key.shape != value.shape
        or query.shape[:2] != key.shape[:2]
        or query.shape[3] != key.shape[3]
    ):
        raise ValueError(
            f"packed_attention: {given}: query [B, T, N, H], key and value "
            "[B, T, K, H] share B, T and H."
        )
    if key.shape[2] == 0 or query.shape[2] % key.shape[2]:
        raise ValueError(
            f"packed_attention: {given}: each key/value head serves equally many query "
            "heads; make N a multiple of K."
        )
    if not query.dtype == key.dtype == value.dtype:
        raise ValueError(f"packed_attention: {given}: cast all three to one dtype.")
    is_integer = jnp.issubdtype(segments.dtype, jnp.integer)
    if segments.shape != query.shape[:2] or not is_integer:
        raise ValueError(f"packed_attention: {given}: segments are integers [B, T].")
