# SPDX-License-Identifier: Apache-2.0
"""Grouped products as Pallas kernels for TPUs, v5e and newer.

A tile is at most `TILE_ROWS` rows of one group. It starts at the group's own first row,
rounded down to `ROW_ALIGN`, so that no tile is visited for two groups and a tail costs
its own rows, rounded up to `BUCKET_ROWS`:

        rows    0         n0                n0+n1         R
                |--group 0-|-----group 1------|--nobody---|
        tiles   [0     ][0 ]
                          [1     ][1      ][1 ]
                          ^ up to ROW_ALIGN - 1 rows of group 0: not written by tile 1

A product keeps its group's whole matrix in VMEM while the group's rows stream past, and
fetches the matrices of the next two groups meanwhile. A block of `ROW_ALIGN` rows that
two groups share is written once: the earlier tile leaves its rows in `carry`, the later
one adds its own. An outer product accumulates a group's matrix in VMEM in float32 and
writes it while the next group accumulates.

Chips whose two cores are one device split the rows of a product at a multiple of
`ROW_ALIGN`, and the columns of an outer product.

The method, tiles at each group's first row with whole matrices resident, is that of
gmm_v2 in vllm-project/tpu-inference.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels import hardware
from pallas_kernels.grouped_matmul.gradients import with_gradients

TILE_ROWS = 256
BUCKET_ROWS = 32
# A bfloat16 tile of the newest chips; a multiple of the older ones' 8 rows.
ROW_ALIGN = 16
LANES = 128
WEIGHT_BUFFERS = 3
# Shares of a core's VMEM: of the buffers below, and of those and what the compiler adds
# (spills, the product of a tile before it is cast).
VMEM_SHARE = 0.75
VMEM_LIMIT = 0.95


def unsupported(a: jax.Array, b: jax.Array) -> str | None:
    """Returns why the operands cannot run: no TPU, or another dtype."""
    if hardware.target_tpu() is None:
        return "no TPU is there, and none is compiled for"
    for dtype in (a.dtype, b.dtype):
        if dtype not in (jnp.float32, jnp.bfloat16):
            return f"it accumulates in float32, and an operand is {dtype}"
    return None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TilePlan:
    """The tiles of each core, in order of rows; i32, ready for scalar memory.

    J counts tiles; those of core c start at c * J, and its groups at c * E.
    """

    group_J: jax.Array
    """Group of the tile."""
    order_J: jax.Array
    """Which of the core's groups that is, counted from 0."""
    row_J: jax.Array
    """First row, a multiple of `ROW_ALIGN`."""
    begin_J: jax.Array
    """The tile's own rows start here, counted from its first; below `ROW_ALIGN`."""
    end_J: jax.Array
    """And end here; at most `TILE_ROWS`, 0 for the tile of an empty group."""
    group_E: jax.Array
    """The core's groups, those with tiles first, in order."""
    num_tiles: jax.Array
    """[cores]."""
    num_groups: jax.Array
    """[cores]."""
    num_rows: jax.Array
    """[1], rows of anybody."""


def plan_tiles(
    group_sizes_E: jax.Array, *, num_rows: int, num_cores: int, keep_empty: bool
) -> TilePlan:
    """Cuts each group's rows into tiles, as the module describes.

    Args:
      group_sizes_E: int[E].
      num_rows: R.
      num_cores: each gets an equal share of the rows, to a multiple of `ROW_ALIGN`.
      keep_empty: gives a group without rows one tile without rows.
    """
    E = group_sizes_E.shape[0]
    # A group rounds up twice: to whole tiles, and by the rows before its first.
    J = -(-(num_rows + (ROW_ALIGN - 1) * E) // TILE_ROWS) + E
    ends_E = jnp.cumsum(group_sizes_E.astype(jnp.int32))
    total = ends_E[-1]
    share = _round_up(-(-total // num_cores), ROW_ALIGN)

    def plan_core(core: jax.Array) -> TilePlan:
        low, high = core * share, jnp.minimum((core + 1) * share, total)
        begin_E = jnp.clip(ends_E - group_sizes_E, low, high)
        end_E = jnp.clip(ends_E, low, high)
        first_E = _round_down(begin_E, ROW_ALIGN)
        num_tiles_E = -(-(end_E - first_E) // TILE_ROWS)
        num_tiles_E = jnp.where(end_E > begin_E, num_tiles_E, int(keep_empty))
        last_E = jnp.cumsum(num_tiles_E)
        tile_J = jnp.arange(J)
        group_J = jnp.sum(tile_J[:, None] >= last_E[None], axis=1)
        group_J = jnp.minimum(group_J, E - 1)
        number_J = tile_J - (last_E - num_tiles_E)[group_J]
        row_J = first_E[group_J] + number_J * TILE_ROWS
        has_tiles_E = num_tiles_E > 0
        order_E = jnp.cumsum(has_tiles_E) - 1
        return TilePlan(
            group_J=group_J,
            order_J=order_E[group_J],
            row_J=row_J,
            begin_J=jnp.maximum(begin_E[group_J] - row_J, 0),
            end_J=jnp.clip(end_E[group_J] - row_J, 0, TILE_ROWS),
            group_E=jnp.argsort(~has_tiles_E, stable=True),
            num_tiles=last_E[-1:],
            num_groups=jnp.sum(has_tiles_E, keepdims=True),
            num_rows=total[None],
        )

    plan = jax.vmap(plan_core)(jnp.arange(num_cores))
    flat = jax.tree.map(lambda field: field.reshape(-1).astype(jnp.int32), plan)
    return dataclasses.replace(flat, num_rows=flat.num_rows[:1])


def _multiply(
    x_RD: jax.Array, w_EDF: jax.Array, group_sizes_E: jax.Array, *, contracted: int
) -> jax.Array:
    """Multiplies rows by matrices, over dimension `contracted` (0 or 1) of a matrix."""
    tpu = _target()
    R, width_in = x_RD.shape
    width_out = w_EDF.shape[2 - contracted]
    if R == 0:
        return jnp.zeros((0, width_out), x_RD.dtype)
    w_EDF = w_EDF.astype(x_RD.dtype)
    x_RD = jnp.pad(x_RD, ((0, -R % ROW_ALIGN), (0, 0)))
    size = x_RD.dtype.itemsize

    def vmem(tile: int) -> int:
        weights = WEIGHT_BUFFERS * width_in * tile * size
        rows = 2 * TILE_ROWS * (width_in + tile) * size
        return weights + rows + TILE_ROWS * tile * 4

    tile = _width_tile("grouped_matmul", width_out, vmem, tpu)
    plan = plan_tiles(
        group_sizes_E, num_rows=R, num_cores=tpu.num_cores, keep_empty=False
    )
    matrix = (width_in, tile) if contracted == 0 else (tile, width_in)
    fields = jax.tree.leaves(plan)
    out_RF = pl.pallas_call(
        functools.partial(_kernel, _Multiply, contracted=contracted),
        out_shape=_like((x_RD.shape[0], width_out), x_RD.dtype, x_RD),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(fields),
            grid=(tpu.num_cores, width_out // tile),
            in_specs=[pl.BlockSpec(memory_space=pl.ANY)] * 2,
            out_specs=pl.BlockSpec(memory_space=pl.ANY),
            scratch_shapes=[
                pltpu.VMEM((2, TILE_ROWS, width_in), x_RD.dtype),
                pltpu.VMEM((WEIGHT_BUFFERS, *matrix), x_RD.dtype),
                pltpu.VMEM((2, TILE_ROWS, tile), x_RD.dtype),
                pltpu.VMEM((ROW_ALIGN, tile), x_RD.dtype),
                pltpu.SemaphoreType.DMA((2,)),
                pltpu.SemaphoreType.DMA((WEIGHT_BUFFERS,)),
                pltpu.SemaphoreType.DMA((2,)),
            ],
        ),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary"),
            vmem_limit_bytes=int(VMEM_LIMIT * tpu.vmem_bytes),
        ),
        cost_estimate=pl.CostEstimate(
            flops=2 * R * width_in * width_out,
            bytes_accessed=(x_RD.size + w_EDF.size + R * width_out) * size,
            transcendentals=0,
        ),
        name="grouped_matmul" + ("_transposed" if contracted else ""),
    )(*fields, x_RD, w_EDF)
    return out_RF[:R]


@dataclasses.dataclass(frozen=True)
class _Multiply:
    """The kernel of a product: one core's share of the rows, one tile of columns."""

    plan: TilePlan
    """References into scalar memory."""
    x_RD: jax.Ref
    w_EDF: jax.Ref
    out_RF: jax.Ref
    # In VMEM: two tiles of rows, the matrices of three groups, two tiles of results,
    # and the block that a tile shares with the next.
    x_tiles: jax.Ref
    w_tiles: jax.Ref
    out_tiles: jax.Ref
    carry: jax.Ref
    x_done: jax.Ref
    w_done: jax.Ref
    out_done: jax.Ref

    contracted: int

    def run(self) -> None:
        num_tiles = self.plan.num_tiles[self.core]

        @pl.when(num_tiles > 0)
        def _():
            self.read_rows(0).start()
            for order in range(WEIGHT_BUFFERS - 1):
                self.start_matrix(order)
            jax.lax.fori_loop(0, num_tiles, lambda j, _: self.run_tile(j), None)
            self.finish_write(num_tiles - 2)
            self.finish_write(num_tiles - 1)

        @pl.when(self.core == pl.num_programs(0) - 1)
        def _():
            self.zero_free_rows()

    def run_tile(self, j: jax.Array) -> None:
        """Multiplies tile j while the next tiles and matrices are on their way."""
        order = self.field("order_J", j)
        is_first = order != self.field("order_J", jnp.maximum(j - 1, 0))

        @pl.when(j + 1 < self.plan.num_tiles[self.core])
        def _():
            self.read_rows(j + 1).start()

        @pl.when((j == 0) | is_first)
        def _():
            # It takes the buffer of the group before this one, which is done.
            self.start_matrix(order + WEIGHT_BUFFERS - 1)
            self.read_matrix(order).wait()

        self.read_rows(j).wait()
        self.finish_write(j - 2)
        _by_bucket(self.field("end_J", j), functools.partial(self.multiply, j))
        self.save_last_block(j)

        @pl.when(self.num_written(j) > 0)
        def _():
            self.write_rows(j).start()

    def multiply(self, j: jax.Array, rows: int) -> None:
        """Computes the first `rows` rows of tile j, and adds the carried ones."""
        slot, begin, end = _slot(j), self.field("begin_J", j), self.field("end_J", j)
        product = jax.lax.dot_general(
            self.x_tiles[slot, :rows],
            self.w_tiles[jax.lax.rem(self.field("order_J", j), WEIGHT_BUFFERS)],
            (((1,), (self.contracted,)), ((), ())),
            preferred_element_type=jnp.float32,
        )
        row = jax.lax.broadcasted_iota(jnp.int32, product.shape, 0)
        product = jnp.where(row < end, product, 0.0).astype(self.out_tiles.dtype)
        block = slice(ROW_ALIGN)
        shared = jnp.where(row[block] < begin, self.carry[...], product[block])
        self.out_tiles[slot, :rows] = product
        self.out_tiles[slot, block] = shared

    def save_last_block(self, j: jax.Array) -> None:
        """Keeps the block in which a tile ends; no tile needs it if it ends there."""
        last = _round_down(self.field("end_J", j), ROW_ALIGN)
        last = pl.multiple_of(jnp.minimum(last, TILE_ROWS - ROW_ALIGN), ROW_ALIGN)
        self.carry[...] = self.out_tiles[_slot(j), pl.ds(last, ROW_ALIGN)]

    def zero_free_rows(self) -> None:
        """Writes the rows of nobody, which no tile writes."""
        first = _round_up(self.plan.num_rows[0], ROW_ALIGN)
        num_free = self.out_RF.shape[0] - first

        def copy(j: jax.Array):
            count = jnp.minimum(num_free - j * TILE_ROWS, TILE_ROWS)
            return pltpu.make_async_copy(
                self.out_tiles.at[0, _rows(0, count)],
                self.out_RF.at[_rows(first + j * TILE_ROWS, count), self.columns],
                self.out_done.at[0],
            )

        @pl.when(num_free > 0)
        def _():
            self.out_tiles[0] = jnp.zeros_like(self.out_tiles[0])
            num_copies = pl.cdiv(num_free, TILE_ROWS)
            jax.lax.fori_loop(0, num_copies, lambda j, _: copy(j).start(), None)
            jax.lax.fori_loop(0, num_copies, lambda j, _: copy(j).wait(), None)

    def read_rows(self, j):
        rows = _round_up(self.field("end_J", j), ROW_ALIGN)
        return pltpu.make_async_copy(
            self.x_RD.at[_rows(self.field("row_J", j), rows)],
            self.x_tiles.at[_slot(j), _rows(0, rows)],
            self.x_done.at[_slot(j)],
        )

    def start_matrix(self, order) -> None:
        @pl.when(order < self.plan.num_groups[self.core])
        def _():
            self.read_matrix(order).start()

    def read_matrix(self, order):
        slot = jax.lax.rem(order, WEIGHT_BUFFERS)
        matrix = self.w_EDF.at[self.field("group_E", order)]
        own = matrix.at[self.columns] if self.contracted else matrix.at[:, self.columns]
        return pltpu.make_async_copy(own, self.w_tiles.at[slot], self.w_done.at[slot])

    def write_rows(self, j):
        rows = self.num_written(j)
        return pltpu.make_async_copy(
            self.out_tiles.at[_slot(j), _rows(0, rows)],
            self.out_RF.at[_rows(self.field("row_J", j), rows), self.columns],
            self.out_done.at[_slot(j)],
        )

    def finish_write(self, j) -> None:
        """Waits until tile j, which may not exist, has left its buffer."""

        @pl.when(j >= 0)
        def _():
            @pl.when(self.num_written(j) > 0)
            def _():
                self.write_rows(j).wait()

    def num_written(self, j):
        """Rows that tile j writes: the block that it shares waits for the next tile."""
        end = self.field("end_J", j)
        is_last = j == self.plan.num_tiles[self.core] - 1
        return _round_down(jnp.where(is_last, end + ROW_ALIGN - 1, end), ROW_ALIGN)

    def field(self, name: str, index):
        """Reads a field of the plan at an index that counts from the core's first."""
        values = getattr(self.plan, name)
        return values[self.core * (values.shape[0] // pl.num_programs(0)) + index]

    @property
    def core(self):
        return pl.program_id(0)

    @property
    def columns(self):
        tile = self.out_tiles.shape[2]
        return pl.ds(
            pl.multiple_of(pl.program_id(1) * tile, math.gcd(tile, LANES)), tile
        )


def _outer(x_RD: jax.Array, y_RF: jax.Array, group_sizes_E: jax.Array) -> jax.Array:
    """Returns out[e, d, f] = sum over the rows r of e of x[r, d] y[r, f]; f32."""
    tpu = _target()
    (R, D), F, E = x_RD.shape, y_RF.shape[1], group_sizes_E.shape[0]
    if R == 0:
        return jnp.zeros((E, D, F), jnp.float32)
    dtype = jnp.promote_types(x_RD.dtype, y_RF.dtype)
    x_RD, y_RF = (
        jnp.pad(rows.astype(dtype), ((0, -R % ROW_ALIGN), (0, 0)))
        for rows in (x_RD, y_RF)
    )

    def vmem(tile: int) -> int:
        sums = 2 * tile * F * 4
        return sums + 2 * TILE_ROWS * (tile + F) * dtype.itemsize

    tile = _width_tile("grouped_outer", D, vmem, tpu, at_least=tpu.num_cores)
    plan = plan_tiles(group_sizes_E, num_rows=R, num_cores=1, keep_empty=True)
    fields = jax.tree.leaves(plan)
    return pl.pallas_call(
        functools.partial(_kernel, _Outer),
        out_shape=_like((E, D, F), jnp.float32, x_RD),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(fields),
            grid=(D // tile,),
            in_specs=[pl.BlockSpec(memory_space=pl.ANY)] * 2,
            out_specs=pl.BlockSpec(memory_space=pl.ANY),
            scratch_shapes=[
                pltpu.VMEM((2, TILE_ROWS, tile), dtype),
                pltpu.VMEM((2, TILE_ROWS, F), dtype),
                pltpu.VMEM((2, tile, F), jnp.float32),
                pltpu.SemaphoreType.DMA((2, 2)),
                pltpu.SemaphoreType.DMA((2,)),
            ],
        ),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel",),
            vmem_limit_bytes=int(VMEM_LIMIT * tpu.vmem_bytes),
        ),
        cost_estimate=pl.CostEstimate(
            flops=2 * R * D * F,
            bytes_accessed=(x_RD.size + y_RF.size) * dtype.itemsize + 4 * E * D * F,
            transcendentals=0,
        ),
        name="grouped_outer",
    )(*fields, x_RD, y_RF)


@dataclasses.dataclass(frozen=True)
class _Outer:
    """The kernel of an outer product: all groups, one tile of x's columns."""

    plan: TilePlan
    """References into scalar memory; every group has a tile."""
    x_RD: jax.Ref
    y_RF: jax.Ref
    out_EDF: jax.Ref
    # In VMEM: two tiles of rows of each, and the sums of two groups.
    x_tiles: jax.Ref
    y_tiles: jax.Ref
    sums: jax.Ref
    read_done: jax.Ref
    write_done: jax.Ref

    def run(self) -> None:
        num_groups = self.out_EDF.shape[0]
        self.start_reads(0)
        num_tiles = self.plan.num_tiles[0]
        jax.lax.fori_loop(0, num_tiles, lambda j, _: self.run_tile(j), None)
        for group in range(max(0, num_groups - 2), num_groups):
            self.write(group).wait()

    def run_tile(self, j: jax.Array) -> None:
        """Adds tile j to its group's sum, and writes the sum after the last tile."""
        group, end = self.plan.group_J[j], self.plan.end_J[j]
        before, after = self.plan.group_J[jnp.maximum(j - 1, 0)], j + 1
        has_next = after < self.plan.num_tiles[0]

        @pl.when(has_next)
        def _():
            self.start_reads(after)

        @pl.when((j == 0) | (group != before))
        def _():
            @pl.when(group >= 2)
            def _():
                self.write(group - 2).wait()

            self.sums[_slot(group)] = jnp.zeros_like(self.sums[0])

        @pl.when(end > 0)
        def _():
            for copy in self.reads(j):
                copy.wait()
            _by_bucket(end, functools.partial(self.add, j))

        next_group = self.plan.group_J[jnp.where(has_next, after, j)]

        @pl.when(~has_next | (group != next_group))
        def _():
            self.write(group).start()

    def add(self, j: jax.Array, rows: int) -> None:
        """Adds the products of the first `rows` rows of tile j."""
        row = jax.lax.broadcasted_iota(jnp.int32, (rows, 1), 0)
        is_owned = (row >= self.plan.begin_J[j]) & (row < self.plan.end_J[j])
        # Both are masked, as 0 * NaN is NaN.
        x, y = (
            jnp.where(is_owned, tiles[_slot(j), :rows], 0)
            for tiles in (self.x_tiles, self.y_tiles)
        )
        self.sums[_slot(self.plan.group_J[j])] += jax.lax.dot_general(
            x, y, (((0,), (0,)), ((), ())), preferred_element_type=jnp.float32
        )

    def start_reads(self, j) -> None:
        @pl.when(self.plan.end_J[j] > 0)
        def _():
            for copy in self.reads(j):
                copy.start()

    def reads(self, j):
        slot, rows = _slot(j), _round_up(self.plan.end_J[j], ROW_ALIGN)
        at, into = _rows(self.plan.row_J[j], rows), _rows(0, rows)
        return tuple(
            pltpu.make_async_copy(source, tiles.at[slot, into], done.at[slot])
            for source, tiles, done in (
                (self.x_RD.at[at, self.columns], self.x_tiles, self.read_done.at[0]),
                (self.y_RF.at[at], self.y_tiles, self.read_done.at[1]),
            )
        )

    def write(self, group):
        return pltpu.make_async_copy(
            self.sums.at[_slot(group)],
            self.out_EDF.at[group, self.columns],
            self.write_done.at[_slot(group)],
        )

    @property
    def columns(self):
        tile = self.x_tiles.shape[2]
        return pl.ds(
            pl.multiple_of(pl.program_id(0) * tile, math.gcd(tile, LANES)), tile
        )


def _kernel(kernel: type, *refs: Any, **settings: int) -> None:
    """Runs a kernel whose first references are the plan's fields."""
    num_fields = len(dataclasses.fields(TilePlan))
    kernel(TilePlan(*refs[:num_fields]), *refs[num_fields:], **settings).run()


def _slot(number):
    """Returns which of two buffers the item of a number uses."""
    return jax.lax.rem(number, 2)


def _by_bucket(end, run):
    """Calls `run(rows)` for the smallest number of rows that holds a tile's own."""
    sizes = range(BUCKET_ROWS, TILE_ROWS + 1, BUCKET_ROWS)
    branches = [functools.partial(run, size) for size in sizes]
    jax.lax.switch((end - 1) // BUCKET_ROWS, branches)


def _rows(first, count):
    """A slice of rows whose start and size are multiples of `ROW_ALIGN`."""
    return pl.ds(pl.multiple_of(first, ROW_ALIGN), pl.multiple_of(count, ROW_ALIGN))


def _round_up(x, multiple: int):
    return (x + multiple - 1) // multiple * multiple


def _round_down(x, multiple: int):
    return x // multiple * multiple


def _target() -> hardware.Tpu:
    tpu = hardware.target_tpu()
    assert tpu is not None, "`unsupported` lets nothing else through"
    return tpu


def _width_tile(operation, width, vmem, tpu, *, at_least: int = 1) -> int:
    """Returns the widest tile that divides `width` and whose buffers fit into VMEM."""
    budget = int(VMEM_SHARE * tpu.vmem_bytes)
    for count in range(at_least, width // LANES + 1):
        tile = width // count
        if width % count == 0 and tile % LANES == 0 and vmem(tile) <= budget:
            return tile
    if vmem(width) <= budget:
        return width
    raise NotImplementedError(
        f"{operation}: rows of {width} and their buffers take {vmem(width):,} bytes of "
        f"VMEM, {tpu.name} has {budget:,} for them, and {width} has no tile that is a "
        f"multiple of {LANES}; pad the width to one."
    )


def _like(shape, dtype, x: jax.Array) -> jax.ShapeDtypeStruct:
    kind = jax.typeof(x).manual_axis_type
    return jax.ShapeDtypeStruct(shape, dtype, manual_axis_type=kind)


grouped_matmul, grouped_matmul_transposed, grouped_outer = with_gradients(
    functools.partial(_multiply, contracted=0),
    functools.partial(_multiply, contracted=1),
    _outer,
)
