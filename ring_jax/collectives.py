# SPDX-License-Identifier: Apache-2.0
"""Gathers and sums over mesh axes, inside `jax.shard_map`, that compute can hide.

On TPUs, XLA runs an all-gather or a reduce-scatter while nothing else runs (seen on
v5p and v6e with libtpu 0.0.50), and turns the gradient of an all-gather into an
all-reduce of the whole array. Its collective-permutes, however, start and end around
other work. So on TPUs both are made of permutes. Elsewhere they are what XLA gives:
NCCL's run beside the computation by themselves, and emulated devices share their cores.

A gather goes in phases, one for each axis of the torus that the devices span (an axis
of more than `MAX_DIRECT` chips in several). In a phase every device sends what it holds
to every other one of its line, all at once. The last phase moves most, so blocks are
cut into parts, and each part begins with another axis: all links are busy. A device
sends what any all-gather must send, size - 1 blocks. The gradient of a gather is the
reduce-scatter with the phases in the opposite order, summed in float32 and rounded
after each phase.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
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
    if jax.lax.axis_size(axes) == 1:
        return x
    return _gather(x, axes, dim, _default(by_permutes))


def reduce_scatter(
    x: jax.Array, axes: Axes, *, dim: int, by_permutes: bool | None = None
) -> jax.Array:
    """Sums the arrays of all devices, and leaves each its own block of the sum.

    The transpose of `all_gather`; arguments as there. `x.shape[dim]` is a multiple of
    the number of devices.
    """
    if jax.lax.axis_size(axes) == 1:
        return x
    return _scatter(x, axes, dim, _default(by_permutes))


def learn_torus(mesh: Mesh) -> None:
    """Notes how the axes of a mesh lie in the pod, for programs of that mesh.

    What a program knows of its mesh has no coordinates.
    """
    places = [
        (*getattr(device, "coords", ()), getattr(device, "core_on_chip", 0))
        for device in mesh.devices.flat
    ]
    places = np.array(places).reshape(*mesh.devices.shape, -1)
    lines = {}
    for position, axis in enumerate(mesh.axis_names):
        first = tuple(
            slice(None) if i == position else 0 for i in range(mesh.devices.ndim)
        )
        lines[axis] = _lines(places[first])
    _LINES[_key(mesh)] = lines


def _default(by_permutes: bool | None) -> bool:
    return hardware.target_tpu() is not None if by_permutes is None else by_permutes


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _gather(x: jax.Array, axes: Axes, dim: int, by_permutes: bool) -> jax.Array:
    if by_permutes:
        return _Torus(axes).gather(x, dim)
    return jax.lax.all_gather(x, axes, axis=dim, tiled=True)


def _gather_forward(x, axes, dim, by_permutes):
    return _gather(x, axes, dim, by_permutes), None


def _gather_backward(axes, dim, by_permutes, _, grad):
    return (_scatter(grad, axes, dim, by_permutes),)


_gather.defvjp(_gather_forward, _gather_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _scatter(x: jax.Array, axes: Axes, dim: int, by_permutes: bool) -> jax.Array:
    if by_permutes:
        return _Torus(axes).scatter(x, dim)
    return jax.lax.psum_scatter(x, axes, scatter_dimension=dim, tiled=True)


def _scatter_forward(x, axes, dim, by_permutes):
    return _scatter(x, axes, dim, by_permutes), None


def _scatter_backward(axes, dim, by_permutes, _, grad):
    return (_gather(grad, axes, dim, by_permutes),)


_scatter.defvjp(_scatter_forward, _scatter_backward)


@dataclasses.dataclass(frozen=True)
class _Line:
    """Devices whose numbers along a mesh axis differ by multiples of a stride."""

    axis: str
    size: int
    stride: int

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


class _Torus:
    """The lines that the devices of some mesh axes make, the major one first.

    A gathered dimension is kept as one dimension for each line and the block's own:
    [..., size, size, block, ...].
    """

    def __init__(self, axes: Axes):
        self.lines = [line for axis in axes for line in _lines_of(axis)]

    def gather(self, x: jax.Array, dim: int) -> jax.Array:
        rest = [line.size for line in self.lines]
        shape = (*x.shape[:dim], *rest, *x.shape[dim:])
        whole = jax.lax.empty(shape, x.dtype)
        whole = jax.lax.pcast(whole, _varying(x), to="varying")
        for order, start, size in self._parts(x.shape[dim]):
            part = jax.lax.slice_in_dim(x, start, start + size, axis=dim)
            part = part.reshape(*x.shape[:dim], *(1 for _ in rest), *part.shape[dim:])
            for index in order[:-1]:
                part = self._join(part, index, dim)
            whole = self._place(whole, part, order[-1], dim, start)
        size = math.prod(rest) * x.shape[dim]
        return whole.reshape(*x.shape[:dim], size, *x.shape[dim + 1 :])

    def scatter(self, x: jax.Array, dim: int) -> jax.Array:
        rest = [line.size for line in self.lines]
        block = x.shape[dim] // math.prod(rest)
        x = x.reshape(*x.shape[:dim], *rest, block, *x.shape[dim + 1 :])
        parts = []
        for order, start, size in self._parts(block):
            part = jax.lax.slice_in_dim(
                x, start, start + size, axis=dim + len(self.lines)
            )
            for index in reversed(order):
                part = self._sum(part, index, dim)
            parts.append(part)
        whole = jnp.concatenate(parts, axis=dim + len(self.lines))
        return whole.reshape(*x.shape[:dim], block, *x.shape[dim + len(rest) + 1 :])

    def _parts(self, block: int) -> list[tuple[list[int], int, int]]:
        """Returns for each part the order of its lines, its start and its size."""
        count = len(self.lines)
        edges = [
            round(block * i / count / PART_MULTIPLE) * PART_MULTIPLE
            for i in range(count)
        ]
        edges.append(block)
        orders = [[(first + i) % count for i in range(count)] for first in range(count)]
        spans = zip(orders, edges, edges[1:], strict=False)
        return [(order, low, high - low) for order, low, high in spans if high > low]

    def _join(self, part: jax.Array, index: int, dim: int) -> jax.Array:
        """Gathers a part along one line."""
        shape = list(part.shape)
        shape[dim + index] *= self.lines[index].size
        whole = jax.lax.empty(tuple(shape), part.dtype)
        whole = jax.lax.pcast(whole, _varying(part), to="varying")
        return self._place(whole, part, index, dim, start=0)

    def _place(
        self, whole: jax.Array, part: jax.Array, index: int, dim: int, start: int
    ) -> jax.Array:
        """Writes the parts of all devices of a line into the whole."""
        line = self.lines[index]
        for shift in range(line.size):
            block = part if shift == 0 else line.receive(part, shift)
            starts: list[Any] = [0] * whole.ndim
            starts[dim + index] = line.place(shift)
            starts[dim + len(self.lines)] = start
            whole = jax.lax.dynamic_update_slice(whole, block, starts)
        return whole

    def _sum(self, part: jax.Array, index: int, dim: int) -> jax.Array:
        """Sums a line's parts; each device keeps the block of its place."""
        line, total = self.lines[index], None
        for shift in range(line.size):
            block = jax.lax.dynamic_slice_in_dim(
                part, line.place(shift), 1, axis=dim + index
            )
            if shift:
                block = line.receive(block, -shift)
            block = block.astype(jnp.float32)
            total = block if total is None else total + block
        assert total is not None
        return total.astype(part.dtype)


_LINES: dict[tuple, dict[str, tuple[int, ...]]] = {}
"""Mesh -> axis -> sizes of the lines that it is made of, the major one first."""


def _key(mesh) -> tuple:
    return tuple(mesh.shape.items())


def _lines_of(axis: str) -> list[_Line]:
    stride = jax.lax.axis_size(axis)
    lines = _LINES.get(_key(jax.sharding.get_abstract_mesh()), {})
    sizes = []
    for size in lines.get(axis) or (stride,):
        sizes += factors(size)
    found = []
    for size in sizes:
        stride //= size
        found.append(_Line(axis, size, stride))
    return found


def _lines(places: np.ndarray) -> tuple[int, ...]:
    """Returns the lengths of the torus axes that places in order run along."""
    size = len(places)
    if size == 1:
        return ()
    (moves,) = np.nonzero(places[1] != places[0])
    if len(moves) != 1:
        return (size,)
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
        return (size,)
    return (*_lines(places[::length]), length)


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
