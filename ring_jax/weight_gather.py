# SPDX-License-Identifier: Apache-2.0
"""Weights where they are used: gathered from the devices that store parts of them.

Fully sharded data parallelism: weights move, activations stay. A gather is part of the
product that needs it (`einsum`, `gather_block`), or comes long before in steps that run
beside other work (`WeightGather`). A gradient takes the same way back, and is summed
where the weight is stored.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from types import EllipsisType

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike

from ring_jax import collectives
from ring_jax.sharding import (
    TENSOR_AXIS,
    TOKEN_AXES,
    WEIGHT_RULES,
    activation,
    axes_of,
    laid_out,
    per_device,
    stored_by,
    sum_over,
    vary,
    weight,
)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Copies:
    """Each device's own copy of a weight, gathered early (`WeightGather`)."""

    blocks_J: jax.Array
    """[J, ...]; the dimensions that follow are those of `copy_of`."""

    def __getitem__(self, everything: EllipsisType) -> "Copies":
        """Returns itself, as the value of a parameter `param[...]`."""
        return self


type Weight = jax.Array | Copies


def einsum(equation: str, x: jax.Array, w: Weight) -> jax.Array:
    """Contracts an activation with a parameter in the activation's dtype.

    The equation's letters give all layouts. Each device gathers the weight (fully
    sharded data parallelism: weights move, activations stay) in the compute dtype, if
    that was not done before, and sums over `tensor` where that axis splits what is
    contracted. The weight's gradient goes the way back: each device's own, summed where
    it is stored.
    """
    operands, dims = equation.split("->")
    x_dims, w_dims = operands.split(",")
    w, layout, copy = operand(w, w_dims, x.dtype)
    run = per_device(
        functools.partial(_einsum_block, equation, copy=copy),
        in_specs=(activation(x_dims), layout),
        out_specs=activation(dims),
    )
    return run(x, w)


def _einsum_block(
    equation: str, x: jax.Array, w: jax.Array, *, copy: Callable
) -> jax.Array:
    operands, dims = equation.split("->")
    x_dims, w_dims = operands.split(",")
    split = [dim for dim in w_dims if TENSOR_AXIS in WEIGHT_RULES.get(dim, ())]
    if any(dim in dims for dim in split):
        x = vary(x, TENSOR_AXIS)
    y = jnp.einsum(f"{x_dims},{_on_the_wire(w_dims)}->{dims}", x, copy(w))
    if any(dim not in dims for dim in split):
        y = sum_over(y, TENSOR_AXIS)
    return y


type Blocks = tuple[jax.Array, ...]
"""Weights on their way: arrays [J, ...], on each device its own."""


@dataclasses.dataclass(frozen=True)
class WeightGather:
    """Gathers weights on every device long before they are used, step by step.

    They cross the wire as one, as a message costs time, however short it is: they are
    one stack of experts, or any number of weights without. All steps are linear, and
    the gradient takes the same way back (`collectives.PhasedGather`).
    """

    dims: tuple[str, ...]
    """The letters of each, by which it is laid out (`weight`)."""
    shapes: tuple[tuple[int, ...], ...]
    dtype: DTypeLike
    """Of the copies; cast to before the wire."""

    @property
    def num_phases(self) -> int:
        """At least one."""
        return self._phased.num_phases

    def begin(self, weights: Sequence[jax.Array]) -> Blocks:
        """Casts and joins the blocks of parameters."""

        def begin(*blocks: jax.Array) -> Blocks:
            varying = [vary(_rounded(w, self.dtype), *TOKEN_AXES) for w in blocks]
            joined = self._join([w.astype(self.dtype) for w in varying])
            return _stacked(self._phased.begin(joined))

        layouts = tuple(map(weight, self.dims))
        return per_device(begin, in_specs=layouts, out_specs=self._layout)(*weights)

    def spread(self, parts: Blocks, phase: int) -> Blocks:
        """Returns what is to be sent in phase 0, 1, ... or `num_phases - 1`."""
        return self._step(self._phased.spread, parts, phase)

    def exchange(self, blocks: Blocks, phase: int) -> Blocks:
        """Sends; all other steps are each device's own."""
        return self._step(self._phased.exchange, blocks, phase)

    def merge(self, blocks: Blocks, phase: int) -> Blocks:
        """Puts together what came."""
        return self._step(self._phased.merge, blocks, phase)

    def finish(self, parts: Blocks) -> list[Copies]:
        """Takes each device's own copies apart, after the last phase."""

        def finish(parts: Blocks) -> Blocks:
            return _stacked(self._cut(self._phased.finish(_unstacked(parts))))

        run = per_device(
            finish,
            in_specs=(self._layout,),
            out_specs=tuple(map(_copies, self.dims)),
        )
        return [Copies(blocks_J) for blocks_J in run(parts)]

    def _step(self, step: Callable, blocks: Blocks, phase: int) -> Blocks:
        layout = self._layout

        def run(blocks: Blocks) -> Blocks:
            return _stacked(step(_unstacked(blocks), phase))

        return per_device(run, in_specs=(layout,), out_specs=layout)(blocks)

    @property
    def _phased(self) -> collectives.PhasedGather:
        dims, shape = self.dims[0], self.shapes[0]
        position = _position(dims)
        axes = axes_of(weight(dims)[position])
        return collectives.PhasedGather(
            axes=tuple(axis for axis in axes if axis != TENSOR_AXIS),
            dim=1 if "E" in dims else 0,
            block=_block_shape(dims, shape)[position],
        )

    @property
    def _layout(self) -> P:
        # The letter of a dimension that tensor splits, as it does one of each weight.
        return _copies(self.dims[0] if "E" in self.dims[0] else "DF")

    def _join(self, blocks: Sequence[jax.Array]) -> jax.Array:
        """Stacks of experts keep their order; others have in front what is gathered."""
        blocks = [
            _for_the_wire(block, dims)
            for block, dims in zip(blocks, self.dims, strict=True)
        ]
        if "E" in self.dims[0]:
            return blocks[0]
        flat = [block.reshape(block.shape[0], -1) for block in blocks]
        return jnp.concatenate(flat, axis=1)

    def _cut(self, whole: jax.Array) -> list[jax.Array]:
        if "E" in self.dims[0]:
            return [whole]
        rest = [
            _block_shape(dims, shape)[: _position(dims)]
            + _block_shape(dims, shape)[_position(dims) + 1 :]
            for dims, shape in zip(self.dims, self.shapes, strict=True)
        ]
        parts = jax.lax.split(whole, list(map(math.prod, rest)), axis=1)
        return [
            part.reshape(-1, *block) for part, block in zip(parts, rest, strict=True)
        ]


def _stacked(blocks: Sequence[jax.Array]) -> Blocks:
    return tuple(block[None] for block in blocks)


def _unstacked(parts: Blocks) -> tuple[jax.Array, ...]:
    return tuple(part[0] for part in parts)


def _position(dims: str) -> int:
    """Returns which dimension of a weight is stored in parts."""
    stored = stored_by(dims)
    assert stored is not None
    return dims.index(stored)


def _block_shape(dims: str, shape: Sequence[int]) -> tuple[int, ...]:
    """Returns the shape of a device's block of a parameter."""
    sizes = jax.sharding.get_abstract_mesh().shape
    return tuple(
        size // math.prod(sizes[axis] for axis in axes_of(entry))
        for size, entry in zip(shape, weight(dims), strict=True)
    )


def _rounded(w: jax.Array, dtype: DTypeLike) -> jax.Array:
    """Returns a weight with the values that a cast will give it.

    Were it cast alone, XLA would cast all layers before the loop over them, and keep
    that beside the parameters.
    """
    info = jnp.finfo(dtype)
    return jax.lax.reduce_precision(w, info.nexp, info.nmant)


def operand(
    w: Weight, dims: str, dtype: DTypeLike
) -> tuple[jax.Array, P, Callable[[jax.Array], jax.Array]]:
    """Returns of a weight what `per_device` takes, its layout, and what copies a block.

    The last makes the device's own copy: by a gather, unless that was done before.
    """
    if isinstance(w, Copies):
        return w.blocks_J, _copies(dims), functools.partial(jnp.squeeze, axis=0)
    return w, weight(dims), functools.partial(copy_of, dims=dims, dtype=dtype)


def copy_of(w: jax.Array, dims: str, dtype: DTypeLike) -> jax.Array:
    """Inside `per_device`: this device's copy, whole but for experts and `tensor`."""
    w = _for_the_wire(vary(w, *TOKEN_AXES).astype(dtype), dims)
    return gather_block(w, _on_the_wire(dims), keep="E")


def _for_the_wire(w: jax.Array, dims: str) -> jax.Array:
    """Returns a block of a weight in the order in which it is gathered.

    D comes first: blocks of a first dimension are joined without moving what is in
    them. Stacks of experts keep their order, and gate and up are joined before they are
    gathered: [2, F] would lie in tiles of two rows.
    """
    if dims == "ED2F":
        return w.reshape(*w.shape[:2], -1)
    return w if "E" in dims else jnp.moveaxis(w, dims.index("D"), 0)


def _copies(dims: str) -> P:
    rules = {dim: axes for dim, axes in WEIGHT_RULES.items() if dim != "E"}
    return P(*activation("J"), *laid_out(_on_the_wire(dims), rules))


def _on_the_wire(dims: str) -> str:
    """Returns the letters of a weight's copies."""
    return dims.replace("2", "") if "E" in dims else "D" + dims.replace("D", "")


def gather_block(
    w: jax.Array, dims: str, *, dtype: DTypeLike | None = None, keep: str = ""
) -> jax.Array:
    """Inside `per_device`: a weight in the compute dtype, whole but for `tensor`.

    Dimensions in `keep` stay split over expert, too. The result is marked as varying
    over all axes of tokens, so that its gradient, which does vary, is summed over those
    devices when it leaves.

    Args:
      w: this device's block, laid out as `weight(dims)`.
      dims: its letters.
      dtype: to cast to before the wire; None keeps its own.
      keep: letters not to gather.
    """
    w = vary(w, *TOKEN_AXES).astype(dtype or w.dtype)
    for position, (dim, entry) in enumerate(zip(dims, weight(dims), strict=True)):
        gathered = tuple(axis for axis in axes_of(entry) if axis != TENSOR_AXIS)
        if gathered and dim not in keep:
            w = collectives.all_gather(w, gathered, dim=position)
    return w
