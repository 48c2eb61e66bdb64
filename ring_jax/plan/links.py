# SPDX-License-Identifier: Apache-2.0
"""The links between the chips of a pod, and how long they take to carry something.

    all-gather, reduce-scatter    (n - 1) / n * B / W      B: bytes of the whole array
    all-reduce                    twice that
    all-to-all                    B * e / (8 w), / (4 w) on a line    B: of a device
    collective-permute            B * (transfers over the busiest link) / w

but never less than `HOP_SECONDS` for each chip that something must pass. n is the size
of the group, w a link's bandwidth one way, e the group's extent along a torus axis (the
axis that takes longest counts), and W what a device can send at once: 2 w for each
torus axis that the algorithm uses if the group closes a ring there, w if it is a line.
Between slices W is the data-center network's bandwidth of a chip.

Sources: rings and their cost, arXiv:1909.09756, section 2; bandwidths, and which slices
close their torus, `pallas_kernels/hardware.py`; the axes in use are those that the
compiler names ("active_dims", "1DAllGather"). All of it is an estimate, uncertain by a
factor of `UNCERTAINTY` either way: what shares a link, and what the routers do, is not
public.
"""

import collections
import dataclasses
import math
import re
from collections.abc import Iterator, Mapping, Sequence

from pallas_kernels.hardware import Tpu

UNCERTAINTY = 2.0
HOP_SECONDS = 1e-6
"""From a chip to its neighbour; about what jax-ml's scaling book gives."""
NETWORK, ON_CHIP = "network", "chip"
"""Names of what carries bytes, beside "x+", "x-" and so on for links."""

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
class Carriage:
    """What carries a collective, and for how long."""

    seconds: float
    links: tuple[str, ...]
    """"x+" are the links to the next chip along x, "x-" those back."""


def wire_bytes(kind: str, operand_bytes: int, size: int) -> int:
    """Returns what one device of a group sends.

    Args:
      kind: of collective.
      operand_bytes: of one device.
      size: of the group.
    """
    match kind:
        case "all-gather":
            return (size - 1) * operand_bytes
        case "all-reduce":
            return 2 * (size - 1) * operand_bytes // size
        case "collective-permute" | "collective-broadcast":
            return operand_bytes
    return (size - 1) * operand_bytes // size


def carry_group(
    kind: str,
    operand_bytes: int,
    group: Sequence[int],
    mesh: PlacedMesh,
    *,
    algorithm: str = "",
) -> Carriage:
    """Estimates a collective of a group: its part within slices and that between them.

    Args:
      kind: of collective, but no permutation.
      operand_bytes: of one device.
      group: places in the flattened mesh.
      mesh: where they are.
      algorithm: what the compiler says of it, as text.
    """
    members = collections.defaultdict(list)
    for place in group:
        members[mesh.coordinates[place][0]].append(place)
    inside = next(iter(members.values()))
    seconds, links = 0.0, ()
    if len(members) > 1:
        # Each device carries its share of its slice's bytes over the network; an
        # all-gather begins with that, the others end with it.
        share = operand_bytes
        if kind in ("all-reduce", "reduce-scatter"):
            share = operand_bytes // len(inside)
        network = mesh.tpu.network_bytes_per_second / mesh.tpu.devices_per_chip
        seconds, links = wire_bytes(kind, share, len(members)) / network, (NETWORK,)
        if kind == "all-gather":
            operand_bytes *= len(members)
    if len(inside) > 1:
        carriage = _carry_within(kind, operand_bytes, inside, mesh, algorithm)
        seconds += carriage.seconds
        links += carriage.links
    return Carriage(seconds, links)


def carry_pairs(
    num_bytes: int, pairs: Sequence[Sequence[int]], mesh: PlacedMesh
) -> Carriage:
    """Routes each transfer along x, then y, then z; the busiest link sets the time."""
    loads: collections.Counter[tuple] = collections.Counter()
    num_hops = 0
    for source, target in pairs:
        route = list(_route(mesh.coordinates[source], mesh.coordinates[target], mesh))
        loads.update(route)
        num_hops = max(num_hops, len(route))
    on_links = max((n for link, n in loads.items() if link[0] != NETWORK), default=0)
    on_network = max((n for link, n in loads.items() if link[0] == NETWORK), default=0)
    seconds = num_bytes * (
        on_links / mesh.tpu.link_bytes_per_second
        + on_network / mesh.tpu.network_bytes_per_second
    )
    names = tuple(sorted({link[0] for link in loads}))
    return Carriage(max(seconds, num_hops * HOP_SECONDS), names)


def _carry_within(
    kind: str,
    operand_bytes: int,
    group: Sequence[int],
    mesh: PlacedMesh,
    algorithm: str,
) -> Carriage:
    """Of a group within a slice."""
    link = mesh.tpu.link_bytes_per_second / mesh.tpu.devices_per_chip
    axes = list(_torus_axes(group, mesh))
    num_bytes = wire_bytes(kind, operand_bytes, len(group))
    if not axes:
        # Devices of one chip: at least as fast as all of its links.
        ways = 2 * mesh.tpu.num_torus_axes
        return Carriage(num_bytes / (ways * link), (ON_CHIP,))
    links = tuple(f"{axis.name}{way}" for axis in axes for way in "+-")
    num_hops = sum(axis.extent // (2 if axis.is_ring else 1) for axis in axes)
    if kind in ("all-to-all", "ragged-all-to-all"):
        seconds = max(
            operand_bytes * axis.extent / ((8 if axis.is_ring else 4) * link)
            for axis in axes
        )
    else:
        if _ONE_DIM.search(algorithm):
            num_hops = len(group) // 2
        seconds = num_bytes / (_ways(algorithm, axes) * link)
    return Carriage(max(seconds, num_hops * HOP_SECONDS), links)


@dataclasses.dataclass(frozen=True)
class _TorusAxis:
    """An axis of the torus along which a group has several chips."""

    name: str
    extent: int
    is_ring: bool


def _torus_axes(group: Sequence[int], mesh: PlacedMesh) -> Iterator[_TorusAxis]:
    shape, closes = mesh.torus_shape(), mesh.closes()
    for axis, name in enumerate("xyz"):
        places = {mesh.coordinates[i][axis + 1] for i in group}
        if len(places) > 1:
            is_ring = closes[axis] and len(places) == shape[axis]
            yield _TorusAxis(name, len(places), is_ring)


def _ways(algorithm: str, axes: Sequence[_TorusAxis]) -> int:
    """Returns the links over which a device sends at once.

    An algorithm of one dimension goes round a ring of neighbours, both ways; a grid of
    two axes or more has such a ring if one of its lengths is even.
    """
    if _ONE_DIM.search(algorithm):
        is_grid = len(axes) > 1 and any(axis.extent % 2 == 0 for axis in axes)
        return 2 if is_grid or axes[0].is_ring else 1
    used = len(axes)
    if active := _ACTIVE_DIMS.search(algorithm):
        used = min(used, active.group(1).count("1"))
    longest = sorted(axes, key=lambda axis: axis.extent, reverse=True)[:used]
    return sum(2 if axis.is_ring else 1 for axis in longest)


def _route(
    source: tuple[int, ...], target: tuple[int, ...], mesh: PlacedMesh
) -> Iterator[tuple]:
    """Yields the links of a transfer: name, and the chip that each starts from."""
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
        name = f"{'xyz'[axis - 1]}{'+' if step > 0 else '-'}"
        for _ in range(abs(distance)):
            yield (name, *place)
            place[axis] = (place[axis] + step) % length
