# SPDX-License-Identifier: Apache-2.0
"""Where the devices of a slice stand in a mesh, so that its axes get wide links.

A chip has a link to each neighbour along each axis of its torus. A mesh axis of four
chips in a square exchanges over two of those at once, one of four in a line over one,
where the middle link carries all that crosses it. So each mesh axis is spread over as
many axes of the torus as it can be, in steps of its prime factors, and the axes that
the computation waits for longest get the nearest neighbours.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jax.experimental import mesh_utils

NEAREST_FIRST = ("tensor", "expert", "context", "fsdp", "data")
"""Activations are waited for, weights can come ahead, gradients of copies last."""


def arrange(devices: Sequence[Any], sizes: Mapping[str, int]) -> np.ndarray:
    """Returns a slice's devices in the shape of a mesh.

    Args:
      devices: as many as the mesh has.
      sizes: of the mesh's axes, in its order.
    """
    grid = _grid(devices)
    split = None if grid is None else _split(grid.shape, sizes)
    if grid is None or split is None:
        shape = tuple(sizes.values())
        return mesh_utils.create_device_mesh(
            shape, devices, allow_split_physical_axes=True
        )
    # Each axis of the torus, cut into factors; the first to be taken is the minor one.
    cuts = [[step for step in split if step.dim == dim] for dim in range(grid.ndim)]
    order = [step for cut in cuts for step in reversed(cut)]
    whole = grid.reshape([step.factor for step in order])
    by_axis = [
        order.index(step)
        for axis in sizes
        for step in reversed(split)
        if step.axis == axis
    ]
    return whole.transpose(by_axis).reshape(tuple(sizes.values()))


def _grid(devices: Sequence[Any]) -> np.ndarray | None:
    """Returns the devices by place in the torus; None if they fill no box of it."""
    if not all(hasattr(device, "coords") for device in devices):
        return None
    places = np.array(
        [(*device.coords, getattr(device, "core_on_chip", 0)) for device in devices]
    )
    places -= places.min(axis=0)
    shape = tuple(places.max(axis=0) + 1)
    if np.prod(shape) != len(devices):
        return None
    grid = np.empty(shape, object)
    for place, device in zip(places, devices, strict=True):
        grid[tuple(place)] = device
    return None if any(device is None for device in grid.flat) else grid


class _Step(NamedTuple):
    """A factor of a mesh axis that lies along an axis of the torus."""

    number: int
    axis: str
    dim: int
    factor: int


def _split(shape: Sequence[int], sizes: Mapping[str, int]) -> list[_Step] | None:
    """Deals the torus to the mesh; None if prime factors do not fit."""
    left, steps = list(shape), list[_Step]()
    for axis in NEAREST_FIRST:
        rest = sizes[axis]
        while rest > 1:
            factor = next(p for p in range(2, rest + 1) if rest % p == 0)
            dims = [dim for dim, size in enumerate(left) if size % factor == 0]
            if not dims:
                return None
            used = [step.dim for step in steps if step.axis == axis]
            dim = min(dims, key=lambda d: (used.count(d), -left[d]))
            steps.append(_Step(len(steps), axis, dim, factor))
            left[dim] //= factor
            rest //= factor
    return steps if all(size == 1 for size in left) else None
