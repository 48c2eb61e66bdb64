# SPDX-License-Identifier: Apache-2.0
"""The definition in jnp, at T x T memory a head: what the tests believe."""

import jax
import jax.numpy as jnp


def unsupported(query_BTNH: jax.Array, key_BTKH: jax.Array) -> None:
    """Returns None: the definition takes any arrays."""


def packed_attention(
    query_BTNH: jax.Array,
    key_BTKH: jax.Array,
    value_BTKH: jax.Array,
    segments_BT: jax.Array,
) -> jax.Array:
    """Returns softmax(q k / sqrt(H)) v over the document up to each query."""
    B, T, N, H = query_BTNH.shape
    K = key_BTKH.shape[2]
    query_BTKGH = query_BTNH.reshape(B, T, K, N // K, H)
    scores_BKGTS = _einsum("BTKGH,BSKH->BKGTS", query_BTKGH, key_BTKH) * H**-0.5
    document_BT = jnp.cumsum(jnp.diff(segments_BT, axis=1, prepend=0) != 0, axis=1)
    visible_BTS = document_BT[:, :, None] == document_BT[:, None, :]
    visible_BTS &= jnp.tri(T, dtype=bool)[None]
    scores_BKGTS = jnp.where(visible_BTS[:, None, None], scores_BKGTS, -jnp.inf)
    weights_BKGTS = jax.nn.softmax(scores_BKGTS, axis=-1)
    mixed_BTKGH = _einsum("BKGTS,BSKH->BTKGH", weights_BKGTS, value_BTKH)
    return mixed_BTKGH.reshape(B, T, N, H).astype(query_BTNH.dtype)


def _einsum(equation: str, a: jax.Array, b: jax.Array) -> jax.Array:
    wide = jnp.promote_types(jnp.promote_types(a.dtype, b.dtype), jnp.float32)
    a, b = a.astype(wide), b.astype(wide)
    return jnp.einsum(equation, a, b, precision=jax.lax.Precision.HIGHEST)
