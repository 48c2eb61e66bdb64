# SPDX-License-Identifier: Apache-2.0
"""Segment sums as a Pallas kernel for TPUs, v5e and newer.

The rows of a tile of 128 segments lie together. They are fetched in chunks, of which
nearly every tile needs one, and multiplied by a matrix of ones and zeros on the matrix
units, which says which row is of which segment:

    rows in HBM      |  tile 0  |  tile 1      | tile 2 |  nobody
    chunks           [  0    ]                            a chunk starts at its tile's
                             [  0    ][1 ]                first row, rounded down to 16;
                                         [ 0    ]         only rows that exist are moved

                      rows 0 1 2 3 4 5 6
          segment 0        1 1 . . . . .    segments end at rows 2, 2, 5, 6: rows'
                  1        . . . . . . .    numbers are compared with these and with
                  2        . . 1 1 1 . .    where each segment begins
                  3        . . . . . 1 .

The products are 0 or the row's own numbers, and are summed in float32: nothing is
rounded before the end. Each row is read once, but for up to 15 before each tile's
first and after its last; each sum is written once. Chips whose two cores are one
device share the tiles.

VMEM, for elements of size s and results of size o:

    slots * C * D * s  +  4 * 128 * D * o  +  128 * D * 4  +  8 * M

Bound by HBM: 2 * 128 * 256 * D operations a tile that reads 192 * D * 2 and writes
128 * D * 2 bytes (1.5 rows a segment, bfloat16) are 102 a byte, and the chips have 166
(v5p) to 560 (v6e).
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels import hardware

TILE = 128
"""Segments of a tile: a register's lanes, as their edges come in lane rows."""
ROW_ALIGN = 16
"""A bfloat16 tile of the newest chips; a multiple of the older ones' 8 rows."""
SLOTS = (8, 4, 2)
"""Chunks in VMEM, in flight but for one: the most that there is room for."""
OUT_SLOTS = 4
MAX_CHUNK = 640
"""Rows; of tiles that have more, chunks are added up."""
NUM_BODIES = 3
"""Of the kernel, for C rows and for 128 and 256 fewer: for what a chunk has."""
# Share of a core's VMEM for what the kernel holds, and with what the compiler adds.
VMEM_SHARE = 0.75
VMEM_LIMIT = 0.95


def unsupported(rows_RD: jax.Array) -> str | None:
    """Returns why rows cannot run: no TPU, another dtype, or too wide."""
    if reason := hardware.why_no_tpu():
        return reason
    if rows_RD.dtype not in (jnp.float32, jnp.bfloat16):
        return f"it accumulates in float32, and rows are {rows_RD.dtype}"
    if _num_slots(MAX_CHUNK, rows_RD, jnp.dtype(jnp.float32)) is None:
        return f"VMEM does not hold two chunks of rows of {rows_RD.shape[1]} columns"
    return None


def segment_sum(
    rows_RD: jax.Array, ends_M: jax.Array, out_dtype: jnp.dtype
) -> jax.Array:
    """Returns out[m] = sum of rows[r] over ends[m - 1] <= r < ends[m]."""
    tpu = hardware.target_tpu()
    assert tpu is not None, "`unsupported` lets nothing else through"
    M, D = ends_M.size, rows_RD.shape[1]
    J = -(-M // TILE)
    rows_RD = jnp.pad(rows_RD, ((0, -rows_RD.shape[0] % ROW_ALIGN), (0, 0)))
    chunk = chunk_rows(rows_RD.shape[0], num_tiles=J)
    slots = _num_slots(chunk, rows_RD, out_dtype)
    assert slots is not None, "`unsupported` lets nothing else through"
    plan, starts_JT, ends_JT = plan_tiles(ends_M, chunk=chunk, num_cores=tpu.num_cores)
    sums_MD = pl.pallas_call(
        _run,
        out_shape=_like((J * TILE, D), out_dtype, rows_RD),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(tpu.num_cores,),
            in_specs=[
                *[pl.BlockSpec(memory_space=pltpu.VMEM)] * 2,
                pl.BlockSpec(memory_space=pl.ANY),
            ],
            out_specs=pl.BlockSpec(memory_space=pl.ANY),
            scratch_shapes=[
                pltpu.VMEM((slots, chunk, D), rows_RD.dtype),
                pltpu.VMEM((TILE, D), jnp.float32),
                pltpu.VMEM((OUT_SLOTS, TILE, D), out_dtype),
                pltpu.SemaphoreType.DMA((slots,)),
                pltpu.SemaphoreType.DMA((OUT_SLOTS,)),
            ],
        ),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel",),
            vmem_limit_bytes=int(VMEM_LIMIT * tpu.vmem_bytes),
        ),
        cost_estimate=pl.CostEstimate(
            flops=2 * J * TILE * chunk * D,
            bytes_accessed=rows_RD.size * rows_RD.dtype.itemsize
            + J * TILE * D * jnp.dtype(out_dtype).itemsize,
            transcendentals=0,
        ),
        name="segment_sum",
    )(plan, starts_JT, ends_JT, rows_RD)
    return sums_MD[:M]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TilePlan:
    """Where the rows of each tile lie; i32, ready for scalar memory."""

    edge_J: jax.Array
    """First row of each tile; one more, the row after the last one's last."""
    num_visits: jax.Array
    """[cores], chunks of each core's tiles; an empty tile has one, too."""


def chunk_rows(num_rows: int, *, num_tiles: int) -> int:
    """Returns C, which holds nearly every tile's rows; a multiple of 128."""
    most = -(-num_rows // num_tiles) + TILE // 2 + ROW_ALIGN
    return min(MAX_CHUNK, -(-most // TILE) * TILE)


def _num_slots(chunk: int, rows_RD: jax.Array, out_dtype: jnp.dtype) -> int | None:
    """Returns how many chunks VMEM holds beside the sums; None: not two."""
    tpu = hardware.target_tpu()
    assert tpu is not None
    D, itemsize = rows_RD.shape[1], rows_RD.dtype.itemsize
    sums = TILE * D * (OUT_SLOTS * out_dtype.itemsize + 4)
    room = VMEM_SHARE * tpu.vmem_bytes - sums
    return next((n for n in SLOTS if n * chunk * D * itemsize <= room), None)


def plan_tiles(
    ends_M: jax.Array, *, chunk: int, num_cores: int
) -> tuple[TilePlan, jax.Array, jax.Array]:
    """Cuts segments into tiles.

    Args:
      ends_M: i32[M].
      chunk: C.
      num_cores: that share the tiles.

    Returns:
      The plan; and of each segment its first row, and the row after its last, i32[J,
      128] each.
    """
    ends_M = jnp.pad(ends_M.astype(jnp.int32), (0, -ends_M.size % TILE), mode="edge")
    starts_JT, ends_JT = (
        edges_M.reshape(-1, TILE) for edges_M in (jnp.pad(ends_M[:-1], (1, 0)), ends_M)
    )
    edge_J = jnp.concatenate([starts_JT[:, 0], ends_JT[-1:, -1]])
    rows_J = edge_J[1:] - _round_down(edge_J[:-1])
    visits_J = jnp.maximum(1, -(-rows_J // chunk))
    share = -(-visits_J.size // num_cores)
    visits_J = jnp.pad(visits_J, (0, share * num_cores - visits_J.size))
    num_visits = jnp.sum(visits_J.reshape(num_cores, share), axis=1)
    return TilePlan(edge_J, num_visits), starts_JT, ends_JT


def _run(*refs: Any) -> None:
    _Sum(*refs).run()


@dataclasses.dataclass(frozen=True)
class _Sum:
    """The kernel of a core: its tiles, one chunk of rows after the other."""

    plan: TilePlan
    """References into scalar memory."""
    # In VMEM, of all segments: 128 to a lane row.
    starts_JT: jax.Ref
    ends_JT: jax.Ref
    # In HBM:
    rows_RD: jax.Ref
    out_MD: jax.Ref
    # In VMEM: chunks, the sums of a tile so far, and those of whole tiles.
    chunks: jax.Ref
    sums_TD: jax.Ref
    out_tiles: jax.Ref
    read_done: jax.Ref
    write_done: jax.Ref

    def run(self) -> None:
        num_tiles = self.starts_JT.shape[0]
        num_cores, core = self.plan.num_visits.shape[0], pl.program_id(0)
        share = -(-num_tiles // num_cores)
        first = jnp.minimum(core * share, num_tiles)
        end = jnp.minimum(first + share, num_tiles)
        num_visits = self.plan.num_visits[core]
        here = ahead = first, _round_down(self.plan.edge_J[first])
        num_ahead = self.chunks.shape[0] - 1
        for i in range(num_ahead):
            self.start_read_if(i < num_visits, i, ahead)
            ahead = self.after(ahead)

        def visit(i: jax.Array, places: tuple) -> tuple:
            here, ahead = places
            self.start_read_if(i + num_ahead < num_visits, i + num_ahead, ahead)
            self.wait_for(self.read(i, here))
            self.add(i, here, num_written=here[0] - first)
            return self.after(here), self.after(ahead)

        jax.lax.fori_loop(0, num_visits, visit, (here, ahead))
        for back in range(OUT_SLOTS):

            @pl.when(end - back > first)
            def _(back=back):
                self.write(end - 1 - back).wait()

    def add(self, i, here, *, num_written) -> None:
        """Adds a chunk to its tile's sums, and writes these after the last one."""
        tile, row = here
        begin, end = self.plan.edge_J[tile], self.plan.edge_J[tile + 1]
        C = self.chunks.shape[1]
        count, fewest = end - row, max(TILE, C - (NUM_BODIES - 1) * TILE)
        for rows in range(fewest, C + 1, TILE):
            is_too_few = (rows > fewest) & (count <= rows - TILE)
            is_too_many = (rows < C) & (count > rows)

            @pl.when(~is_too_few & ~is_too_many)
            def _(rows=rows):
                product_TD = self.product(i, here, rows)
                # The first chunk of a tile begins at most at its first row.
                before_TD = jnp.where(row <= begin, 0, self.sums_TD[...])
                self.sums_TD[...] = product_TD + before_TD

        @pl.when(count <= C)
        def _():
            @pl.when(num_written >= OUT_SLOTS)
            def _():
                self.write(tile - OUT_SLOTS).wait()

            slot = tile & (OUT_SLOTS - 1)
            self.out_tiles[slot] = self.sums_TD[...].astype(self.out_tiles.dtype)
            self.write(tile).start()

    def product(self, i, here, rows: int) -> jax.Array:
        """Returns f32[T, D], the sums of the first so many rows of a chunk."""
        tile, row = here
        row_C1 = row + jax.lax.broadcasted_iota(jnp.int32, (rows, 1), 0)
        is_own_C1 = row_C1 >= self.plan.edge_J[tile]
        is_own_C1 &= row_C1 < self.plan.edge_J[tile + 1]
        # 0 * NaN is NaN: what is in a buffer that nobody of this tile owns is cleared.
        rows_CD = jnp.where(is_own_C1, self.chunks[self.slot(i), :rows], 0)
        is_wide = rows_CD.dtype == jnp.float32
        return jax.lax.dot_general(
            self.owners(tile, row, rows).astype(rows_CD.dtype),
            rows_CD,
            (((1,), (0,)), ((), ())),
            precision=jax.lax.Precision.HIGHEST if is_wide else None,
            preferred_element_type=jnp.float32,
        )

    def owners(self, tile, row, rows: int) -> jax.Array:
        """Returns f32[T, C], 1 where a row of a chunk at `row` is of a segment."""
        start_TT, end_TT = (
            jnp.broadcast_to(edges[pl.ds(tile, 1)], (TILE, TILE)).T
            for edges in (self.starts_JT, self.ends_JT)
        )
        lane_TT = jax.lax.broadcasted_iota(jnp.int32, (TILE, TILE), 1)
        blocks = []
        for first in range(0, rows, TILE):
            row_TT = row + first + lane_TT
            is_own_TT = (row_TT >= start_TT) & (row_TT < end_TT)
            blocks.append(jnp.where(is_own_TT, 1.0, 0.0))
        return jnp.concatenate(blocks, axis=1)

    def after(self, here) -> tuple:
        """Returns the tile and the first row of the chunk that follows."""
        tile, row = here
        # What follows the last one is never fetched.
        end = self.plan.edge_J[jnp.minimum(tile + 1, self.starts_JT.shape[0])]
        row += self.chunks.shape[1]
        is_last = row >= end
        return (
            jnp.where(is_last, tile + 1, tile),
            jnp.where(is_last, _round_down(end), row),
        )

    def start_read_if(self, is_any, i, here) -> None:
        @pl.when(is_any)
        def _():
            count, copy = self.read(i, here)
            pl.when(count > 0)(copy.start)

    def wait_for(self, read) -> None:
        count, copy = read
        pl.when(count > 0)(copy.wait)

    def read(self, i, here) -> tuple:
        """Returns how many rows the chunk of visit i has, and their copy."""
        tile, row = here
        C = self.chunks.shape[1]
        count = jnp.minimum(_round_up(self.plan.edge_J[tile + 1] - row), C)
        slot, count = self.slot(i), pl.multiple_of(count, ROW_ALIGN)
        return count, pltpu.make_async_copy(
            self.rows_RD.at[pl.ds(pl.multiple_of(row, ROW_ALIGN), count)],
            self.chunks.at[slot, pl.ds(0, count)],
            self.read_done.at[slot],
        )

    def slot(self, i):
        return i & (self.chunks.shape[0] - 1)

    def write(self, tile):
        """Copies a tile's sums to HBM."""
        slot = tile & (OUT_SLOTS - 1)
        return pltpu.make_async_copy(
            self.out_tiles.at[slot],
            self.out_MD.at[pl.ds(pl.multiple_of(tile * TILE, TILE), TILE)],
            self.write_done.at[slot],
        )


def _round_up(rows):
    return _round_down(rows + ROW_ALIGN - 1)


def _round_down(rows):
    return rows & -ROW_ALIGN


def _like(shape, dtype, x: jax.Array) -> jax.ShapeDtypeStruct:
    kind = jax.typeof(x).manual_axis_type
    return jax.ShapeDtypeStruct(shape, dtype, manual_axis_type=kind)
