# SPDX-License-Identifier: Apache-2.0
"""The definition in jnp, which looks at all rows for each segment."""

import jax
import jax.numpy as jnp


def unsupported(rows_RD: jax.Array) -> None:
    """Returns None: the definition takes any rows."""


def segment_sum(
    rows_RD: jax.Array, ends_M: jax.Array, out_dtype: jnp.dtype
) -> jax.Array:
    """Returns out[m] = sum of rows[r] over ends[m - 1] <= r < ends[m]."""
    wide = jnp.promote_types(rows_RD.dtype, jnp.float32)
    row_R1 = jnp.arange(rows_RD.shape[0])[:, None]
    starts_M = jnp.pad(ends_M[:-1], (1, 0))

    def sum_of(edges: tuple[jax.Array, jax.Array]) -> jax.Array:
        start, end = edges
        is_own_R1 = (row_R1 >= start) & (row_R1 < end)
        return jnp.sum(jnp.where(is_own_R1, rows_RD, 0), axis=0, dtype=wide)

    return jax.lax.map(sum_of, (starts_M, ends_M)).astype(out_dtype)
