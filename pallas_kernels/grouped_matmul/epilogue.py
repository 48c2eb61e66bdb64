# SPDX-License-Identifier: Apache-2.0
"""What becomes of a grouped product's rows before anything is written."""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

type Slices = tuple[jax.Array, ...]


@dataclasses.dataclass(frozen=True)
class Epilogue:
    """A function of each row's float32 product, applied before it is rounded.

    The columns of a product, of an operand and of an output are one or several
    *slices* of equal width F, side by side: gate and up are one array [R, 2F]. `apply`
    works on matching columns of all slices, float32 [C, columns] each, of any C rows
    and any of the F columns; a kernel calls it on what it holds.
    """

    name: str
    apply: Callable[..., tuple[Slices, jax.Array | None]]
    """Takes the product's slices, the operands' and, if `is_weighted`, the weights
    [C, 1]; returns the outputs' slices and, if `sums_columns`, terms [C, columns]."""
    product_slices: int = 1
    operand_slices: tuple[int, ...] = ()
    """Slices of each operand [R, slices * F]."""
    output_slices: tuple[int, ...] = (1,)
    is_weighted: bool = False
    sums_columns: bool = False
    """Whether the terms are summed over the F columns, to f32[R]."""
    num_in_place: int = 0
    """So many outputs, the first ones, take the memory of as many operands: each is as
    wide. A kernel has read a tile of an operand before it writes there."""
    zeroes_free_rows: bool = True
    """Whether rows of nobody must be 0. What only grouped products read need not be:
    they look at no such row, and a kernel leaves it unwritten."""


def _apply_nothing(product_CF: jax.Array) -> tuple[Slices, None]:
    return (product_CF,), None


PLAIN = Epilogue("grouped_matmul", _apply_nothing)


def finish(
    product_RF: jax.Array,
    operands: Sequence[jax.Array],
    row_weights_R: jax.Array | None,
    epilogue: Epilogue,
) -> tuple[tuple[jax.Array, ...], jax.Array | None]:
    """Applies an epilogue to a whole product, for implementations that do not fuse it.

    Returns:
      The outputs [R, slices * F] in the product's dtype, and f32[R] or None.
    """
    slices = _split(product_RF, epilogue.product_slices)
    for operand, count in zip(operands, epilogue.operand_slices, strict=True):
        slices += _split(operand, count)
    weights = [] if row_weights_R is None else [row_weights_R[:, None]]
    results, terms = epilogue.apply(*slices, *weights)
    outputs, results = [], list(results)
    for count in epilogue.output_slices:
        mine, results = results[:count], results[count:]
        outputs.append(jnp.concatenate(mine, axis=1).astype(product_RF.dtype))
    return tuple(outputs), None if terms is None else jnp.sum(terms, axis=1)


def _split(rows: jax.Array, count: int) -> list[jax.Array]:
    return jnp.split(rows.astype(jnp.float32), count, axis=1)
