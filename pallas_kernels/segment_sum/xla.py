# SPDX-License-Identifier: Apache-2.0
"""Sums in plain XLA, for CPUs and GPUs: a scatter that adds, of the rows that exist."""

import jax
import jax.numpy as jnp

from pallas_kernels.segment_sum.segments import segment_of_rows
from pallas_kernels.varying import vary_alike


def unsupported(rows_RD: jax.Array) -> None:
    """Returns None: XLA takes any rows. On a TPU it would add one after the other."""


def segment_sum(
    rows_RD: jax.Array, ends_M: jax.Array, out_dtype: jnp.dtype
) -> jax.Array:
    """Returns out[m] = sum of rows[r] over ends[m - 1] <= r < ends[m]."""
    wide = jnp.promote_types(rows_RD.dtype, jnp.float32)
    segment_R = segment_of_rows(ends_M, rows_RD.shape[0])
    zeros = jnp.zeros((ends_M.size, rows_RD.shape[1]), wide)
    (zeros_MD, _) = vary_alike(zeros, rows_RD)
    rows = zeros_MD.at[segment_R]
    sums_MD = rows.add(rows_RD.astype(wide), indices_are_sorted=True, mode="drop")
    return sums_MD.astype(out_dtype)
