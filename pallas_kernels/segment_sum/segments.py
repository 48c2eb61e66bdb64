# SPDX-License-Identifier: Apache-2.0
"""Whose a row is."""

import jax
import jax.numpy as jnp


def segment_of_rows(ends_M: jax.Array, num_rows: int) -> jax.Array:
    """Returns the segment of each row; i32[R], M for a row of nobody."""
    row_R = jnp.arange(num_rows, dtype=ends_M.dtype)
    segment_R = jnp.searchsorted(ends_M, row_R, side="right", method="sort")
    return segment_R.astype(jnp.int32)
