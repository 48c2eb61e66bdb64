# SPDX-License-Identifier: Apache-2.0
"""Grouped products in plain XLA: a loop over tiles of rows, for CPUs and GPUs.

Work in proportion to the routed rows, whatever the number of groups (on a CPU
`jax.lax.ragged_dot` does E times as much). The tiles are found in three steps:

1. A group of n rows takes ceil(n / c) tiles, where c is the largest tile. The first
   starts at the group's first row and each follows the one before, so that every owned
   row lies in exactly one tile.
2. The last tile of a group is cut to the smallest of `TILE_ROWS` that holds what is
   left: shapes are static, so each tile size is a branch, and a tile picks one.
3. A tile that would run past the last row starts earlier instead. Rows of a tile that
   are not its own (of a later group, an earlier one, or nobody) are masked.

        rows    0         n0                n0+n1         R
                |--group 0-|-----group 1------|--nobody---|
        tiles   [0: c  ][0:*]
                           [1: c  ][1: c  ][1:*]               * the smallest that fits

The loop runs once a tile that exists. Its trip count is data, which reverse mode cannot
follow: the gradients are other loops (`gradients.py`).
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint

from pallas_kernels.grouped_matmul.gradients import with_gradients
from pallas_kernels.grouped_matmul.quantization import Quantized, dot

# Row counts of the tiles. Larger than 256 wins nothing: 256 rows already hide the cost
# of fetching a matrix. Steps of 32 compute 8 % more rows than owned at 192 a group.
TILE_ROWS = (8, 16, 32, 64, 96, 128, 160, 192, 224, 256)


def unsupported(a: jax.Array, b: jax.Array) -> str | None:
    """Returns why the operands cannot run here: only float32 and bfloat16 can."""
    for dtype in (a.dtype, b.dtype):
        if dtype not in (jnp.float32, jnp.bfloat16):
            return f"it accumulates in float32, and an operand is {dtype}"
    return None


def _outer(
    x_RD: jax.Array, y_RF: jax.Array, tiles: "TilePlan", dtype: jax.typing.DTypeLike
) -> jax.Array:
    """Returns out[e, d, f] = sum over the rows r of e of x[r, d] y[r, f]."""
    E, (R, D), F = tiles.num_groups, x_RD.shape, y_RF.shape[1]
    branches = [functools.partial(_outer_tile, num_rows=n) for n in tile_rows(R)]

    def add_tile(j: jax.Array, out_EDF: jax.Array) -> jax.Array:
        tile = tiles.at(j)
        tile_DF = jax.lax.switch(tile.branch, branches, x_RD, y_RF, tile)
        sum_DF = tile_DF + _take(out_EDF, tile.group)
        return jax.lax.dynamic_update_index_in_dim(out_EDF, sum_DF, tile.group, axis=0)

    zeros_EDF = _zeros_like((E, D, F), jnp.float32, x_RD)
    sums_EDF = jax.lax.fori_loop(0, tiles.num_tiles, add_tile, zeros_EDF)
    return sums_EDF.astype(dtype)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Tile:
    """A run of rows of one group: i32 scalars, or i32[J] for the J tiles of a plan."""

    group: jax.Array
    first_row: jax.Array
    num_owned: jax.Array
    """Rows from the first that belong to the group."""
    branch: jax.Array
    """Index into `tile_rows` of the smallest tile that holds the owned rows."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TilePlan:
    """All tiles in order of rows; those from `num_tiles` on do not exist."""

    tiles_J: Tile
    num_tiles: jax.Array
    num_groups: int = dataclasses.field(metadata={"static": True})

    def at(self, j: jax.Array) -> Tile:
        """Returns tile j."""
        return jax.tree.map(lambda field_J: field_J[j], self.tiles_J)


def tile_rows(num_rows: int) -> tuple[int, ...]:
    """Returns the sizes of tile that fit into `num_rows` rows, smallest first."""
    return tuple(size for size in TILE_ROWS if size <= num_rows) or (num_rows,)


def plan_rows(
    begin_E: jax.Array, end_E: jax.Array, *, num_rows: int, **_: object
) -> TilePlan:
    """Cuts each group's rows into tiles, as the module describes.

    Args:
      begin_E: i32[E], first row of each group.
      end_E: i32[E], the row after its last.
      num_rows: R.
    """
    E, sizes = begin_E.shape[0], tile_rows(num_rows)
    largest = max(sizes[-1], 1)
    num_tiles_E = -(-(end_E - begin_E) // largest)
    end_tile_E = jnp.cumsum(num_tiles_E)
    # Each group rounds up once, so there are never more than this.
    tile_J = jnp.arange(num_rows // largest + E)
    group_J = jnp.sum(tile_J[:, None] >= end_tile_E[None], axis=1)
    group_J = jnp.minimum(group_J, E - 1)
    # Tiles of the group before this one.
    number_J = tile_J - (end_tile_E - num_tiles_E)[group_J]
    first_row_J = begin_E[group_J] + number_J * largest
    num_owned_J = jnp.minimum(end_E[group_J] - first_row_J, largest)
    branch_J = jnp.sum(num_owned_J[:, None] > jnp.array(sizes[:-1])[None], axis=1)
    tiles_J = Tile(group_J, first_row_J, num_owned_J, branch_J)
    return TilePlan(tiles_J, num_tiles=end_tile_E[-1], num_groups=E)


def _multiply(
    x_RD: jax.Array | Quantized,
    w_EDF: jax.Array | Quantized,
    tiles: TilePlan,
    *,
    contracted: int,
) -> jax.Array:
    """Multiplies rows by matrices, over dimension `contracted` (0 or 1) of a matrix."""
    R = x_RD.shape[0]
    branches = [
        functools.partial(_multiply_tile(contracted), num_rows=n) for n in tile_rows(R)
    ]

    def write_tile(j: jax.Array, out_RF: jax.Array) -> jax.Array:
        tile = tiles.at(j)
        w_DF = jax.tree.map(lambda of_E: _take(of_E, tile.group), w_EDF)
        if not isinstance(w_DF, Quantized):
            w_DF = w_DF.astype(x_RD.dtype)
        return jax.lax.switch(tile.branch, branches, x_RD, w_DF, out_RF, tile)

    zeros_RF = _zeros_like(
        (R, w_EDF.shape[2 - contracted]), x_RD.dtype, jax.tree.leaves(x_RD)[0]
    )
    return jax.lax.fori_loop(0, tiles.num_tiles, write_tile, zeros_RF)


def _multiply_tile(contracted: int) -> Callable[..., jax.Array]:
    def run(x_RD, w_DF, out_RF, tile, *, num_rows):
        start, is_owned_C1 = _place(tile, num_rows, x_RD.shape[0])
        x_CD = jax.tree.map(
            lambda rows: jax.lax.dynamic_slice_in_dim(rows, start, num_rows), x_RD
        )
        old_CF = jax.lax.dynamic_slice_in_dim(out_RF, start, num_rows)
        new_CF = dot(x_CD, w_DF, contracted=contracted).astype(old_CF.dtype)
        new_CF = jnp.where(is_owned_C1, new_CF, old_CF)
        return jax.lax.dynamic_update_slice_in_dim(out_RF, new_CF, start, axis=0)

    return run


def _outer_tile(
    x_RD: jax.Array, y_RF: jax.Array, tile: Tile, *, num_rows: int
) -> jax.Array:
    start, is_owned_C1 = _place(tile, num_rows, x_RD.shape[0])
    # Both are masked, as 0 * NaN is NaN.
    x_CD, y_CF = (
        jnp.where(is_owned_C1, jax.lax.dynamic_slice_in_dim(rows, start, num_rows), 0)
        for rows in (x_RD, y_RF)
    )
    # XLA would fold the transpose into the product, and a CPU has no fast product over
    # the first dimension of both: bfloat16 is then multiplied as float32, at 1.7 times
    # the cost of the whole (Zen 5, 64 x [192, 256] by [192, 352]).
    x_DC = with_layout_constraint(x_CD.T, Layout((0, 1)))
    return jnp.dot(x_DC, y_CF, preferred_element_type=jnp.float32)


def _place(tile: Tile, num_rows: int, num_all_rows: int) -> tuple[jax.Array, jax.Array]:
    """Returns a tile's start, clamped to fit, and bool[C, 1]: which rows it owns."""
    start = jnp.minimum(tile.first_row, num_all_rows - num_rows)
    row_C1 = start + jnp.arange(num_rows)[:, None]
    is_owned_C1 = (row_C1 >= tile.first_row) & (
        row_C1 < tile.first_row + tile.num_owned
    )
    return start, is_owned_C1


def _take(w_EDF: jax.Array, group: jax.Array) -> jax.Array:
    return jax.lax.dynamic_index_in_dim(w_EDF, group, axis=0, keepdims=False)


def _zeros_like(
    shape: tuple[int, ...], dtype: jax.typing.DTypeLike, like: jax.Array
) -> jax.Array:
    """Returns zeros that vary over the mesh axes that `like` varies over."""
    zeros = jnp.zeros(shape, dtype)
    varying = jax.typeof(like).manual_axis_type.varying
    return jax.lax.pcast(zeros, tuple(varying), to="varying") if varying else zeros


grouped_matmul, grouped_matmul_transposed, grouped_outer = with_gradients(
    functools.partial(_multiply, contracted=0),
    functools.partial(_multiply, contracted=1),
    _outer,
)
