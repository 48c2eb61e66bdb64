# SPDX-License-Identifier: Apache-2.0
"""Rows that are split over a mesh axis, so that every device has equal work.

A row is cut into 2 J chunks for J devices. Device i has chunks i and 2 J - 1 - i: under
a causal mask the late one sees more by what the early one sees less (Llama 3,
arXiv:2407.21783, section 3.3.2).

    row        0 1 2 3 4 5 6 7        J = 4
    zigzag     0 7|1 6|2 5|3 4        a part for each device
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

type Positions = np.ndarray | jax.Array
"""Of numpy where they are known when a program is traced."""


def zigzag[X: (jax.Array, np.ndarray)](x: X, num_shards: int, *, axis: int = 1) -> X:
    """Brings rows into the order in which equal parts are the devices' own.

    Args:
      x: [..., J * T, ...], of numpy or jax, as the result is; T is even.
      num_shards: J, devices that share a row.
      axis: dimension of the positions.

    Returns:
      x with its chunks in the order 0, 2J-1, 1, 2J-2, ..., J-1, J.

    Raises:
      ValueError: the row has not that many chunks of one length.
    """
    if num_shards == 1:
        return x
    shape = x.shape
    axis %= x.ndim
    chunks = _chunks(x, axis, (2, num_shards))
    early, late = (chunks.take(np.array(i), axis) for i in range(2))
    xp = x.__array_namespace__()
    return xp.stack([early, xp.flip(late, axis)], axis + 1).reshape(shape)


def unzigzag[X: (jax.Array, np.ndarray)](x: X, num_shards: int, *, axis: int = 1) -> X:
    """Brings rows from the order of `zigzag` back into their own; its inverse."""
    if num_shards == 1:
        return x
    shape = x.shape
    axis %= x.ndim
    chunks = _chunks(x, axis, (num_shards, 2))
    early, late = (chunks.take(np.array(i), axis + 1) for i in range(2))
    xp = x.__array_namespace__()
    return xp.stack([early, xp.flip(late, axis)], axis).reshape(shape)


def _chunks[X: (jax.Array, np.ndarray)](x: X, axis: int, parts: tuple[int, int]) -> X:
    length, num = x.shape[axis], parts[0] * parts[1]
    if length % num:
        raise ValueError(
            f"zigzag: {length} positions do not make {num} chunks, two for each of "
            f"{num // 2} shards; pad the rows to a multiple of {num}."
        )
    return x.reshape(*x.shape[:axis], *parts, length // num, *x.shape[axis + 1 :])


@dataclasses.dataclass(frozen=True)
class Context:
    """Over which mesh axis rows are split in zigzag order; by default over none.

    For the body of `jax.shard_map`. A device has T positions of a row of J * T.
    """

    axis_name: str | None = None
    num_shards: int = 1

    def parts(self, x: jax.Array) -> jax.Array:
        """Gathers the parts of all devices, [J, ...].

        In front, since the TPU's compiler makes an all-reduce, which moves twice the
        bytes, of a sum that is scattered along another dimension.
        """
        if self.num_shards == 1:
            return x[None]
        return jax.lax.all_gather(x, self.axis_name)

    def own_sum(self, x: jax.Array) -> jax.Array:
        """Sums [J, ...] over the devices, for each its own: `parts` transposed."""
        if self.num_shards == 1:
            return x[0]
        return jax.lax.psum_scatter(x, self.axis_name)

    def row(self, x: jax.Array) -> jax.Array:
        """Gathers [B, J * T, ...] in the order of the row."""
        if self.num_shards == 1:
            return x
        gathered = jax.lax.all_gather(x, self.axis_name, axis=1, tiled=True)
        return unzigzag(gathered, self.num_shards)

    def own(self, x: jax.Array) -> jax.Array:
        """Takes this device's [B, T, ...] of what `row` gathered."""
        if self.num_shards == 1:
            return x
        ordered = zigzag(x, self.num_shards)
        return self._part(ordered, axis=1)

    def own_positions(self, num_positions: int, *, every: int = 1) -> Positions:
        """Returns where in the row this device's positions are, or every n-th of them.

        They rise. Those of whole rows are of numpy, known when a program is traced.
        """
        positions = self.positions(num_positions)[::every]
        if self.num_shards == 1:
            return positions
        return self._part(jnp.asarray(positions), axis=0)

    def positions(self, num_positions: int) -> np.ndarray:
        """Returns where in the row the T positions of each device are, i32[J * T]."""
        row = np.arange(num_positions * self.num_shards, dtype=np.int32)
        return zigzag(row, self.num_shards, axis=0)

    def _part(self, x: jax.Array, *, axis: int) -> jax.Array:
        length = x.shape[axis] // self.num_shards
        first = jax.lax.axis_index(self.axis_name) * length
        return jax.lax.dynamic_slice_in_dim(x, first, length, axis)
