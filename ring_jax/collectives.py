# SPDX-License-Identifier: Apache-2.0
"""Gathers and sums over mesh axes, inside `jax.shard_map`, that compute can hide.

On TPUs, XLA runs an all-gather or a reduce-scatter while nothing else runs (v5p, v6e,
tpu7x; libtpu 0.0.50), and turns the gradient of an all-gather into an all-reduce of the
whole array. Its collective-permutes, however, start and end around other work. So on
TPUs both are made of permutes. Elsewhere they are what XLA gives: NCCL's run beside the
computation by themselves, and emulated devices share their cores.

A gather over `size` devices goes in phases over factors of `size`, of at most
`MAX_DIRECT` devices, as in a torus: in each, every device sends what it holds to every
other one of its phase, and all these permutes may run at once. Sent is what any
all-gather must send, size - 1 blocks; the number of permutes is the sum over the phases
of (factor - 1), 9 for 64 devices. The gradient of a gather is the reduce-scatter with
the phases in the opposite order, summed in float32 and rounded after each phase.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from pallas_kernels import hardware

MAX_DIRECT = 4
"""Devices that exchange directly. On a ring of four, two hops at most."""

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


def _default(by_permutes: bool | None) -> bool:
    return hardware.target_tpu() is not None if by_permutes is None else by_permutes


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _gather(x: jax.Array, axes: Axes, dim: int, by_permutes: bool) -> jax.Array:
    if not by_permutes:
        return jax.lax.all_gather(x, axes, axis=dim, tiled=True)
    for phase in reversed(_phases(axes)):
        x = phase.gather(x, dim)
    return x


def _gather_forward(x, axes, dim, by_permutes):
    return _gather(x, axes, dim, by_permutes), None


def _gather_backward(axes, dim, by_permutes, _, grad):
    return (_scatter(grad, axes, dim, by_permutes),)


_gather.defvjp(_gather_forward, _gather_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _scatter(x: jax.Array, axes: Axes, dim: int, by_permutes: bool) -> jax.Array:
    if not by_permutes:
        return jax.lax.psum_scatter(x, axes, scatter_dimension=dim, tiled=True)
    for phase in _phases(axes):
        x = phase.scatter(x, dim)
    return x


def _scatter_forward(x, axes, dim, by_permutes):
    return _scatter(x, axes, dim, by_permutes), None


def _scatter_backward(axes, dim, by_permutes, _, grad):
    return (_gather(grad, axes, dim, by_permutes),)


_scatter.defvjp(_scatter_forward, _scatter_backward)


class _Phase:
    """Devices whose numbers along an axis differ by multiples of a stride."""

    def __init__(self, axis: str, size: int, stride: int):
        self.axis, self.size, self.stride = axis, size, stride
        self.num_devices = jax.lax.axis_size(axis)

    def gather(self, x: jax.Array, dim: int) -> jax.Array:
        """Joins the blocks of the phase's devices, in their order."""
        shape = list(x.shape)
        shape[dim] *= self.size
        joined = jax.lax.empty(tuple(shape), x.dtype)
        joined = jax.lax.pcast(joined, _varying(x), to="varying")
        for shift in range(self.size):
            block = x if shift == 0 else self._from(x, shift)
            start = self._place(shift) * x.shape[dim]
            joined = jax.lax.dynamic_update_slice_in_dim(joined, block, start, dim)
        return joined

    def scatter(self, x: jax.Array, dim: int) -> jax.Array:
        """Sums the phase's arrays; each device keeps the block of its place."""
        size = x.shape[dim] // self.size
        total = None
        for shift in range(self.size):
            start = self._place(shift) * size
            block = jax.lax.dynamic_slice_in_dim(x, start, size, dim)
            if shift:
                block = self._from(block, -shift)
            block = block.astype(jnp.float32)
            total = block if total is None else total + block
        assert total is not None
        return total.astype(x.dtype)

    def _place(self, shift: int) -> jax.Array:
        """Returns the place in the phase of the device that is `shift` after this."""
        place = jax.lax.axis_index(self.axis) // self.stride
        return (place + shift) % self.size

    def _from(self, x: jax.Array, shift: int) -> jax.Array:
        """Returns `x` of the device whose place in the phase is `shift` after this."""
        pairs = []
        for receiver in range(self.num_devices):
            place = receiver // self.stride % self.size
            step = (place + shift) % self.size - place
            pairs.append((receiver + step * self.stride, receiver))
        return jax.lax.ppermute(x, self.axis, pairs)


def _phases(axes: Axes) -> list[_Phase]:
    """Returns the phases of a gather, that of the largest strides first."""
    phases = []
    for axis in axes:
        stride = jax.lax.axis_size(axis)
        for factor in factors(stride):
            stride //= factor
            phases.append(_Phase(axis, factor, stride))
    return phases


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
