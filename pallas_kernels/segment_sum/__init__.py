# SPDX-License-Identifier: Apache-2.0
"""Sums of rows that are sorted by the segment they belong to.

    out[m] = sum of rows[r] over ends[m - 1] <= r < ends[m],  ends[-1] = 0

A segment may have no rows; its sum is 0. Rows from the last segment's end on belong to
nobody, and what they hold, NaN included, reaches nothing. Letters: R rows, M segments
(the tokens whose experts' rows these are), D columns.
"""

import functools
from types import ModuleType
from typing import Literal

import jax
import jax.numpy as jnp

from pallas_kernels.choice import log_choice
from pallas_kernels.segment_sum import reference, tpu, xla
from pallas_kernels.segment_sum.segments import segment_of_rows
from pallas_kernels.varying import vary_alike

Implementation = Literal["tpu", "xla", "reference"]

# In order of preference. Each module has `segment_sum` and `unsupported`.
IMPLEMENTATIONS: dict[str, ModuleType] = {
    "tpu": tpu,
    "xla": xla,
    "reference": reference,
}

__all__ = [
    "IMPLEMENTATIONS",
    "Implementation",
    "default_implementation",
    "segment_sum",
    "unsupported",
]


def segment_sum(
    rows_RD: jax.Array,
    ends_M: jax.Array,
    *,
    out_dtype: jax.typing.DTypeLike = jnp.float32,
    implementation: str | None = None,
) -> jax.Array:
    """Sums the rows of each segment in float32.

    A NaN or an infinity in a segment's own row may also reach its neighbours (on TPUs,
    those of the same 128 segments).

    Args:
      rows_RD: float[R, D].
      ends_M: i32[M], the row after each segment's last; they never fall, from at least
        0 to at most R. The first segment begins at row 0, each other one at the end of
        that before it.
      out_dtype: a float type; sums are rounded to it once.
      implementation: a key of `IMPLEMENTATIONS`; None takes `default_implementation`.

    Returns:
      out_dtype[M, D].

    Raises:
      ValueError: shapes or dtypes that do not fit, or an unknown implementation.
      NotImplementedError: the named implementation cannot run these operands.
    """
    _check(rows_RD, ends_M)
    name = implementation or default_implementation(rows_RD)
    if name not in IMPLEMENTATIONS:
        raise ValueError(
            f"segment_sum: implementation={name!r} must be one of {[*IMPLEMENTATIONS]}."
        )
    if reason := unsupported(name, rows_RD):
        raise NotImplementedError(f"segment_sum: {name} cannot run: {reason}.")
    log_choice("segment_sum", name)
    rows_RD, ends_M = vary_alike(rows_RD, ends_M)
    return _sum(name, jnp.dtype(out_dtype), rows_RD, ends_M)


def default_implementation(rows_RD: jax.Array) -> str:
    """Returns the first of `IMPLEMENTATIONS` that can run these rows."""
    return next(name for name in IMPLEMENTATIONS if not unsupported(name, rows_RD))


def unsupported(implementation: str, rows_RD: jax.Array) -> str | None:
    """Returns why an implementation cannot run these rows; None if it can."""
    return IMPLEMENTATIONS[implementation].unsupported(rows_RD)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _sum(
    name: str, out_dtype: jnp.dtype, rows_RD: jax.Array, ends_M: jax.Array
) -> jax.Array:
    if rows_RD.size == 0 or ends_M.size == 0:
        zeros = jnp.zeros((ends_M.size, rows_RD.shape[1]), out_dtype)
        return vary_alike(zeros, rows_RD)[0]
    return IMPLEMENTATIONS[name].segment_sum(rows_RD, ends_M, out_dtype)


def _forward(name, out_dtype, rows_RD, ends_M):
    return _sum(name, out_dtype, rows_RD, ends_M), (rows_RD[:, :0], ends_M)


def _backward(name, out_dtype, residuals, grad_MD):
    del name, out_dtype
    rows_R0, ends_M = residuals
    segment_R = segment_of_rows(ends_M, rows_R0.shape[0])
    # Row M, which is none, fills with zeros.
    grad_RD = grad_MD.at[segment_R].get(mode="fill", fill_value=0)
    return grad_RD.astype(rows_R0.dtype), None


_sum.defvjp(_forward, _backward)


def _check(rows: jax.Array, ends: jax.Array) -> None:
    given = f"rows {rows.dtype}{rows.shape}, ends {ends.dtype}{ends.shape}"
    if (rows.ndim, ends.ndim) != (2, 1):
        raise ValueError(f"segment_sum: {given}: rows are [R, D], ends [M].")
    is_float = jnp.issubdtype(rows.dtype, jnp.floating)
    if not (is_float and jnp.issubdtype(ends.dtype, jnp.integer)):
        raise ValueError(f"segment_sum: {given}: rows are floats, ends are integers.")
