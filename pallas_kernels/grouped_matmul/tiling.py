# SPDX-License-Identifier: Apache-2.0
"""How much of its arrays a TPU kernel holds at once: tuned ahead of time, or computed.

`tiles.json` has what `pallas_kernels/expert_mlp/tune.py` found fastest for the kernels
of known models on each chip. A shape that it lacks gets computed tiles, and a log line.
"""

import contextlib
import contextvars
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pallas_kernels import hardware
from pallas_kernels.choice import log_once

PATH = Path(__file__).with_name("tiles.json")
# A tile is one part, or two on chips whose matrix units are twice as wide: there a full
# tile costs less than its two halves.
PART_ROWS = 256
LANES = 128
# The share of a core's VMEM for what is held; the compiler adds to that (spills, the
# product of a tile before it is cast).
VMEM_SHARE = 0.75


def tile_rows(tpu: hardware.Tpu) -> int:
    """Returns how many rows a full tile has."""
    return PART_ROWS * tpu.matrix_unit_width // LANES


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProductTiles:
    """What a product's kernel holds in VMEM; rings have a power of two of buffers."""

    columns: int
    """Of each slice of the product, of the epilogue's operands and of its outputs."""
    matrices: int
    row_tiles: int
    """Buffers for x, and for the epilogue's operands."""
    result_tiles: int
    epilogue_columns: int = 256
    """An epilogue works on as many columns of each slice at once."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class OuterTiles:
    """What an outer product's kernel holds in VMEM."""

    columns_in: int
    """Of x: rows of the matrix that is summed."""
    columns: int
    """Of y: columns of that matrix."""
    row_tiles: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProductShape:
    """All that decides what a product's kernel takes; sizes in elements."""

    kernel: str
    num_groups: int
    width_in: int
    """Of x, over which is summed."""
    width: int
    """Columns of one slice of the product."""
    product_slices: int = 1
    slices_read: int = 0
    """Of the epilogue's operands."""
    slices_written: int = 1
    itemsize: int = 2
    """Bytes of an element of the epilogue's operands and of its outputs."""
    operand_itemsize: int = 2
    """Bytes of an element of what is multiplied: 1, if it is quantised."""

    def vmem_bytes(self, tiles: ProductTiles, tpu: hardware.Tpu) -> int:
        """Returns what the buffers take, and an epilogue's float32 values."""
        columns = self.product_slices * tiles.columns
        rows = tile_rows(tpu)
        operands = tiles.matrices * columns + rows * tiles.row_tiles
        others = tiles.columns * (
            tiles.row_tiles * self.slices_read
            + tiles.result_tiles * self.slices_written
        )
        num_slices = self.product_slices + self.slices_read + self.slices_written
        values = rows * num_slices * min(tiles.columns, tiles.epilogue_columns)
        if self.operand_itemsize == 1:
            # The columns' scales, in two buffers.
            values += 2 * self.num_groups * columns
        return (
            operands * self.width_in * self.operand_itemsize
            + rows * others * self.itemsize
            + values * 4
        )

    def candidates(self, tpu: hardware.Tpu) -> Iterator[ProductTiles]:
        """Yields tiles in order of preference: the most columns, the longest rings."""
        del tpu
        rings = (8, 8, 8), (4, 8, 8), (4, 4, 4), (2, 8, 8), (2, 4, 4), (2, 4, 2)
        for count in range(1, max(1, self.width // LANES) + 1):
            columns = self.width // count
            for matrices, row_tiles, result_tiles in rings:
                yield ProductTiles(
                    columns=columns,
                    matrices=matrices,
                    row_tiles=row_tiles,
                    result_tiles=result_tiles,
                )

    def misfit(self, tiles: ProductTiles, tpu: hardware.Tpu) -> str | None:
        """Returns why the kernel cannot run with these tiles; None if it can."""
        del tpu
        rings = ("matrices", "row_tiles", "result_tiles")
        return (
            _misfit_of_rings({name: getattr(tiles, name) for name in rings})
            or _misfit_of_columns("columns", tiles.columns, self.width)
            or _misfit_of_columns("epilogue_columns", tiles.epilogue_columns, None)
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class OuterShape:
    """All that decides what an outer product's kernel takes; sizes in elements."""

    kernel: str = "grouped_outer"
    num_groups: int
    width_in: int
    """Of x."""
    width: int
    """Of y."""
    itemsize: int = 2
    """Bytes of an element of x and y."""
    result_itemsize: int = 2

    def vmem_bytes(self, tiles: OuterTiles, tpu: hardware.Tpu) -> int:
        """Returns what a group's sums, two results and the buffers of rows take."""
        sums = tiles.columns_in * tiles.columns * (4 + 2 * self.result_itemsize)
        widths = tiles.columns_in + tiles.columns
        return sums + tiles.row_tiles * tile_rows(tpu) * widths * self.itemsize

    def candidates(self, tpu: hardware.Tpu) -> Iterator[OuterTiles]:
        """Yields tiles in order of preference: the largest that leave no core idle.

        They are all of one width, and a part of the other.
        """
        most = max(self.width_in, self.width) // LANES
        row_tiles = 8 * PART_ROWS // tile_rows(tpu)
        for count in (*range(tpu.num_cores, most + 1), 1):
            for columns_in, columns in (
                (self.width_in // count, self.width),
                (self.width_in, self.width // count),
            ):
                yield OuterTiles(
                    columns_in=columns_in, columns=columns, row_tiles=row_tiles
                )

    def misfit(self, tiles: OuterTiles, tpu: hardware.Tpu) -> str | None:
        """Returns why the kernel cannot run with these tiles; None if it can."""
        del tpu
        return (
            _misfit_of_rings({"row_tiles": tiles.row_tiles})
            or _misfit_of_columns("columns_in", tiles.columns_in, self.width_in)
            or _misfit_of_columns("columns", tiles.columns, self.width)
        )


type Shape = ProductShape | OuterShape
type Tiles = ProductTiles | OuterTiles


def choose_tiles(shape: Shape, tpu: hardware.Tpu) -> Any:
    """Returns the tuned tiles of a shape, or else computed ones, and logs the latter.

    Raises:
      NotImplementedError: no tiles of the shape fit into VMEM.
      ValueError: those of `use_tiles` do not.
    """
    if used := _used.get():
        if reason := unfit(shape, used, tpu):
            raise ValueError(f"{shape.kernel}: {reason}. Use others.")
        return used
    if tuned := _TUNED.get((tpu.name, shape)):
        return tuned
    tiles = compute_tiles(shape, tpu)
    log_once(
        f"{shape.kernel}: {PATH.name} has no tiles of {_described(shape)} on "
        f"{tpu.name}; computed {_described(tiles)}"
    )
    return tiles


@contextlib.contextmanager
def use_tiles(tiles: Tiles) -> Iterator[None]:
    """Within this, kernels take the tiles given; for those who look for better ones."""
    token = _used.set(tiles)
    try:
        yield
    finally:
        _used.reset(token)


def compute_tiles(shape: Any, tpu: hardware.Tpu) -> Any:
    """Returns the first of a shape's candidates that fits.

    Raises:
      NotImplementedError: none does.
    """
    least = None
    for tiles in shape.candidates(tpu):
        if shape.misfit(tiles, tpu) is None:
            num_bytes = shape.vmem_bytes(tiles, tpu)
            if num_bytes <= vmem_budget(tpu):
                return tiles
            least = min(least or num_bytes, num_bytes)
    raise NotImplementedError(
        f"{shape.kernel}: the least tiles of {_described(shape)} take {least:,} bytes "
        f"of VMEM, and {tpu.name} has {vmem_budget(tpu):,} for them. Tiles are as wide "
        f"as a width, or a divisor of it that is a multiple of {LANES}; pad the width "
        "to one."
    )


def vmem_budget(tpu: hardware.Tpu) -> int:
    """Returns how many bytes of a core's VMEM tiles may take."""
    return int(VMEM_SHARE * tpu.vmem_bytes)


def load(path: Path) -> dict[tuple[str, Shape], Tiles]:
    """Reads tuned tiles by device kind and shape.

    Raises:
      ValueError: an entry that no kernel could run with.
    """
    found: dict[tuple[str, Shape], Tiles] = {}
    for number, entry in enumerate(json.loads(path.read_text(encoding="utf-8"))):
        where = f"{path.name}, entry {number}"
        kind = entry["device_kind"]
        if (tpu := hardware.TPUS.get(kind)) is None:
            raise ValueError(f"{where}: {kind!r} must be one of {[*hardware.TPUS]}.")
        is_outer = entry["shape"]["kernel"] == "grouped_outer"
        kinds = (OuterShape, OuterTiles) if is_outer else (ProductShape, ProductTiles)
        shape, tiles = kinds[0](**entry["shape"]), kinds[1](**entry["tiles"])
        if reason := unfit(shape, tiles, tpu):
            raise ValueError(f"{where}: {reason}. Tune that shape again.")
        if (tpu.name, shape) in found:
            raise ValueError(f"{where}: the shape of an earlier one. Keep one of them.")
        found[tpu.name, shape] = tiles
    return found


def unfit(shape: Any, tiles: Any, tpu: hardware.Tpu) -> str | None:
    """Returns why a kernel cannot run with these tiles; None if it can."""
    if reason := shape.misfit(tiles, tpu):
        return reason
    num_bytes, budget = shape.vmem_bytes(tiles, tpu), vmem_budget(tpu)
    if num_bytes > budget:
        return f"{_described(tiles)} take {num_bytes:,} bytes of {budget:,} of VMEM"
    return None


def _misfit_of_rings(rings: dict[str, int]) -> str | None:
    for name, count in rings.items():
        if count < 2 or count & (count - 1):
            return f"{name}={count} must be a power of two from 2 on"
    return None


def _misfit_of_columns(name: str, columns: int, width: int | None) -> str | None:
    if columns == width:
        return None
    if columns < 1 or columns % LANES or (width is not None and width % columns):
        whole = "" if width is None else f" and divide {width}"
        return f"{name}={columns} must be a multiple of {LANES}{whole}"
    return None


def _described(value: Shape | Tiles) -> str:
    fields = dataclasses.asdict(value)
    return ", ".join(
        f"{name}={found}" for name, found in fields.items() if name != "kernel"
    )


_used: contextvars.ContextVar[Tiles | None] = contextvars.ContextVar(
    "tiles", default=None
)
# Read when the module is: later, tests may have made chips smaller.
_TUNED = load(PATH)
