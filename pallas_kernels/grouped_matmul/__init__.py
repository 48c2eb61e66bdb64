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

A plan of the rows may say that the first two are quantised (`Quantization`).

Inside `jax.shard_map` each device multiplies its own rows by its own matrices.
"""

import dataclasses
import functools
from collections.abc import Sequence
from types import ModuleType
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from pallas_kernels.choice import log_choice
from pallas_kernels.grouped_matmul import reference, tpu, xla
from pallas_kernels.grouped_matmul.epilogue import PLAIN, Epilogue, finish
from pallas_kernels.grouped_matmul.quantization import (
    EIGHT_BIT_TYPES,
    ROUNDINGS,
    Quantization,
)
from pallas_kernels.grouped_matmul.tpu import Tails
from pallas_kernels.varying import vary_alike

Implementation = Literal["tpu", "xla", "reference"]

# In order of preference. Each module has the three functions, `unsupported` and
# `plan_rows`.
IMPLEMENTATIONS: dict[str, ModuleType] = {
    "tpu": tpu,
    "xla": xla,
    "reference": reference,
}

__all__ = [
    "IMPLEMENTATIONS",
    "Groups",
    "Implementation",
    "Quantization",
    "RowPlan",
    "Tails",
    "default_implementation",
    "fused_matmul",
    "grouped_matmul",
    "grouped_matmul_transposed",
    "grouped_outer",
    "plan_rows",
    "resolve_plan",
    "unsupported",
    "unsupported_quantization",
]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RowPlan:
    """Which rows are whose, worked out for one implementation by `plan_rows`."""

    tiles: Any
    """What the implementation made of the sizes."""
    owned: jax.Array
    """i32[2], the first row of anybody and the one after the last."""
    quantization: Quantization | None
    """How products over the rows are quantised; None: they are not."""
    implementation: str = dataclasses.field(metadata={"static": True})
    num_rows: int = dataclasses.field(metadata={"static": True})
    num_groups: int = dataclasses.field(metadata={"static": True})


type Groups = jax.Array | RowPlan


def plan_rows(
    group_sizes_E: jax.Array,
    *,
    num_rows: int,
    implementation: str,
    num_groups: int | None = None,
    group_offset: jax.typing.ArrayLike = 0,
    quantization: Quantization | None = None,
    tails: Tails = "own",
) -> RowPlan:
    """Works out once what all products over the same rows need to know.

    Args:
      group_sizes_E: int[E], rows of each group, in order; their sum at most `num_rows`.
      num_rows: R.
      implementation: a key of `IMPLEMENTATIONS`; it alone can use the plan.
      num_groups: how many of the E groups have their matrices here; None: all.
      group_offset: i32[], the first of them. Rows of the groups before and after
        belong to nobody.
      quantization: of the products over these rows. The plan has it since tiles of
        8-bit rows are cut elsewhere, and all products of a layer share both.
      tails: what a TPU computes for the last rows of a group: those rows, or as many
        as the kernel computes anyway ("whole"). The latter's code is a fraction, for
        programs that hardly ever run.

    Raises:
      ValueError: sizes that are negative or more than the rows, groups that are not
        there, or an unknown choice. Only what is known when the program is traced can
        be checked.
      NotImplementedError: the chip has no such 8-bit products.
    """
    num_groups = group_sizes_E.shape[0] if num_groups is None else num_groups
    _check_group_sizes("plan_rows", group_sizes_E, num_rows)
    _check_window(group_sizes_E.shape[0], num_groups, group_offset)
    _check_name("plan_rows", implementation)
    _check_quantization(implementation, quantization)
    if quantization is not None:
        log_choice(f"products of {quantization.dtype} operands", implementation)
    sizes_E = group_sizes_E.astype(jnp.int32)
    end_E = jnp.cumsum(sizes_E)
    begin_E, end_E = (
        jax.lax.dynamic_slice_in_dim(edge_E, group_offset, num_groups)
        for edge_E in (end_E - sizes_E, end_E)
    )
    module = IMPLEMENTATIONS[implementation]
    itemsize = 2 if quantization is None else 1
    tiles = module.plan_rows(
        begin_E, end_E, num_rows=num_rows, itemsize=itemsize, tails=tails
    )
    owned = jnp.stack([begin_E[0], end_E[-1]])
    return RowPlan(tiles, owned, quantization, implementation, num_rows, num_groups)


def grouped_matmul(
    x_RD: jax.Array,
    w_EDF: jax.Array,
    groups: Groups,
    *,
    implementation: str | None = None,
) -> jax.Array:
    """Multiplies each row by the matrix of its group.

    Args:
      x_RD: float[R, D], rows sorted by group.
      w_EDF: float[E, D, F]. It is used in x's dtype, so float32 master weights may be
        passed beside bfloat16 rows without a cast copy of all of them.
      groups: int[E], rows of each group, their sum at most R; or a plan of them, by
        which the product may be quantised.
      implementation: a key of `IMPLEMENTATIONS`; None takes the plan's, or else
        `default_implementation`.

    Returns:
      [R, F] in x's dtype, accumulated in float32; 0 in rows without a group.

    Raises:
      ValueError: shapes that do not fit, sizes that cannot be, or an unknown
        implementation.
      NotImplementedError: the named implementation cannot run these inputs.
    """
    plan = resolve_plan("grouped_matmul", groups, x_RD, w_EDF, implementation)
    _check_matmul("grouped_matmul", x_RD, w_EDF, plan, contracted=1)
    if plan.quantization is not None:
        return _multiply_quantized(*vary_alike(x_RD, w_EDF, plan), False)
    module = IMPLEMENTATIONS[plan.implementation]
    return module.grouped_matmul(*vary_alike(x_RD, w_EDF, plan.tiles))


def grouped_matmul_transposed(
    x_RF: jax.Array,
    w_EDF: jax.Array,
    groups: Groups,
    *,
    implementation: str | None = None,
) -> jax.Array:
    """Multiplies each row by the transposed matrix of its group; [R, D].

    As `grouped_matmul`, whose gradient with respect to x it is, without a transposed
    copy of the weights. It is quantised if the plan has a `gradient_dtype`.
    """
    name = "grouped_matmul_transposed"
    plan = resolve_plan(name, groups, x_RF, w_EDF, implementation)
    _check_matmul(name, x_RF, w_EDF, plan, contracted=2)
    if plan.quantization is not None and plan.quantization.gradient_dtype is not None:
        return _multiply_quantized(*vary_alike(x_RF, w_EDF, plan), True)
    module = IMPLEMENTATIONS[plan.implementation]
    return module.grouped_matmul_transposed(*vary_alike(x_RF, w_EDF, plan.tiles))


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _multiply_quantized(x, w_EDF, plan, is_transposed):
    """A product by `fused_matmul`, with the gradients of the one that it stands for."""
    (out,), _ = fused_matmul(x, w_EDF, plan, PLAIN, is_transposed=is_transposed)
    return out


def _multiply_quantized_forward(x, w_EDF, plan, is_transposed):
    return _multiply_quantized(x, w_EDF, plan, is_transposed), (x, w_EDF, plan)


def _multiply_quantized_backward(is_transposed, residuals, grad):
    x, w_EDF, plan = residuals
    back = grouped_matmul if is_transposed else grouped_matmul_transposed
    of_w = (grad, x) if is_transposed else (x, grad)
    grad_w_EDF = grouped_outer(*of_w, plan, dtype=w_EDF.dtype)
    return back(grad, w_EDF, plan), grad_w_EDF, None


_multiply_quantized.defvjp(_multiply_quantized_forward, _multiply_quantized_backward)


def grouped_outer(
    x_RD: jax.Array,
    y_RF: jax.Array,
    groups: Groups,
    *,
    dtype: jax.typing.DTypeLike = jnp.float32,
    implementation: str | None = None,
) -> jax.Array:
    """Sums the outer products of each group's rows: the gradient of the weights.

    Args:
      x_RD: float[R, D], rows sorted by group.
      y_RF: float[R, F], the same rows.
      groups: int[E], rows of each group, their sum at most R; or a plan of them.
      dtype: of the result, to which the float32 sums are rounded.
      implementation: a key of `IMPLEMENTATIONS`; None takes the plan's, or else
        `default_implementation`.

    Returns:
      [E, D, F] in `dtype`; 0 for a group without rows.

    Raises:
      ValueError: shapes that do not fit, sizes that cannot be, or an unknown
        implementation.
      NotImplementedError: the named implementation cannot run these inputs.
    """
    if (x_RD.ndim, y_RF.ndim) != (2, 2) or x_RD.shape[0] != y_RF.shape[0]:
        raise ValueError(
            f"grouped_outer: x {x_RD.shape}, y {y_RF.shape}: x [R, D], y [R, F] share "
            "R. Pass the same rows."
        )
    plan = resolve_plan("grouped_outer", groups, x_RD, y_RF, implementation)
    module = IMPLEMENTATIONS[plan.implementation]
    return module.grouped_outer(*vary_alike(x_RD, y_RF, plan.tiles), jnp.dtype(dtype))


def fused_matmul(
    x_RD: jax.Array,
    w_EDF: jax.Array,
    plan: RowPlan,
    epilogue: Epilogue,
    *,
    operands: Sequence[jax.Array] = (),
    row_weights_R: jax.Array | None = None,
    is_transposed: bool = False,
) -> tuple[tuple[jax.Array, ...], jax.Array | None]:
    """Multiplies each row by its group's matrix and applies an epilogue to the product.

    For operations that are made of grouped products and bring their own gradient: this
    has none. On a TPU the epilogue runs inside the kernel, on the float32 product. The
    operands of the product are quantised first, if the plan says so.

    Args:
      x_RD: float[R, D] (or [R, F], if transposed).
      w_EDF: float[E, D, F].
      plan: of these rows.
      epilogue: what to do with the product, and which operands that takes.
      operands: [R, slices * width of a slice] each.
      row_weights_R: f32[R], where the epilogue is weighted.
      is_transposed: multiplies by the transposed matrices.

    Returns:
      The epilogue's outputs in x's dtype, and its sums f32[R] or None.
    """
    resolve_plan(epilogue.name, plan, x_RD, w_EDF, None)
    _check_matmul(epilogue.name, x_RD, w_EDF, plan, contracted=1 + is_transposed)
    arguments = vary_alike(x_RD, w_EDF, plan, tuple(operands), row_weights_R)
    x_RD, w_EDF, plan, operands, row_weights_R = arguments
    pair = x_RD, w_EDF
    if plan.quantization is not None:
        pair = plan.quantization.operands(*pair, contracted=1 + is_transposed)
    if plan.implementation == "tpu":
        return tpu.multiply(
            *pair,
            plan.tiles,
            epilogue,
            operands=operands,
            row_weights_R=row_weights_R,
            contracted=int(is_transposed),
        )
    if row_weights_R is not None:
        # The products of rows of nobody are 0, and 0 * NaN is NaN.
        row_R = jnp.arange(plan.num_rows)
        is_owned_R = (row_R >= plan.owned[0]) & (row_R < plan.owned[1])
        row_weights_R = jnp.where(is_owned_R, row_weights_R, 0)
    module = IMPLEMENTATIONS[plan.implementation]
    multiply = (
        module.grouped_matmul_transposed if is_transposed else module.grouped_matmul
    )
    product_RF = multiply(*pair, plan.tiles)
    return finish(product_RF, operands, row_weights_R, epilogue)


def default_implementation(a: jax.Array, b: jax.Array) -> str:
    """Returns the first of `IMPLEMENTATIONS` that can run these two operands."""
    return next(name for name in IMPLEMENTATIONS if not unsupported(name, a, b))


def unsupported(implementation: str, a: jax.Array, b: jax.Array) -> str | None:
    """Returns why an implementation cannot run these two operands; None if it can."""
    return IMPLEMENTATIONS[implementation].unsupported(a, b)


def unsupported_quantization(
    implementation: str, quantization: Quantization
) -> str | None:
    """Returns why an implementation cannot quantise so; None if it can."""
    if implementation == "tpu":
        return tpu.unsupported_quantization(quantization)
    return None


def resolve_plan(
    operation: str,
    groups: Groups,
    a: jax.Array,
    b: jax.Array,
    implementation: str | None,
) -> RowPlan:
    """Returns the plan given, or makes the one of the sizes given."""
    name = implementation
    if isinstance(groups, RowPlan):
        name = name or groups.implementation
        if (groups.num_rows, groups.implementation) != (a.shape[0], name):
            raise ValueError(
                f"{operation}: the plan is for {groups.num_rows} rows by "
                f"{groups.implementation}, not for {a.shape[0]} by {name}. Make one "
                "with `plan_rows`."
            )
    _check_name(operation, name := name or default_implementation(a, b))
    if reason := unsupported(name, a, b):
        raise NotImplementedError(f"{operation}: {name} cannot run: {reason}.")
    log_choice(operation, name)
    if isinstance(groups, RowPlan):
        return groups
    _check_group_sizes(operation, groups, a.shape[0])
    return plan_rows(groups, num_rows=a.shape[0], implementation=name)


def _check_name(operation: str, name: str) -> None:
    if name not in IMPLEMENTATIONS:
        raise ValueError(
            f"{operation}: implementation={name!r} must be one of {[*IMPLEMENTATIONS]}."
        )


def _check_quantization(implementation: str, quantization: Quantization | None) -> None:
    if quantization is None:
        return
    for dtype in quantization.dtypes:
        if dtype not in EIGHT_BIT_TYPES:
            raise ValueError(
                f"plan_rows: rows cannot be quantised to {dtype!r}; it must be one of "
                f"{[*EIGHT_BIT_TYPES]}."
            )
    if quantization.rounding not in ROUNDINGS:
        raise ValueError(
            f"plan_rows: rounding={quantization.rounding!r} must be one of "
            f"{[*ROUNDINGS]}."
        )
    if (quantization.rounding == "stochastic") != (quantization.key is not None):
        raise ValueError(
            f"plan_rows: rounding={quantization.rounding!r} with "
            f"{'a' if quantization.key is not None else 'no'} key: stochastic rounding "
            "needs a key, and only that one does. Pass `key`, or leave it out."
        )
    if reason := unsupported_quantization(implementation, quantization):
        raise NotImplementedError(f"plan_rows: {reason}.")


def _check_matmul(
    operation: str, x: jax.Array, w: jax.Array, plan: RowPlan, *, contracted: int
) -> None:
    if (x.ndim, w.ndim) != (2, 3) or x.shape[1] != w.shape[contracted]:
        raise ValueError(
            f"{operation}: x {x.shape}, w {w.shape}: x has rows as wide as dimension "
            f"{contracted} of w [E, D, F]."
        )
    if plan.num_groups != w.shape[0]:
        raise ValueError(
            f"{operation}: {plan.num_groups} group sizes, w {w.shape}: one size for "
            "each matrix of w. `plan_rows` takes `num_groups` of them, from an offset."
        )


def _check_group_sizes(operation: str, group_sizes_E: jax.Array, num_rows: int) -> None:
    is_integer = jnp.issubdtype(group_sizes_E.dtype, jnp.integer)
    if group_sizes_E.ndim != 1 or group_sizes_E.shape[0] == 0 or not is_integer:
        raise ValueError(
            f"{operation}: group_sizes is {group_sizes_E.dtype}{group_sizes_E.shape}; "
            "it must be integers [E] with at least one group."
        )
    if isinstance(group_sizes_E, Tracer):
        return
    sizes_E = np.asarray(group_sizes_E)
    if sizes_E.min() < 0 or sizes_E.sum() > num_rows:
        raise ValueError(
            f"{operation}: group_sizes {sizes_E.tolist()} of {num_rows} rows: none may "
            "be negative, nor their sum above the rows. Count the rows of each group."
        )


def _check_window(
    num_all: int, num_groups: int, group_offset: jax.typing.ArrayLike
) -> None:
    is_known = not isinstance(group_offset, Tracer)
    offset = int(np.asarray(group_offset)) if is_known else 0
    if not (offset >= 0 and 1 <= num_groups <= num_all - offset):
        raise ValueError(
            f"plan_rows: {num_groups} groups from group {offset} on are not within the "
            f"{num_all} that have sizes. Pass the sizes of all groups."
        )
