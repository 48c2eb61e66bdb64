# SPDX-License-Identifier: Apache-2.0
"""Matrix products of rows that are sorted by group, each group with its own matrix.

    grouped_matmul             out[r, f]    = sum_d x[r, d] w[e(r), d, f]
    grouped_matmul_transposed  out[r, d]    = sum_f x[r, f] w[e(r), d, f]
    grouped_outer              out[e, d, f] = sum_{r of e} x[r, d] y[r, f]

The first `group_sizes[0]` rows belong to group 0, the next `group_sizes[1]` to group 1,
and so on. Rows beyond the sum of the sizes belong to nobody: their outputs and their
gradients are 0, and what they hold, NaN included, reaches nothing. The gradients of
each are the other two, so reverse mode works to any order. Letters: R rows, E groups
(experts), D and F widths.

Inside `jax.shard_map` each device multiplies its own rows by its own matrices.
"""

from types import ModuleType
from typing import Literal

import jax
import jax.numpy as jnp

from pallas_kernels.grouped_matmul import reference, tpu, xla

Implementation = Literal["tpu", "xla", "reference"]

# In order of preference. Each module has the three functions and `unsupported`.
IMPLEMENTATIONS: dict[str, ModuleType] = {
    "tpu": tpu,
    "xla": xla,
    "reference": reference,
}

__all__ = [
    "IMPLEMENTATIONS",
    "Implementation",
    "default_implementation",
    "grouped_matmul",
    "grouped_matmul_transposed",
    "grouped_outer",
    "unsupported",
]


def grouped_matmul(
    x_RD: jax.Array,
    w_EDF: jax.Array,
    group_sizes_E: jax.Array,
    *,
    implementation: str | None = None,
) -> jax.Array:
    """Multiplies each row by the matrix of its group.

    Args:
      x_RD: float[R, D], rows sorted by group.
      w_EDF: float[E, D, F]. It is used in x's dtype, so float32 master weights may be
        passed beside bfloat16 rows without a cast copy of all of them.
      group_sizes_E: int[E], rows of each group, their sum at most R.
      implementation: a key of `IMPLEMENTATIONS`; None takes `default_implementation`.

    Returns:
      [R, F] in x's dtype, accumulated in float32; 0 in rows without a group.

    Raises:
      ValueError: shapes that do not fit, or an unknown implementation.
      NotImplementedError: the named implementation cannot run these inputs.
    """
    _check_matmul("grouped_matmul", x_RD, w_EDF, group_sizes_E, contracted=1)
    module = _module("grouped_matmul", implementation, x_RD, w_EDF)
    return module.grouped_matmul(*_vary_alike(x_RD, w_EDF, group_sizes_E))


def grouped_matmul_transposed(
    x_RF: jax.Array,
    w_EDF: jax.Array,
    group_sizes_E: jax.Array,
    *,
    implementation: str | None = None,
) -> jax.Array:
    """Multiplies each row by the transposed matrix of its group; [R, D].

    As `grouped_matmul`, whose gradient with respect to x it is, without a transposed
    copy of the weights.
    """
    name = "grouped_matmul_transposed"
    _check_matmul(name, x_RF, w_EDF, group_sizes_E, contracted=2)
    module = _module(name, implementation, x_RF, w_EDF)
    return module.grouped_matmul_transposed(*_vary_alike(x_RF, w_EDF, group_sizes_E))


def grouped_outer(
    x_RD: jax.Array,
    y_RF: jax.Array,
    group_sizes_E: jax.Array,
    *,
    implementation: str | None = None,
) -> jax.Array:
    """Sums the outer products of each group's rows: the gradient of the weights.

    Args:
      x_RD: float[R, D], rows sorted by group.
      y_RF: float[R, F], the same rows.
      group_sizes_E: int[E], rows of each group, their sum at most R.
      implementation: a key of `IMPLEMENTATIONS`; None takes `default_implementation`.

    Returns:
      f32[E, D, F]; 0 for a group without rows.

    Raises:
      ValueError: shapes that do not fit, or an unknown implementation.
      NotImplementedError: the named implementation cannot run these inputs.
    """
    shapes = f"x {x_RD.shape}, y {y_RF.shape}, group_sizes {group_sizes_E.shape}"
    if (x_RD.ndim, y_RF.ndim) != (2, 2) or x_RD.shape[0] != y_RF.shape[0]:
        raise ValueError(f"grouped_outer: {shapes}: x [R, D], y [R, F] share R.")
    _check_group_sizes("grouped_outer", group_sizes_E)
    module = _module("grouped_outer", implementation, x_RD, y_RF)
    return module.grouped_outer(*_vary_alike(x_RD, y_RF, group_sizes_E))


def default_implementation(a: jax.Array, b: jax.Array) -> str:
    """Returns the first of `IMPLEMENTATIONS` that can run these two operands."""
    return next(name for name in IMPLEMENTATIONS if not unsupported(name, a, b))


def unsupported(implementation: str, a: jax.Array, b: jax.Array) -> str | None:
    """Returns why an implementation cannot run these two operands; None if it can."""
    return IMPLEMENTATIONS[implementation].unsupported(a, b)


def _module(
    operation: str, implementation: str | None, a: jax.Array, b: jax.Array
) -> ModuleType:
    name = implementation or default_implementation(a, b)
    if name not in IMPLEMENTATIONS:
        raise ValueError(
            f"{operation}: implementation={name!r} must be one of {[*IMPLEMENTATIONS]}."
        )
    if reason := unsupported(name, a, b):
        raise NotImplementedError(f"{operation}: {name} cannot run: {reason}.")
    return IMPLEMENTATIONS[name]


def _check_matmul(
    operation: str,
    x: jax.Array,
    w: jax.Array,
    group_sizes_E: jax.Array,
    *,
    contracted: int,
) -> None:
    shapes = f"x {x.shape}, w {w.shape}, group_sizes {group_sizes_E.shape}"
    if (x.ndim, w.ndim) != (2, 3) or x.shape[1] != w.shape[contracted]:
        raise ValueError(
            f"{operation}: {shapes}: x has rows as wide as dimension {contracted} of w "
            "[E, D, F]."
        )
    _check_group_sizes(operation, group_sizes_E)
    if group_sizes_E.shape[0] != w.shape[0]:
        raise ValueError(f"{operation}: {shapes}: one size for each matrix of w.")


def _check_group_sizes(operation: str, group_sizes_E: jax.Array) -> None:
    is_integer = jnp.issubdtype(group_sizes_E.dtype, jnp.integer)
    if group_sizes_E.ndim != 1 or group_sizes_E.shape[0] == 0 or not is_integer:
        raise ValueError(
            f"{operation}: group_sizes is {group_sizes_E.dtype}{group_sizes_E.shape}; "
            "it must be integers [E] with at least one group."
        )


def _vary_alike(*arrays: jax.Array) -> list[jax.Array]:
    """Marks arrays as varying over every mesh axis that one of them varies over.

    Inside `jax.shard_map` a loop's carry must vary as its results do. The mark's
    transpose sums a gradient over the axes that its array does not vary over.
    """
    varying = [jax.typeof(array).manual_axis_type.varying for array in arrays]
    union = frozenset().union(*varying)
    return [
        jax.lax.pcast(array, tuple(union - own), to="varying") if union - own else array
        for array, own in zip(arrays, varying, strict=True)
    ]
