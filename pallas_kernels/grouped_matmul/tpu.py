# SPDX-License-Identifier: Apache-2.0
"""Grouped products as Pallas kernels for TPUs, v5e and newer.

A tile is at most `tile_rows` rows of one group. It starts at the group's own first row,
rounded down to `ROW_ALIGN`, so that no tile is visited for two groups and a tail costs
its own rows, rounded up to `BUCKET_ROWS` (`tails` may say otherwise):

        rows    0         n0                n0+n1         R
                |--group 0-|-----group 1------|--nobody---|
        tiles   [0     ][0 ]
                          [1     ][1      ][1 ]
                          ^ up to ROW_ALIGN - 1 rows of group 0: not written by tile 1

A product keeps its group's whole matrix in VMEM while the group's rows stream past, and
fetches the matrices of the groups that follow meanwhile. A block of `ROW_ALIGN` rows
that two groups share is written once: the earlier tile leaves its rows in `carries`,
the later one adds its own. What is written may be what an epilogue makes of the product
and of other arrays' rows, which stream past beside x. An outer product accumulates a
group's matrix in VMEM in float32 and writes it while the next group accumulates.

Chips whose two cores are one device split the rows of a product at a multiple of
`ROW_ALIGN`, and the columns of an outer product.

The method, tiles at each group's first row with whole matrices resident, is that of
gmm_v2 in vllm-project/tpu-inference.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels import hardware
from pallas_kernels.grouped_matmul import tiling
from pallas_kernels.grouped_matmul.epilogue import PLAIN, Epilogue
from pallas_kernels.grouped_matmul.gradients import with_gradients
from pallas_kernels.grouped_matmul.quantization import (
    Quantization,
    Quantized,
    rescale,
    sum_dtype,
)
from pallas_kernels.grouped_matmul.tiling import (
    OuterShape,
    ProductShape,
    ProductTiles,
)

type Tails = Literal["own", "whole"]
"""Whether the last tile of a group costs its own rows, or those of whole parts."""

BUCKET_ROWS = 32
# A bfloat16 tile of the newest chips; a multiple of the older ones' 8 rows. Rows of
# 8-bit numbers need more (`row_align`).
ROW_ALIGN = 16
TILE_ROW_BYTES = 32
# The share of a core's VMEM for what tiles take (`tiling.VMEM_SHARE`) and for what the
# compiler adds.
VMEM_LIMIT = 0.95


def unsupported(a: jax.Array, b: jax.Array) -> str | None:
    """Returns why the operands cannot run: no TPU, or another dtype."""
    if reason := hardware.why_no_tpu():
        return reason
    for dtype in (a.dtype, b.dtype):
        if dtype not in (jnp.float32, jnp.bfloat16):
            return f"it accumulates in float32, and an operand is {dtype}"
    return None


def unsupported_quantization(quantization: Quantization) -> str | None:
    """Returns why products cannot be quantised so: what the chip would convert."""
    if reason := hardware.why_no_tpu():
        return reason
    tpu = _target()
    for dtype in quantization.dtypes:
        if dtype not in tpu.eight_bit_types:
            return (
                f"{tpu.name} multiplies {' and '.join(tpu.eight_bit_types)} and would "
                f"convert {dtype}, at no gain; choose one of its own types, or none"
            )
    return None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TilePlan:
    """The tiles of each core, in order of rows; i32, ready for scalar memory.

    J counts tiles; those of core c start at c * J, and its groups at c * E. All
    products of a layer, forward and backward, read one plan.
    """

    group_J: jax.Array
    """Group of the tile."""
    order_J: jax.Array
    """Which of the core's groups that is, counted from 0."""
    row_J: jax.Array
    """First row, a multiple of `row_align`."""
    begin_J: jax.Array
    """The tile's own rows start here, counted from its first; below `row_align`."""
    end_J: jax.Array
    """And end here; at most `tile_rows`."""
    group_E: jax.Array
    """The core's groups, those with tiles first, in order."""
    empty_E: jax.Array
    """All groups, those without rows first; [E]."""
    num_tiles: jax.Array
    """[cores]."""
    num_groups: jax.Array
    """[cores]."""
    num_empty: jax.Array
    """[1], groups without rows."""
    written: jax.Array
    """[2], rows between which the tiles write, multiples of `row_align`."""
    row_align: int = dataclasses.field(metadata={"static": True})
    """Rows of a block: tiles and copies of rows start and end with one."""
    tails: Tails = dataclasses.field(metadata={"static": True})


def row_align(itemsize: int) -> int:
    """Returns how many rows of such elements lie together in memory, at least."""
    return max(ROW_ALIGN, TILE_ROW_BYTES // itemsize)


def plan_rows(
    begin_E: jax.Array,
    end_E: jax.Array,
    *,
    num_rows: int,
    itemsize: int = 2,
    tails: Tails = "own",
) -> TilePlan:
    """Cuts each group's rows into tiles, as the module describes.

    Args:
      begin_E: i32[E], first row of each group.
      end_E: i32[E], the row after its last.
      num_rows: R.
      itemsize: bytes of an element of the rows, or more.
      tails: how many rows a group's last tile computes.
    """
    num_cores, rows = _target().num_cores, tiling.tile_rows(_target())
    align = row_align(itemsize)
    E = begin_E.shape[0]
    # A group rounds up twice: to whole tiles, and by the rows before its first.
    J = -(-(num_rows + (align - 1) * E) // rows) + E
    # Each core gets an equal share, and a block of `row_align` rows is of one core.
    lowest, highest = _round_down(begin_E[0], align), end_E[-1]
    share = _round_up(-(-(highest - lowest) // num_cores), align)

    def plan_core(core: jax.Array) -> dict[str, jax.Array]:
        low = lowest + core * share
        high = jnp.minimum(low + share, highest)
        own_begin_E, own_end_E = (
            jnp.clip(edge, low, high) for edge in (begin_E, end_E)
        )
        first_E = _round_down(own_begin_E, align)
        has_tiles_E = own_end_E > own_begin_E
        num_tiles_E = jnp.where(has_tiles_E, -(-(own_end_E - first_E) // rows), 0)
        last_E = jnp.cumsum(num_tiles_E)
        tile_J = jnp.arange(J)
        group_J = jnp.sum(tile_J[:, None] >= last_E[None], axis=1)
        group_J = jnp.minimum(group_J, E - 1)
        number_J = tile_J - (last_E - num_tiles_E)[group_J]
        row_J = first_E[group_J] + number_J * rows
        return dict(
            group_J=group_J,
            order_J=(jnp.cumsum(has_tiles_E) - 1)[group_J],
            row_J=row_J,
            begin_J=jnp.maximum(own_begin_E[group_J] - row_J, 0),
            end_J=jnp.clip(own_end_E[group_J] - row_J, 0, rows),
            group_E=jnp.argsort(~has_tiles_E, stable=True),
            num_tiles=last_E[-1],
            num_groups=jnp.sum(has_tiles_E),
        )

    has_rows_E = end_E > begin_E
    # Without any row nothing is written, and the two must still meet at a block.
    written_end = jnp.where(highest > begin_E[0], _round_up(highest, align), lowest)
    fields = jax.vmap(plan_core)(jnp.arange(num_cores)) | dict(
        empty_E=jnp.argsort(has_rows_E, stable=True),
        num_empty=jnp.sum(~has_rows_E),
        written=jnp.stack([lowest, written_end]),
    )
    return TilePlan(
        **{name: field.reshape(-1).astype(jnp.int32) for name, field in fields.items()},
        row_align=align,
        tails=tails,
    )


def multiply(
    x_RD: jax.Array | Quantized,
    w_EDF: jax.Array | Quantized,
    plan: TilePlan,
    epilogue: Epilogue = PLAIN,
    *,
    operands: Sequence[jax.Array] = (),
    row_weights_R: jax.Array | None = None,
    contracted: int,
) -> tuple[tuple[jax.Array, ...], jax.Array | None]:
    """Multiplies rows by matrices, and applies an epilogue to each tile's product.

    Args:
      x_RD: [R, width of dimension `contracted` of a matrix].
      w_EDF: [E, D, F], used in x's dtype; quantised if x is.
      plan: of these rows.
      epilogue: what to do with a product before it is rounded.
      operands: [R, slices * width of a slice] each, used in x's dtype.
      row_weights_R: f32[R], if the epilogue is weighted.
      contracted: 0 or 1, the dimension of a matrix that is summed over.

    Returns:
      The epilogue's outputs in x's dtype, and its sums f32[R] or None.
    """
    R, dtype = x_RD.shape[0], x_RD.dtype
    product = _Product(
        epilogue=epilogue,
        contracted=contracted,
        width_in=w_EDF.shape[1 + contracted],
        width=w_EDF.shape[2 - contracted] // epilogue.product_slices,
        num_groups=w_EDF.shape[0],
        dtype=dtype,
        operand_dtype=(x_RD.values if isinstance(x_RD, Quantized) else x_RD).dtype,
        row_align=plan.row_align,
        tails=plan.tails,
        tpu=_target(),
    )
    assert plan.row_align % row_align(product.operand_dtype.itemsize) == 0
    if R == 0:
        widths = [count * product.width for count in epilogue.output_slices]
        empty = tuple(jnp.zeros((0, width), dtype) for width in widths)
        return empty, jnp.zeros(0) if epilogue.sums_columns else None
    x_RD, w_EDF, *scales = _to_operands(x_RD, w_EDF, product)
    x_RD, *operands = (
        jnp.pad(rows, ((0, -R % product.row_align), (0, 0)))
        for rows in (x_RD, *(rows.astype(dtype) for rows in operands))
    )
    lanes = None
    if row_weights_R is not None:
        lanes = _to_lanes(row_weights_R, product.row_align)
    call = product.pallas_call(x_RD, len(jax.tree.leaves(plan)))
    outputs, sums = call(plan, x_RD, w_EDF, tuple(operands), lanes, *scales)
    if sums is not None:
        sums = jnp.sum(sums, axis=0).reshape(-1)[:R]
    return tuple(rows[:R] for rows in outputs), sums


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Product:
    """A product's kernel before it sees its arrays."""

    epilogue: Epilogue
    contracted: int
    width_in: int
    width: int
    """Columns of one slice of the product."""
    num_groups: int
    dtype: jnp.dtype
    """Of the epilogue's operands and results."""
    operand_dtype: jnp.dtype
    """Of the rows and matrices that are multiplied: 8 bits, if they are quantised."""
    row_align: int
    tails: Tails
    tpu: hardware.Tpu

    @functools.cached_property
    def tiles(self) -> ProductTiles:
        """What the kernel holds at once."""
        return tiling.choose_tiles(self.shape, self.tpu)

    @property
    def shape(self) -> ProductShape:
        """What the tiles depend on."""
        return ProductShape(
            kernel=self.name,
            num_groups=self.num_groups,
            width_in=self.width_in,
            width=self.width,
            product_slices=self.epilogue.product_slices,
            slices_read=sum(self.epilogue.operand_slices),
            slices_written=sum(self.epilogue.output_slices),
            itemsize=self.dtype.itemsize,
            operand_itemsize=self.operand_dtype.itemsize,
        )

    @property
    def name(self) -> str:
        """What the compiled program calls the kernel."""
        return self.epilogue.name + ("_transposed" if self.contracted else "")

    @property
    def tile(self) -> int:
        """Columns of each slice that the kernel holds at once."""
        return self.tiles.columns

    @property
    def tile_rows(self) -> int:
        return tiling.tile_rows(self.tpu)

    @property
    def is_quantized(self) -> bool:
        return self.operand_dtype.itemsize == 1

    def pallas_call(self, x_RD: jax.Array, num_scalars: int) -> Callable:
        """Returns the kernel for rows like x and a plan of so many arrays.

        It takes `_multiply_kernel`'s inputs.
        """
        R, epilogue = x_RD.shape[0], self.epilogue
        outputs = [count * self.width for count in epilogue.output_slices]
        streamed = sum(epilogue.operand_slices) * self.width + sum(outputs)
        columns = epilogue.product_slices * self.width
        num_weights = self.num_groups * self.width_in * columns
        in_hbm = pl.BlockSpec(memory_space=pl.ANY)
        lanes = (_num_lane_rows(R), tiling.LANES)
        # All of it: 4 bytes a row.
        in_lanes = pl.BlockSpec(lanes, lambda *_: (0, 0))
        scales = (epilogue.product_slices, self.num_groups, 1, self.tile)
        sums = (self.tpu.num_cores, *lanes)
        return pl.pallas_call(
            functools.partial(_multiply_kernel, product=self),
            out_shape=(
                tuple(_like((R, width), self.dtype, x_RD) for width in outputs),
                _like(sums, jnp.float32, x_RD) if epilogue.sums_columns else None,
            ),
            grid_spec=pltpu.PrefetchScalarGridSpec(
                num_scalar_prefetch=1,
                grid=(self.tpu.num_cores, self.width // self.tile),
                in_specs=[
                    *(in_hbm, in_hbm, (in_hbm,) * len(epilogue.operand_slices)),
                    in_lanes if epilogue.is_weighted else None,
                    in_lanes if self.is_quantized else None,
                    pl.BlockSpec(scales, lambda core, column, *_: (0, 0, 0, column))
                    if self.is_quantized
                    else None,
                ],
                out_specs=(
                    (in_hbm,) * len(outputs),
                    pl.BlockSpec((None, *lanes), lambda core, *_: (core, 0, 0))
                    if epilogue.sums_columns
                    else None,
                ),
                scratch_shapes=self.scratch_shapes(),
            ),
            compiler_params=pltpu.CompilerParams(
                dimension_semantics=("parallel", "arbitrary"),
                vmem_limit_bytes=int(VMEM_LIMIT * self.tpu.vmem_bytes),
                disable_bounds_checks=True,
            ),
            cost_estimate=pl.CostEstimate(
                flops=2 * R * num_weights // self.num_groups,
                bytes_accessed=(x_RD.size + num_weights) * self.operand_dtype.itemsize
                + R * streamed * self.dtype.itemsize,
                transcendentals=0,
            ),
            # The operands follow the plan, x and the matrices.
            input_output_aliases={
                num_scalars + 2 + i: i for i in range(epilogue.num_in_place)
            },
            name=self.name,
        )

    def scratch_shapes(self) -> list[Any]:
        """Returns the buffers that `_multiply_kernel` takes, in its order."""
        held = self.tiles
        columns = self.epilogue.product_slices * self.tile
        matrix = (
            (columns, self.width_in) if self.contracted else (self.width_in, columns)
        )

        def stream(width: int, buffers: int, dtype: jnp.dtype = self.dtype) -> tuple:
            ring = pltpu.VMEM((buffers, self.tile_rows, width), dtype)
            return ring, pltpu.SemaphoreType.DMA((buffers,))

        outputs = [count * self.tile for count in self.epilogue.output_slices]
        return [
            stream(self.width_in, held.row_tiles, self.operand_dtype),
            pltpu.VMEM((held.matrices, *matrix), self.operand_dtype),
            pltpu.SemaphoreType.DMA((held.matrices,)),
            tuple(
                stream(count * self.tile, held.row_tiles)
                for count in self.epilogue.operand_slices
            ),
            tuple(stream(width, held.result_tiles) for width in outputs),
            tuple(pltpu.VMEM((self.row_align, width), self.dtype) for width in outputs),
        ]


def _multiply_kernel(plan, *refs, product: _Product) -> None:
    """Gives each reference its place in `_Multiply`."""
    x, w, operands, row_weights, row_scales, column_scales, *refs = refs
    outputs, sums, *scratch = refs
    x_stream, w_tiles, w_done, operand_streams, output_streams, carries = scratch
    epilogue = product.epilogue
    streams = functools.partial(_streams, align=plan.row_align)
    _Multiply(
        plan=plan,
        product=product,
        x=_Stream(x, *x_stream, slices=1, align=plan.row_align),
        w=w,
        w_tiles=w_tiles,
        w_done=w_done,
        operands=streams(operands, operand_streams, epilogue.operand_slices),
        outputs=streams(outputs, output_streams, epilogue.output_slices),
        carries=carries,
        row_weights=row_weights,
        row_scales=row_scales,
        column_scales=column_scales,
        sums=sums,
    ).run()


@dataclasses.dataclass(frozen=True)
class _Stream:
    """Tiles of an array [R, slices * width], on their way from or to HBM."""

    hbm: jax.Ref
    tiles: jax.Ref
    """[buffers, tile_rows, slices * tile]."""
    done: jax.Ref
    slices: int
    align: int

    def reads(self, j, first, count) -> list:
        """Returns the copies of rows from HBM to tile j's buffer."""
        return [
            pltpu.make_async_copy(hbm, tile, self.done.at[self.slot(j)])
            for hbm, tile in self.ends(j, first, count)
        ]

    def writes(self, j, first, count) -> list:
        """Returns the copies of tile j's buffer to rows in HBM."""
        return [
            pltpu.make_async_copy(tile, hbm, self.done.at[self.slot(j)])
            for hbm, tile in self.ends(j, first, count)
        ]

    def ends(self, j, first, count) -> list[tuple]:
        return [
            (
                self.hbm.at[_rows(first, count, self.align), there],
                self.tiles.at[self.slot(j), _rows(0, count, self.align), here],
            )
            for there, here in _columns(
                self.hbm.shape[1],
                self.tiles.shape[2],
                slices=self.slices,
                program=pl.program_id(1),
            )
        ]

    @property
    def buffers(self) -> int:
        return self.tiles.shape[0]

    def slot(self, j):
        """Returns the buffer of tile j."""
        return j & (self.buffers - 1)


def _streams(refs, buffers, slices, *, align: int) -> list[_Stream]:
    return [
        _Stream(hbm, *pair, slices=count, align=align)
        for hbm, pair, count in zip(refs, buffers, slices, strict=True)
    ]


def _columns(
    width: int, tile: int, *, slices: int, program: jax.Array
) -> list[tuple[pl.Slice, pl.Slice]]:
    """Returns where a program's columns are in HBM, and in a buffer of them."""
    if width == tile:
        return [(pl.ds(0, width), pl.ds(0, width))]
    part, step = tile // slices, width // slices
    aligned = math.gcd(part, step, tiling.LANES)
    return [
        (
            pl.ds(pl.multiple_of(s * step + program * part, aligned), part),
            pl.ds(s * part, part),
        )
        for s in range(slices)
    ]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Multiply:
    """The kernel of a product: one core's share of the rows, one tile of columns."""

    plan: TilePlan
    """References into scalar memory."""
    product: _Product
    x: _Stream
    w: jax.Ref
    w_tiles: jax.Ref
    """In VMEM, the matrices of this group and the next."""
    w_done: jax.Ref
    operands: list[_Stream]
    outputs: list[_Stream]
    carries: Sequence[jax.Ref]
    """In VMEM, the block that a tile shares with the next, of each output."""
    row_weights: jax.Ref | None
    row_scales: jax.Ref | None
    column_scales: jax.Ref | None
    """In VMEM, f32[slices, E, 1, tile]: a group's is found by a leading dimension."""
    sums: jax.Ref | None
    """In VMEM, f32[rows / 128, 128], row by row."""

    def run(self) -> None:
        num_tiles = self.plan.num_tiles[self.core]
        if (sums := self.sums) is not None:

            @pl.when(pl.program_id(1) == 0)
            def _():
                sums[...] = jnp.zeros(sums.shape, jnp.float32)

        @pl.when(num_tiles > 0)
        def _():
            for carry in self.carries:
                carry[...] = jnp.zeros(carry.shape, carry.dtype)
            self.start_reads(0)
            self.start_matrix(0)
            for j in range(1, self.x.buffers - 1):
                self.start_reads_if_any(j)
            jax.lax.fori_loop(0, num_tiles, lambda j, _: self.run_tile(j), None)
            for behind in range(self.outputs[0].buffers, 0, -1):
                self.finish_writes(num_tiles - behind)

        if self.product.epilogue.zeroes_free_rows:

            @pl.when(self.core == pl.num_programs(0) - 1)
            def _():
                self.zero_free_rows()

    def run_tile(self, j: jax.Array) -> None:
        """Multiplies tile j while the next tiles and matrices are on their way."""
        order = self.field("order_J", j)
        is_first = order != self.field("order_J", jnp.maximum(j - 1, 0))

        @pl.when((j == 0) | is_first)
        def _():
            self.start_next_matrices(order)
            for copy in self.read_matrix(order):
                copy.wait()

        for copy in self.reads(j):
            copy.wait()
        self.finish_writes(j - self.outputs[0].buffers)
        self.start_reads_if_any(j + self.x.buffers - 1)
        self.multiply_rows(j)
        self.save_last_blocks(j)

        @pl.when(self.num_written(j) > 0)
        def _():
            for copy in self.writes(j):
                copy.start()

    def multiply_rows(self, j: jax.Array) -> None:
        """Computes tile j by code for a full tile, and for each size of a tail."""
        end, full = self.field("end_J", j), self.product.tile_rows
        if self.product.tails == "whole":
            self.multiply_parts(j, end, [tiling.PART_ROWS])
            return
        is_full = end > full - BUCKET_ROWS

        @pl.when(is_full)
        def _():
            self.multiply(j, 0, full)

        @pl.when(~is_full)
        def _():
            # Of a tile that is one part, what remains is less than a part.
            largest = min(tiling.PART_ROWS, full - BUCKET_ROWS)
            self.multiply_parts(j, end, range(largest, 0, -BUCKET_ROWS))

    def multiply_parts(
        self, j: jax.Array, end: jax.Array, sizes: Sequence[int]
    ) -> None:
        """Computes a tile's parts, each with as few rows of these as hold it."""
        num_parts = self.product.tile_rows // tiling.PART_ROWS

        def run_part(part, _):
            first = part * tiling.PART_ROWS
            rows = jnp.minimum(end - first, tiling.PART_ROWS)
            # The branches are tried in order: of several parts all but one are full.
            branches = [
                functools.partial(self.multiply, j, first, size) for size in sizes
            ]
            number = (sizes[0] - rows) >> (BUCKET_ROWS.bit_length() - 1)
            # One branch is run whatever its number.
            jax.lax.switch(number, branches)

        if num_parts == 1:
            run_part(0, None)
        else:
            jax.lax.fori_loop(
                0, (end + tiling.PART_ROWS - 1) // tiling.PART_ROWS, run_part, None
            )

    def multiply(self, j: jax.Array, first: jax.Array | int, rows: int) -> None:
        """Computes `rows` rows of tile j from `first` on, and adds the carried ones."""
        begin, end = self.field("begin_J", j) - first, self.field("end_J", j) - first
        row = jax.lax.broadcasted_iota(jnp.int32, (rows, 1), 0)
        weights, scales = (
            [] if values is None else [self.of_rows(values, j, first, rows)]
            for values in (self.row_weights, self.row_scales)
        )
        total = jnp.zeros((rows, 1), jnp.float32)
        align = self.product.row_align
        at, block = _rows(first, rows, align), _rows(first, align, align)
        # A few columns after the other: the next are multiplied meanwhile.
        step = self.product.tiles.epilogue_columns
        for column in range(0, self.product.tile, step):
            count = min(step, self.product.tile - column)
            slices = self.multiply_columns(j, at, column, count)
            if scales:
                slices = self.rescale_columns(j, slices, scales[0], column)
            slices += self.operand_columns(j, at, column, count)
            results, terms = self.product.epilogue.apply(*slices, *weights)
            if terms is not None:
                total += jnp.sum(terms, axis=1, keepdims=True)
            for (out, carry, columns), result in zip(
                self.output_columns(column, count), results, strict=True
            ):
                # Selected, not multiplied: rows of others may hold NaN.
                result = jnp.where(row < end, result, 0.0).astype(out.tiles.dtype)
                out.tiles[out.slot(j), at, columns] = result
                out.tiles[out.slot(j), block, columns] = jnp.where(
                    row[:align] < begin, carry[:, columns], result[:align]
                )
        if self.sums is not None:
            total = jnp.where((row >= begin) & (row < end), total, 0.0)
            self.add_sums(j, first, total)

    def multiply_columns(self, j, at: pl.Slice, column: int, count: int) -> list:
        """Returns these columns of the product's slices."""
        matrix = self.w_tiles.at[self.matrix_slot(self.field("order_J", j))]
        dot = functools.partial(
            jax.lax.dot_general,
            self.x.tiles[self.x.slot(j), at],
            dimension_numbers=(((1,), (self.product.contracted,)), ((), ())),
            preferred_element_type=sum_dtype(self.product.operand_dtype),
        )
        slices = []
        for s in range(self.product.epilogue.product_slices):
            columns = pl.ds(s * self.product.tile + column, count)
            where = (columns,) if self.product.contracted else (slice(None), columns)
            slices.append(dot(matrix[where]))
        return slices

    def rescale_columns(self, j, slices: list, scales_C1, column: int) -> list:
        """Returns what columns of a quantised product stand for, f32."""
        assert self.column_scales is not None
        group = self.field("group_J", j)
        return [
            rescale(
                sums,
                scales_C1,
                self.column_scales[s, group, :, pl.ds(column, sums.shape[1])],
            )
            for s, sums in enumerate(slices)
        ]

    def operand_columns(self, j, at: pl.Slice, column: int, count: int) -> list:
        """Returns these columns of the operands' slices, f32."""
        slices = []
        for operand in self.operands:
            for s in range(operand.slices):
                columns = pl.ds(s * self.product.tile + column, count)
                tile = operand.tiles[operand.slot(j), at, columns]
                slices.append(tile.astype(jnp.float32))
        return slices

    def output_columns(self, column: int, count: int) -> list[tuple]:
        """Returns (output, its carry, where these columns are) of each slice."""
        return [
            (out, carry, pl.ds(s * self.product.tile + column, count))
            for out, carry in zip(self.outputs, self.carries, strict=True)
            for s in range(out.slices)
        ]

    def of_rows(self, values: jax.Ref, j, first, rows: int) -> jax.Array:
        """Returns what a tile's rows have one of, f32[rows, 1].

        In HBM they are 128 to a lane row, as an array [R, 1] takes 128 times its size.
        """
        found = jnp.zeros((rows, tiling.LANES), jnp.float32)
        for at, is_here in self.lane_rows(j, first, rows):
            found += jnp.where(is_here, values[at], 0.0)
        return jnp.sum(found, axis=1, keepdims=True)

    def add_sums(self, j, first, sums_C1: jax.Array) -> None:
        """Adds what a tile's rows have to their places in `sums`."""
        assert self.sums is not None
        for at, is_here in self.lane_rows(j, first, sums_C1.shape[0]):
            self.sums[at] += jnp.sum(
                jnp.where(is_here, sums_C1, 0.0), axis=0, keepdims=True
            )

    def lane_rows(self, j, first, rows: int) -> list[tuple[pl.Slice, jax.Array]]:
        """Returns the lane rows that a tile touches, and bool[rows, 128]: who is where.

        Row r of all is in lane r % 128 of lane row r // 128.
        """
        first = self.field("row_J", j) + first
        row = jax.lax.broadcasted_iota(jnp.int32, (rows, tiling.LANES), 0)
        lane = jax.lax.broadcasted_iota(jnp.int32, (rows, tiling.LANES), 1)
        ahead = (first & (tiling.LANES - 1)) + row - lane
        return [
            (pl.ds((first >> 7) + n, 1), ahead == n * tiling.LANES)
            for n in range(_lane_rows_of(rows))
        ]

    def save_last_blocks(self, j: jax.Array) -> None:
        """Keeps the block in which a tile ends; no tile needs it if it ends there."""
        align = self.product.row_align
        last = _round_down(self.field("end_J", j), align)
        last = jnp.minimum(last, self.product.tile_rows - align)
        for out, carry in zip(self.outputs, self.carries, strict=True):
            carry[...] = out.tiles[out.slot(j), _rows(last, align, align)]

    def zero_free_rows(self) -> None:
        """Writes the rows of nobody, before and after those that tiles write."""
        before, after = self.plan.written[0], self.plan.written[1]
        for out in self.outputs:
            num_after = out.hbm.shape[0] - after

            @pl.when((before > 0) | (num_after > 0))
            def _(out=out):
                out.tiles[0] = jnp.zeros_like(out.tiles[0])

            for first, count in ((0, before), (after, num_after)):
                _zero_rows(out, first, count)

    def start_reads(self, j) -> None:
        for copy in self.reads(j):
            copy.start()

    def start_reads_if_any(self, j) -> None:
        @pl.when(j < self.plan.num_tiles[self.core])
        def _():
            self.start_reads(j)

    def reads(self, j) -> list:
        first = self.field("row_J", j)
        rows = _round_up(self.field("end_J", j), self.product.row_align)
        streams = (self.x, *self.operands)
        return [copy for stream in streams for copy in stream.reads(j, first, rows)]

    def start_next_matrices(self, order) -> None:
        """Fetches what may take the buffers of groups before this one.

        Two at a time, until as many as there are buffers are ahead: more at once would
        keep rows waiting behind them.
        """
        buffers = self.product.tiles.matrices
        is_filling = order <= buffers - 3
        self.start_matrix(jnp.where(is_filling, 2 * order + 1, order + buffers - 1))

        @pl.when(is_filling)
        def _():
            self.start_matrix(2 * order + 2)

    def matrix_slot(self, order):
        return order & (self.product.tiles.matrices - 1)

    def start_matrix(self, order) -> None:
        @pl.when(order < self.plan.num_groups[self.core])
        def _():
            for copy in self.read_matrix(order):
                copy.start()

    def read_matrix(self, order) -> list:
        slot = self.matrix_slot(order)
        matrix = self.w.at[self.field("group_E", order)]
        tile = self.w_tiles.at[slot]
        dimension = 1 - self.product.contracted
        pieces = _columns(
            matrix.shape[dimension],
            tile.shape[dimension],
            slices=self.product.epilogue.product_slices,
            program=pl.program_id(1),
        )
        return [
            pltpu.make_async_copy(
                *(
                    (matrix.at[there], tile.at[here])
                    if self.product.contracted
                    else (matrix.at[:, there], tile.at[:, here])
                ),
                self.w_done.at[slot],
            )
            for there, here in pieces
        ]

    def writes(self, j) -> list:
        first, rows = self.field("row_J", j), self.num_written(j)
        return [copy for out in self.outputs for copy in out.writes(j, first, rows)]

    def finish_writes(self, j) -> None:
        """Waits until tile j, which may not exist, has left its buffers."""

        @pl.when(j >= 0)
        def _():
            @pl.when(self.num_written(j) > 0)
            def _():
                for copy in self.writes(j):
                    copy.wait()

    def num_written(self, j):
        """Rows that tile j writes: the block that it shares waits for the next tile."""
        end = self.field("end_J", j)
        is_last = j == self.plan.num_tiles[self.core] - 1
        align = self.product.row_align
        return _round_down(jnp.where(is_last, end + align - 1, end), align)

    def field(self, name: str, index):
        """Reads a field of the plan at an index that counts from the core's first."""
        values = getattr(self.plan, name)
        return values[self.core * (values.shape[0] // pl.num_programs(0)) + index]

    @property
    def core(self):
        return pl.program_id(0)


def _zero_rows(out: _Stream, first, count) -> None:
    """Writes zeros, which are in the stream's first buffer, to `count` rows."""
    tile = out.tiles.shape[1]

    def copies(j: jax.Array) -> list:
        rows = jnp.minimum(count - j * tile, tile)
        return out.writes(0, first + j * tile, rows)

    def start(j, _):
        for copy in copies(j):
            copy.start()

    def wait(j, _):
        for copy in copies(j):
            copy.wait()

    num_copies = pl.cdiv(count, tile)
    jax.lax.fori_loop(0, num_copies, start, None)
    jax.lax.fori_loop(0, num_copies, wait, None)


def _to_operands(
    x_RD: jax.Array | Quantized, w_EDF: jax.Array | Quantized, product: _Product
) -> tuple[jax.Array, jax.Array, jax.Array | None, jax.Array | None]:
    """Returns rows, matrices, and their scales as the kernel wants them."""
    if isinstance(x_RD, Quantized):
        assert isinstance(w_EDF, Quantized)
        slices = product.epilogue.product_slices
        columns = jnp.stack(jnp.split(w_EDF.scales[:, None], slices, axis=2))
        rows = _to_lanes(x_RD.scales, product.row_align)
        return x_RD.values, w_EDF.values, rows, columns
    assert not isinstance(w_EDF, Quantized)
    return x_RD, w_EDF.astype(x_RD.dtype), None, None


def _to_lanes(values_R: jax.Array, align: int) -> jax.Array:
    """Puts a number a row into lane rows of 128, as many as a tile may read."""
    R = values_R.shape[0]
    padding = _num_lane_rows(_round_up(R, align)) * tiling.LANES - R
    values = jnp.pad(values_R.astype(jnp.float32), (0, padding))
    return values.reshape(-1, tiling.LANES)


def _num_lane_rows(num_rows: int) -> int:
    return num_rows // tiling.LANES + _lane_rows_of(2 * tiling.PART_ROWS)


def _lane_rows_of(rows: int) -> int:
    """Returns how many lane rows a tile touches at most; it starts at `ROW_ALIGN`s."""
    return -(-(tiling.LANES - ROW_ALIGN + rows) // tiling.LANES)


def _outer(
    x_RD: jax.Array, y_RF: jax.Array, plan: TilePlan, out_dtype: jax.typing.DTypeLike
) -> jax.Array:
    """Returns out[e, d, f] = sum over the rows r of e of x[r, d] y[r, f]."""
    tpu = _target()
    (R, D), F, E = x_RD.shape, y_RF.shape[1], plan.empty_E.shape[0]
    if R == 0:
        return jnp.zeros((E, D, F), out_dtype)
    dtype = jnp.promote_types(x_RD.dtype, y_RF.dtype)
    x_RD, y_RF = (
        jnp.pad(rows.astype(dtype), ((0, -R % plan.row_align), (0, 0)))
        for rows in (x_RD, y_RF)
    )
    out_bytes = jnp.dtype(out_dtype).itemsize
    shape = OuterShape(
        num_groups=E,
        width_in=D,
        width=F,
        itemsize=dtype.itemsize,
        result_itemsize=out_bytes,
    )
    tiles = tiling.choose_tiles(shape, tpu)
    tile_D, tile_F = tiles.columns_in, tiles.columns
    rows = tiling.tile_rows(tpu)
    step = rows if plan.tails == "whole" else rows // 2
    buffers = tiles.row_tiles
    return pl.pallas_call(
        lambda *refs: _Outer(*refs, step=step).run(),
        out_shape=_like((E, D, F), out_dtype, x_RD),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(D // tile_D * F // tile_F,),
            in_specs=[pl.BlockSpec(memory_space=pl.ANY)] * 2,
            out_specs=pl.BlockSpec(memory_space=pl.ANY),
            scratch_shapes=[
                pltpu.VMEM((buffers, rows, tile_D), dtype),
                pltpu.VMEM((buffers, rows, tile_F), dtype),
                pltpu.VMEM((tile_D, tile_F), jnp.float32),
                pltpu.VMEM((2, tile_D, tile_F), out_dtype),
                pltpu.SemaphoreType.DMA((2, buffers)),
                pltpu.SemaphoreType.DMA((2,)),
            ],
        ),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel",),
            vmem_limit_bytes=int(VMEM_LIMIT * tpu.vmem_bytes),
        ),
        cost_estimate=pl.CostEstimate(
            flops=2 * R * D * F,
            bytes_accessed=(x_RD.size + y_RF.size) * dtype.itemsize
            + E * D * F * out_bytes,
            transcendentals=0,
        ),
        name="grouped_outer",
    )(plan, x_RD, y_RF)


@dataclasses.dataclass(frozen=True)
class _Outer:
    """The kernel of an outer product: all groups, one tile of x's or y's columns.

    It runs through the tiles of all cores, as it splits columns and not rows.
    """

    plan: TilePlan
    """References into scalar memory."""
    x_RD: jax.Ref
    y_RF: jax.Ref
    out_EDF: jax.Ref
    # In VMEM: tiles of rows of each, a group's sums, and two groups' results.
    x_tiles: jax.Ref
    y_tiles: jax.Ref
    sums: jax.Ref
    out_tiles: jax.Ref
    read_done: jax.Ref
    write_done: jax.Ref

    step: int
    """Rows that a last tile is rounded up to: fewer cost as much."""

    def run(self) -> None:
        @pl.when(self.num_tiles > 0)
        def _():
            for n in range(self.x_tiles.shape[0] - 1):
                self.start_reads_if_any(n)
            last = jax.lax.fori_loop(0, self.num_tiles, self.run_tile, -1)

            @pl.when(last > 0)
            def _():
                self.write(last - 1, 0).wait()

            self.write(last, 0).wait()

        self.write_empty_groups()

    def run_tile(self, n: jax.Array, order: jax.Array) -> jax.Array:
        """Adds tile n to its group's sum, and writes that after the last tile.

        Takes and returns which of the groups with rows is being summed.
        """
        group = self.field("group_J", n)
        before = self.field("group_J", jnp.maximum(n - 1, 0))
        after = self.field("group_J", jnp.minimum(n + 1, self.num_tiles - 1))
        is_first = (n == 0) | (group != before)
        is_last = (n == self.num_tiles - 1) | (group != after)
        order = jnp.where(is_first, order + 1, order)
        self.start_reads_if_any(n + self.x_tiles.shape[0] - 1)
        for copy in self.reads(n):
            copy.wait()
        tile = self.x_tiles.shape[1]

        @pl.when(~is_last)
        def _():
            self.sums[...] = self.add(n, is_first, tile)

        @pl.when(is_last)
        def _():
            @pl.when(order >= 2)
            def _():
                self.write(order, group).wait()

            end = self.field("end_J", n)
            for rows in range(self.step, tile + 1, self.step):

                @pl.when((end > rows - self.step) & (end <= rows))
                def _(rows=rows):
                    total = self.add(n, is_first, rows)
                    self.out_tiles[_slot(order)] = total.astype(self.out_tiles.dtype)

            self.write(order, group).start()

        return order

    def add(self, n: jax.Array, is_first: jax.Array, rows: int) -> jax.Array:
        """Returns the group's sum with the first `rows` rows of tile n; f32."""
        row = jax.lax.broadcasted_iota(jnp.int32, (rows, 1), 0)
        is_owned = (row >= self.field("begin_J", n)) & (row < self.field("end_J", n))
        slot = self.slot(n)
        # Both are masked, as 0 * NaN is NaN.
        x, y = (
            jnp.where(is_owned, tiles[slot, :rows], 0)
            for tiles in (self.x_tiles, self.y_tiles)
        )
        product = jax.lax.dot_general(
            x, y, (((0,), (0,)), ((), ())), preferred_element_type=jnp.float32
        )
        return product + jnp.where(is_first, 0.0, self.sums[...])

    def write_empty_groups(self) -> None:
        """Writes the zeros of groups without rows, all from one buffer."""
        num_empty = self.plan.num_empty[0]

        @pl.when(num_empty > 0)
        def _():
            self.out_tiles[0] = jnp.zeros_like(self.out_tiles[0])

        def start(i, _):
            self.write(0, self.plan.empty_E[i]).start()

        def wait(i, _):
            self.write(0, self.plan.empty_E[i]).wait()

        jax.lax.fori_loop(0, num_empty, start, None)
        jax.lax.fori_loop(0, num_empty, wait, None)

    def start_reads_if_any(self, n) -> None:
        @pl.when(n < self.num_tiles)
        def _():
            for copy in self.reads(n):
                copy.start()

    def slot(self, n):
        return n & (self.x_tiles.shape[0] - 1)

    def reads(self, n):
        align = self.plan.row_align
        slot, rows = self.slot(n), _round_up(self.field("end_J", n), align)
        at, into = _rows(self.field("row_J", n), rows, align), _rows(0, rows, align)
        columns_D, columns_F = self.columns
        return tuple(
            pltpu.make_async_copy(source, tiles.at[slot, into], done.at[slot])
            for source, tiles, done in (
                (self.x_RD.at[at, columns_D], self.x_tiles, self.read_done.at[0]),
                (self.y_RF.at[at, columns_F], self.y_tiles, self.read_done.at[1]),
            )
        )

    def write(self, order, group):
        """Copies a result to its group; any group does to wait, as all are as large."""
        return pltpu.make_async_copy(
            self.out_tiles.at[_slot(order)],
            self.out_EDF.at[group, *self.columns],
            self.write_done.at[_slot(order)],
        )

    @property
    def num_tiles(self):
        num_cores = self.plan.num_tiles.shape[0]
        return sum(self.plan.num_tiles[core] for core in range(num_cores))

    def field(self, name: str, n):
        """Reads a field of tile n, counted through all cores."""
        values = getattr(self.plan, name)
        num_cores, index = self.plan.num_tiles.shape[0], n
        for core in range(num_cores - 1):
            before = self.plan.num_tiles[core]
            # Later cores' tiles start after room for as many as a core may have.
            room = values.shape[0] // num_cores - before
            index = jnp.where(n >= before, index + room, index)
            n = n - before
        return values[index]

    @property
    def columns(self) -> tuple[pl.Slice, pl.Slice]:
        """Which columns of x and of y this program multiplies."""
        of_both = []
        for rows, tiles in ((self.x_RD, self.x_tiles), (self.y_RF, self.y_tiles)):
            width, tile = rows.shape[1], tiles.shape[2]
            ((own, _),) = _columns(width, tile, slices=1, program=pl.program_id(0))
            of_both.append(own)
        return tuple(of_both)


def _slot(number):
    """Returns which of two buffers the item of a number uses."""
    return number & 1


def _rows(first, count, align: int):
    """A slice of rows whose start and size are multiples of `align`."""
    first, count = (
        edge if isinstance(edge, int) else pl.multiple_of(edge, align)
        for edge in (first, count)
    )
    return pl.ds(first, count)


def _round_up(x, multiple: int):
    return _round_down(x + multiple - 1, multiple)


def _round_down(x, multiple: int):
    """Rounds to a multiple of a power of two; also what is below 0."""
    return x & -multiple


def _target() -> hardware.Tpu:
    tpu = hardware.target_tpu()
    assert tpu is not None, "`unsupported` lets nothing else through"
    return tpu


def _like(shape, dtype, x: jax.Array) -> jax.ShapeDtypeStruct:
    kind = jax.typeof(x).manual_axis_type
    return jax.ShapeDtypeStruct(shape, dtype, manual_axis_type=kind)


def _multiply_plain(x_RD, w_EDF, plan: TilePlan, *, contracted: int) -> jax.Array:
    (out_RF,), _ = multiply(x_RD, w_EDF, plan, contracted=contracted)
    return out_RF


grouped_matmul, grouped_matmul_transposed, grouped_outer = with_gradients(
    functools.partial(_multiply_plain, contracted=0),
    functools.partial(_multiply_plain, contracted=1),
    _outer,
)
