# SPDX-License-Identifier: Apache-2.0
"""The definition in jnp, at T x T memory a head: what the tests believe."""

import jax
import jax.numpy as jnp

from pallas_kernels.attention.context import Context


def unsupported(query_BTNH: jax.Array, key_BTKH: jax.Array) -> None:
    """Returns None: the definition takes any arrays."""


def packed_attention(
    query_BTNH: jax.Array,
    key_BTKH: jax.Array,
    value_BTKH: jax.Array,
    segments_BT: jax.Array,
    context: Context,
) -> jax.Array:
    """Returns softmax(q k / sqrt(H)) v over the document up to each query."""
    B, T, N, H = query_BTNH.shape
    K = key_BTKH.shape[2]
    key_BSKH, value_BSKH, segments_BS = map(
        context.row, (key_BTKH, value_BTKH, segments_BT)
    )
    query_BTKGH = query_BTNH.reshape(B, T, K, N // K, H)
    scores_BKGTS = _einsum("BTKGH,BSKH->BKGTS", query_BTKGH, key_BSKH) * H**-0.5
    document_BS = jnp.cumsum(jnp.diff(segments_BS, axis=1, prepend=0) != 0, axis=1)
    document_BT, position_T = context.own(document_BS), context.own_positions(T)
    visible_BTS = document_BT[:, :, None] == document_BS[:, None, :]
    causal_TS = position_T[:, None] >= jnp.arange(document_BS.shape[1])[None]
    visible_BTS &= causal_TS[None]
    scores_BKGTS = jnp.where(visible_BTS[:, None, None], scores_BKGTS, -jnp.inf)
    weights_BKGTS = jax.nn.softmax(scores_BKGTS, axis=-1)
    mixed_BTKGH = _einsum("BKGTS,BSKH->BTKGH", weights_BKGTS, value_BSKH)
    return mixed_BTKGH.reshape(B, T, N, H).astype(query_BTNH.dtype)


def _einsum(equation: str, a: jax.Array, b: jax.Array) -> jax.Array:
    wide = jnp.promote_types(jnp.promote_types(a.dtype, b.dtype), jnp.float32)
    a, b = a.astype(wide), b.astype(wide)
    return jnp.einsum(equation, a, b, precision=jax.lax.Precision.HIGHEST)
