# SPDX-License-Identifier: Apache-2.0
"""The collectives of a step: over which mesh axes, how many bytes, how long.

Kind, groups and bytes are those of the compiled program. The time is an estimate from
the bandwidth of links, uncertain by a factor of `UNCERTAINTY` either way:

    all-gather, reduce-scatter    (n - 1) / n * B / W      B: bytes of the whole array
    all-reduce                    twice that
    all-to-all                    B * e / (4 W)            B: bytes that a device sends
    collective-permute            B * (most loaded link's transfers) / w

n is the size of the group, w a link's bandwidth one way, e the group's extent along its
longest torus axis, and W what a device can send at once: 2 w for each torus axis that
the algorithm uses if the group closes a ring there, w if it is a line. Between slices W
is the data-center network's bandwidth of a chip.

Sources: the arithmetic is that of rings (arXiv:1909.09756, section 2); which slices
close their torus, and the bandwidths, are in `pallas_kernels/hardware.py`; the axes in
use are those that the compiler names ("active_dims", "1DAllGather").
"""

import collections
import dataclasses
import math
import re
from collections.abc import Iterator, Mapping, Sequence

from pallas_kernels.hardware import Tpu
from ring_jax.plan.device_groups import (
    mesh_axes,
    permutation_pairs,
    replica_groups,
)
from ring_jax.plan.hlo import Computation, Instruction, Module

KINDS = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "ragged-all-to-all",
    "all-to-all",
    "collective-permute",
    "collective-broadcast",
)
UNCERTAINTY = 2.0
NETWORK = "slice"
"""The part of a coordinate that links do not reach."""

_ONE_DIM = re.compile(r'"emitter":"(?:1D|SinglePhaseRing)|1DRing')
_ACTIVE_DIMS = re.compile(r"active_dims:([01]+)")


@dataclasses.dataclass(frozen=True)
class PlacedMesh:
    """The devices of a mesh, where they are, and the chip that they are of."""

    mesh_shape: Mapping[str, int]
    """Axis -> size, in the mesh's order."""
    coordinates: tuple[tuple[int, int, int, int, int], ...]
    """(slice, x, y, z, core) of the device at each place of the flattened mesh."""
    tpu: Tpu

    @property
    def num_devices(self) -> int:
        """As jax counts them."""
        return len(self.coordinates)

    def torus_shape(self) -> tuple[int, int, int]:
        """Returns the chips of a slice along x, y and z."""
        x, y, z = (1 + max(c[i] for c in self.coordinates) for i in (1, 2, 3))
        return x, y, z

    def closes(self) -> tuple[bool, bool, bool]:
        """Says of x, y and z whether the slice has links from the last to the first.

        Slices of v5p and TPU7x are made of cubes of 4 x 4 x 4 chips, at whose faces
        those links are: no axis closes unless all are multiples of 4. Of v5e and v6e
        only an axis that spans the whole pod, 16 chips, closes.
        """
        multiple = self.tpu.wrap_multiple
        fits = [length % multiple == 0 for length in self.torus_shape()]
        if self.tpu.num_torus_axes == 3:
            fits = [all(fits)] * 3
        x, y, z = fits
        return x, y, z


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective instruction."""

    name: str
    kind: str
    axes: tuple[str, ...]
    """Mesh axes that it runs over; "a:2" is a part of 2 of axis a."""
    group_size: int
    operand_bytes: int
    """Of one device."""
    wire_bytes: int
    """That one device sends: to all others of its group, or to its targets."""
    seconds: float
    is_over_network: bool
    """Whether its groups span slices."""
    op_name: str

    @property
    def label(self) -> str:
        """Its axes as one word."""
        return "x".join(self.axes) or "none"


def read_collective(
    instruction: Instruction, computation: Computation, mesh: PlacedMesh
) -> Collective | None:
    """Reads a collective, or the start of one; None: the instruction is another.

    Args:
      instruction: any instruction.
      computation: the one that it stands in.
      mesh: what the program was compiled for.
    """
    kind = instruction.opcode.removesuffix("-start")
    if kind not in KINDS:
        return None
    operand_bytes = sum(
        computation.by_name[name].num_bytes for name in instruction.operands
    )
    if kind == "ragged-all-to-all":
        # The other operands are the result's buffer, offsets and sizes.
        operand_bytes = computation.by_name[instruction.operands[0]].num_bytes
    if kind == "collective-permute":
        groups = permutation_pairs(instruction)
        seconds = _permute_seconds(operand_bytes, groups, mesh)
    else:
        groups = replica_groups(instruction, mesh.num_devices)
        seconds = _group_seconds(instruction, kind, operand_bytes, groups[0], mesh)
    return Collective(
        name=instruction.name,
        kind=kind,
        axes=mesh_axes(groups, mesh.mesh_shape),
        group_size=len(groups[0]),
        operand_bytes=operand_bytes,
        wire_bytes=_wire_bytes(kind, operand_bytes, len(groups[0])),
        seconds=seconds,
        is_over_network=any(_spans_slices(group, mesh) for group in groups),
        op_name=instruction.op_name,
    )


def inner_collective(
    instruction: Instruction, module: Module, mesh: PlacedMesh
) -> Collective | None:
    """Reads the collective inside an asynchronous call or fusion; None: there is none.

    The compiler wraps some of them, to run beside other work.
    """
    for called in module.called(instruction):
        for inner in called.instructions:
            if collective := read_collective(inner, called, mesh):
                return dataclasses.replace(collective, name=instruction.name)
    return None


def _wire_bytes(kind: str, operand_bytes: int, size: int) -> int:
    match kind:
        case "all-gather":
            return (size - 1) * operand_bytes
        case "all-reduce":
            return 2 * (size - 1) * operand_bytes // size
        case "collective-permute" | "collective-broadcast":
            return operand_bytes
    return (size - 1) * operand_bytes // size


def _spans_slices(group: Sequence[int], mesh: PlacedMesh) -> bool:
    return len({mesh.coordinates[i][0] for i in group}) > 1


def _group_seconds(
    instruction: Instruction,
    kind: str,
    operand_bytes: int,
    group: Sequence[int],
    mesh: PlacedMesh,
) -> float:
    """Of the part within slices plus the part between them."""
    members = collections.defaultdict(list)
    for place in group:
        members[mesh.coordinates[place][0]].append(place)
    inside = next(iter(members.values()))
    seconds = 0.0
    if len(members) > 1:
        # Each device carries its share of its slice's bytes over the network; an
        # all-gather begins with that, the others end with it.
        share = operand_bytes
        if kind in ("all-reduce", "reduce-scatter"):
            share = operand_bytes // len(inside)
        network = mesh.tpu.network_bytes_per_second / mesh.tpu.devices_per_chip
        seconds += _wire_bytes(kind, share, len(members)) / network
        if kind == "all-gather":
            operand_bytes *= len(members)
    if len(inside) > 1:
        seconds += _link_seconds(instruction, kind, operand_bytes, inside, mesh)
    return seconds


def _link_seconds(
    instruction: Instruction,
    kind: str,
    operand_bytes: int,
    group: Sequence[int],
    mesh: PlacedMesh,
) -> float:
    """Of a group within a slice."""
    link = mesh.tpu.link_bytes_per_second / mesh.tpu.devices_per_chip
    axes = list(_torus_axes(group, mesh))
    if not axes:
        # Devices of one chip: at least as fast as all of its links.
        link *= 2 * mesh.tpu.num_torus_axes
        return _wire_bytes(kind, operand_bytes, len(group)) / link
    if kind in ("all-to-all", "ragged-all-to-all"):
        return max(
            operand_bytes * extent / ((8 if is_ring else 4) * link)
            for extent, is_ring in axes
        )
    ways = _ways(instruction, axes)
    return _wire_bytes(kind, operand_bytes, len(group)) / (ways * link)


def _torus_axes(group: Sequence[int], mesh: PlacedMesh) -> Iterator[tuple[int, bool]]:
    """Yields extent, and whether it is a ring, of each axis that a group spans."""
    shape, closes = mesh.torus_shape(), mesh.closes()
    for axis in range(3):
        places = {mesh.coordinates[i][axis + 1] for i in group}
        if len(places) > 1:
            is_ring = closes[axis] and len(places) == shape[axis]
            yield len(places), is_ring


def _ways(instruction: Instruction, axes: Sequence[tuple[int, bool]]) -> int:
    """Returns the links over which a device sends at once.

    An algorithm of one dimension goes round a ring of neighbours, both ways; a grid of
    two axes or more has such a ring if one of its lengths is even.
    """
    if _ONE_DIM.search(instruction.attributes):
        is_ring = axes[0][1] if len(axes) == 1 else any(n % 2 == 0 for n, _ in axes)
        return 2 if is_ring else 1
    used = len(axes)
    if active := _ACTIVE_DIMS.search(instruction.attributes):
        used = min(used, active.group(1).count("1"))
    longest = sorted(axes, reverse=True)[:used]
    return sum(2 if is_ring else 1 for _, is_ring in longest)


def _permute_seconds(
    num_bytes: int, pairs: Sequence[Sequence[int]], mesh: PlacedMesh
) -> float:
    """Routes each transfer along x, then y, then z, and takes the busiest link."""
    loads: collections.Counter[tuple] = collections.Counter()
    for source, target in pairs:
        loads.update(_route(mesh.coordinates[source], mesh.coordinates[target], mesh))
    on_links = max((n for link, n in loads.items() if link[0] != NETWORK), default=0)
    on_network = max((n for link, n in loads.items() if link[0] == NETWORK), default=0)
    return num_bytes * (
        on_links / mesh.tpu.link_bytes_per_second
        + on_network / mesh.tpu.network_bytes_per_second
    )


def _route(
    source: tuple[int, ...], target: tuple[int, ...], mesh: PlacedMesh
) -> Iterator[tuple]:
    """Yields the links of a transfer, each with its direction."""
    if source[0] != target[0]:
        yield (NETWORK, *source[:4])
        return
    place = list(source[:4])
    for axis, (length, is_closed) in enumerate(
        zip(mesh.torus_shape(), mesh.closes(), strict=True), start=1
    ):
        distance = target[axis] - place[axis]
        if is_closed and abs(distance) > length / 2:
            distance -= int(math.copysign(length, distance))
        step = 1 if distance > 0 else -1
        for _ in range(abs(distance)):
            yield ("link", *place, axis, step)
            place[axis] = (place[axis] + step) % length
