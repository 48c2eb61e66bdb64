# SPDX-License-Identifier: Apache-2.0
"""Gathers and sums over mesh axes, inside `jax.shard_map`, that compute can hide.

On TPUs, XLA runs an all-gather or a reduce-scatter while nothing else runs (seen on
v5p and v6e with libtpu 0.0.50), and turns the gradient of an all-gather into an
all-reduce of the whole array. Its collective-permutes, however, start and end around
other work. So on TPUs both are made of permutes. Elsewhere they are what XLA gives:
NCCL's run beside the computation by themselves, and emulated devices share their cores.

A gather goes in phases, one for each line of devices along an axis of the torus (of
more than `MAX_DIRECT` chips in several). In a phase every device sends what it holds to
every other one of its line, all at once. The last phases move most, so of the lines
along an axis the one whose devices are the farthest apart comes first; and blocks are
cut into parts, each of which begins with another axis: all links are busy. A device
sends what any all-gather must send, size - 1 blocks. The gradient of a gather is the
reduce-scatter with the phases in the opposite order, summed in float32 and rounded
after each phase.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from pallas_kernels import hardware

MAX_DIRECT = 4
"""Devices that exchange directly. On a ring of four, two hops at most."""
PART_MULTIPLE = 16
"""Parts of a dimension are whole tiles of bfloat16 of every chip."""

type Axes = tuple[str, ...]
"""Mesh axes, the major one first, as in a `PartitionSpec`."""


def all_gather(
    x: jax.Array, axes: Axes, *, dim: int, by_permutes: bool | None = None
) -> jax.Array:
    """Joins the blocks of all devices along a dimension; the order is that of `axes`.

    Args:
      x: this device's block. It must vary over `axes`.
      axes: one or more mesh axes.
      dim: which dimension of `x` they split.
      by_permutes: whether permutes do it; None: on TPUs.
    """
    gather = PhasedGather(axes, dim, x.shape[dim], by_permutes)
    parts = gather.begin(x)
    for phase in range(gather.num_phases):
        blocks = gather.exchange(gather.spread(parts, phase), phase)
        parts = gather.merge(blocks, phase)
    return gather.finish(parts)


def reduce_scatter(
    x: jax.Array, axes: Axes, *, dim: int, by_permutes: bool | None = None
) -> jax.Array:
    """Sums the arrays of all devices, and leaves each its own block of the sum.

    The transpose of `all_gather`; arguments as there. `x.shape[dim]` is a multiple of
    the number of devices.
    """
    block = x.shape[dim] // math.prod(map(_size, axes))
    gather = PhasedGather(axes, dim, block, by_permutes)
    parts = (x,)
    for phase in reversed(range(gather.num_phases)):
        blocks = gather.exchange_back(_cut(gather, parts, phase), phase)
        parts = _sum(gather, blocks, phase)
    return jnp.concatenate(parts, axis=dim)


type Arrays = tuple[jax.Array, ...]


@dataclasses.dataclass(frozen=True)
class PhasedGather:
    """An `all_gather` in steps, for programs that put other work between them.

    `begin`, then `spread`, `exchange` and `merge` for each phase in order, then
    `finish`. Only `exchange` sends. All are linear and have their transposes as
    gradients: a gradient goes the same way back, and is summed where a part was spread.
    """

    axes: Axes
    dim: int
    block: int
    """Size of `dim` of one device's block."""
    by_permutes: bool | None = None
    """Whether permutes do it; None: on TPUs."""

    @property
    def num_phases(self) -> int:
        """At least one, even if there is nothing to send."""
        return len(self.torus.lines) if self.torus else 1

    @property
    def torus(self) -> "_Torus | None":
        """The lines along which permutes go, if they do it."""
        by_permutes = self.by_permutes
        if by_permutes is None:
            by_permutes = _are_permutes_hidden()
        if not by_permutes or self._is_alone:
            return None
        return _Torus(self.axes, self.dim, self.block)

    @property
    def _is_alone(self) -> bool:
        return math.prod(map(_size, self.axes)) == 1

    def begin(self, x: jax.Array) -> Arrays:
        """Returns the parts of this device's block."""
        if not self.torus:
            return (x,)
        sizes = [size for _, _, size in self.torus.parts]
        return tuple(jax.lax.split(x, sizes, axis=self.dim))

    def spread(self, parts: Arrays, phase: int) -> Arrays:
        """Returns what is for each device of the line of a phase, part by part."""
        return _spread(self, parts, phase)

    def exchange(self, blocks: Arrays, phase: int) -> Arrays:
        """Returns what the devices of the line have for this one."""
        if self.torus:
            return self.torus.exchange(blocks, phase)
        if self._is_alone:
            return blocks
        (x,) = blocks
        return (jax.lax.all_gather(x, self.axes, axis=self.dim, tiled=True),)

    def exchange_back(self, blocks: Arrays, phase: int) -> Arrays:
        """The transpose of `exchange`."""
        if self.torus:
            return self.torus.exchange(blocks, phase, back=True)
        if self._is_alone:
            return blocks
        (x,) = blocks
        return (
            jax.lax.psum_scatter(x, self.axes, scatter_dimension=self.dim, tiled=True),
        )

    def merge(self, blocks: Arrays, phase: int) -> Arrays:
        """Returns the parts after a phase; after the last one the whole."""
        return _merge(self, blocks, phase)

    def finish(self, parts: Arrays) -> jax.Array:
        """Returns the blocks of all devices, joined."""
        (whole,) = parts
        return whole


def learn_torus(mesh: Mesh) -> None:
    """Notes how the axes of a mesh lie in the pod, for programs of that mesh.

    What a program knows of its mesh has no coordinates.
    """
    places = [
        (*getattr(device, "coords", ()), getattr(device, "core_on_chip", 0))
        for device in mesh.devices.flat
    ]
    places = np.array(places).reshape(*mesh.devices.shape, -1)
    runs = {}
    for position, axis in enumerate(mesh.axis_names):
        first = tuple(
            slice(None) if i == position else 0 for i in range(mesh.devices.ndim)
        )
        runs[axis] = _runs(places[first])
    _RUNS[_key(mesh)] = runs


def _are_permutes_hidden() -> bool:
    return hardware.target_tpu() is not None


def _pair(forward: Callable, transpose: Callable) -> tuple[Callable, Callable]:
    """Returns linear functions of (gather, arrays, phase), each the other's gradient.

    Derived, sums would be in the dtype of the wire, and cuts would be scatters.
    """
    first = jax.custom_vjp(forward, nondiff_argnums=(0, 2))
    second = jax.custom_vjp(transpose, nondiff_argnums=(0, 2))
    for one, other in ((first, second), (second, first)):
        one.defvjp(
            lambda gather, arrays, phase, one=one: (one(gather, arrays, phase), None),
            lambda gather, phase, _, grads, other=other: (other(gather, grads, phase),),
        )
    return first, second


def _torus_or_same(name: str) -> Callable:
    def run(gather: PhasedGather, arrays: Arrays, phase: int) -> Arrays:
        return getattr(gather.torus, name)(arrays, phase) if gather.torus else arrays

    return run


_spread, _sum = _pair(_torus_or_same("spread"), _torus_or_same("sum"))
_merge, _cut = _pair(_torus_or_same("merge"), _torus_or_same("cut"))


@dataclasses.dataclass(frozen=True)
class _Line:
    """Devices whose numbers along a mesh axis differ by multiples of a stride."""

    axis: str
    size: int
    stride: int
    dim: int | None
    """The axis of the torus along which they are; None: unknown."""

    def place(self, shift: int) -> jax.Array:
        """Returns the place in the line of the device that is `shift` after this."""
        place = jax.lax.axis_index(self.axis) // self.stride
        return (place + shift) % self.size

    def receive(self, x: jax.Array, shift: int) -> jax.Array:
        """Returns `x` of the device whose place in the line is `shift` after this."""
        pairs = []
        for receiver in range(jax.lax.axis_size(self.axis)):
            place = receiver // self.stride % self.size
            step = (place + shift) % self.size - place
            pairs.append((receiver + step * self.stride, receiver))
        return jax.lax.ppermute(x, self.axis, pairs)


@dataclasses.dataclass(frozen=True)
class _Torus:
    """The lines that the devices of some mesh axes make, the major one first.

    In a phase, the gathered dimension is one for each line and the part's own:
    [..., size, size, part, ...], where a line that was not yet gathered has size 1.
    """

    axes: Axes
    dim: int
    block: int

    @functools.cached_property
    def lines(self) -> list[_Line]:
        return [line for axis in self.axes for line in _lines_of(axis)]

    @functools.cached_property
    def parts(self) -> list[tuple[list[int], int, int]]:
        """For each part, the order of its lines, its start and its size."""
        dims = list(dict.fromkeys(line.dim for line in self.lines))
        count = len(dims)
        edges = [
            round(self.block * i / count / PART_MULTIPLE) * PART_MULTIPLE
            for i in range(count)
        ]
        edges.append(self.block)
        orders = [self._order(dims[first:] + dims[:first]) for first in range(count)]
        spans = zip(orders, edges, edges[1:], strict=False)
        return [(order, low, high - low) for order, low, high in spans if high > low]

    def _order(self, dims: list[int | None]) -> list[int]:
        """Returns the lines in the order of a part: along each axis the major first."""
        along = [
            [i for i, line in enumerate(self.lines) if line.dim == dim] for dim in dims
        ]
        rounds = itertools.zip_longest(*along)
        return [index for group in rounds for index in group if index is not None]

    def spread(self, parts: Arrays, phase: int) -> Arrays:
        """Returns each part once for every device of its line of a phase."""
        return tuple(
            part
            for part, (order, _, _) in zip(parts, self.parts, strict=True)
            for _ in range(self.lines[order[phase]].size)
        )

    def sum(self, blocks: Arrays, phase: int) -> Arrays:
        """Sums, in float32, what devices had for this one."""
        return tuple(
            functools.reduce(
                jnp.add, [block.astype(jnp.float32) for block in group]
            ).astype(group[0].dtype)
            for group in self._grouped(blocks, phase)
        )

    def exchange(self, blocks: Arrays, phase: int, *, back: bool = False) -> Arrays:
        """Sends blocks: a group's first stays, the next is for the neighbour, ..."""
        received = []
        groups = self._grouped(blocks, phase)
        for group, (order, _, _) in zip(groups, self.parts, strict=True):
            line = self.lines[order[phase]]
            for shift, block in enumerate(group):
                shift = -shift if back else shift
                received.append(line.receive(block, shift) if shift else block)
        return tuple(received)

    def merge(self, blocks: Arrays, phase: int) -> Arrays:
        """Puts blocks together along the line of a phase, in the last one all parts."""
        is_last = phase == len(self.lines) - 1
        merged = list[jax.Array]()
        groups = self._grouped(blocks, phase)
        for group, (order, start, size) in zip(groups, self.parts, strict=True):
            group = [self._unmerged(block, order[:phase], size) for block in group]
            if is_last and merged:
                whole = merged.pop()
            else:
                room = self.block if is_last else size
                whole = self._empty(group[0], order[: phase + 1], room)
            start = start if is_last else 0
            merged.append(self._place(whole, group, order[phase], start))
        return tuple(map(self._flat, merged))

    def cut(self, parts: Arrays, phase: int) -> Arrays:
        """Returns what the blocks were that `merge` merged."""
        if phase == len(self.lines) - 1:
            every_line = list(range(len(self.lines)))
            whole = self._unmerged(parts[0], every_line, self.block)
            sizes = [size for _, _, size in self.parts]
            axis = self.dim + len(self.lines)
            parts = tuple(map(self._flat, jax.lax.split(whole, sizes, axis=axis)))
        blocks = []
        for part, (order, _, size) in zip(parts, self.parts, strict=True):
            part = self._unmerged(part, order[: phase + 1], size)
            axis, line = self.dim + order[phase], self.lines[order[phase]]
            blocks += [
                self._flat(
                    jax.lax.dynamic_slice_in_dim(part, line.place(shift), 1, axis=axis)
                )
                for shift in range(line.size)
            ]
        return tuple(blocks)

    def _grouped(self, blocks: Arrays, phase: int) -> list[Arrays]:
        """Returns the blocks of each part."""
        left = iter(blocks)
        return [
            tuple(itertools.islice(left, self.lines[order[phase]].size))
            for order, _, _ in self.parts
        ]

    def _sizes(self, gathered: Sequence[int]) -> list[int]:
        return [
            line.size if index in gathered else 1
            for index, line in enumerate(self.lines)
        ]

    def _unmerged(
        self, part: jax.Array, gathered: Sequence[int], size: int
    ) -> jax.Array:
        before, after = part.shape[: self.dim], part.shape[self.dim + 1 :]
        return part.reshape(*before, *self._sizes(gathered), size, *after)

    def _flat(self, part: jax.Array) -> jax.Array:
        end = self.dim + len(self.lines) + 1
        before, after = part.shape[: self.dim], part.shape[end:]
        return part.reshape(*before, math.prod(part.shape[self.dim : end]), *after)

    def _empty(self, part: jax.Array, gathered: Sequence[int], size: int) -> jax.Array:
        """Returns space for a part along lines, `size` of the block."""
        before = part.shape[: self.dim]
        after = part.shape[self.dim + len(self.lines) + 1 :]
        shape = (*before, *self._sizes(gathered), size, *after)
        return jax.lax.pcast(
            jax.lax.empty(shape, part.dtype), _varying(part), to="varying"
        )

    def _place(
        self, whole: jax.Array, blocks: Sequence[jax.Array], index: int, start: int
    ) -> jax.Array:
        """Writes the blocks of all devices of a line into the whole."""
        for shift, block in enumerate(blocks):
            starts: list[Any] = [0] * whole.ndim
            starts[self.dim + index] = self.lines[index].place(shift)
            starts[self.dim + len(self.lines)] = start
            whole = jax.lax.dynamic_update_slice(whole, block, starts)
        return whole


type _Run = tuple[int | None, int]
"""An axis of the torus, and how many places along it a mesh axis takes; None: unknown.
"""

_RUNS: dict[tuple, dict[str, tuple[_Run, ...]]] = {}
"""Mesh -> axis -> what it is made of, the major one first."""


def _size(axis: str) -> int:
    return jax.sharding.get_abstract_mesh().shape[axis]


def _key(mesh) -> tuple:
    return tuple(mesh.shape.items())


def _lines_of(axis: str) -> list[_Line]:
    stride = _size(axis)
    runs = _RUNS.get(_key(jax.sharding.get_abstract_mesh()), {})
    found = []
    for dim, length in runs.get(axis) or ((None, stride),):
        for size in factors(length):
            stride //= size
            found.append(_Line(axis, size, stride, dim))
    return found


def _runs(places: np.ndarray) -> tuple[_Run, ...]:
    """Returns the axes of the torus that places in order run along."""
    size = len(places)
    if size == 1:
        return ()
    (moves,) = np.nonzero(places[1] != places[0])
    if len(moves) != 1:
        return ((None, size),)
    along, others = places[:, moves[0]], np.delete(places, moves, axis=1)
    length = 1
    # As long as only that coordinate changes, and never back to where it was.
    while (
        length < size
        and np.array_equal(others[length], others[0])
        and along[length] not in along[:length]
    ):
        length += 1
    if length == 1 or size % length:
        return ((None, size),)
    return (*_runs(places[::length]), (int(moves[0]), length))


def factors(size: int) -> Sequence[int]:
    """Returns factors of `size`, few and at most `MAX_DIRECT` each where it has any."""
    found = []
    while size > MAX_DIRECT:
        small = [f for f in range(MAX_DIRECT, 1, -1) if size % f == 0]
        factor = small[0] if small else _smallest_factor(size)
        found.append(factor)
        size //= factor
    return [*found, size] if size > 1 else found


def _smallest_factor(size: int) -> int:
    return next(f for f in range(2, size + 1) if size % f == 0)


def _varying(x: jax.Array) -> Axes:
    return tuple(jax.typeof(x).manual_axis_type.varying)
