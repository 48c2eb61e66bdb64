# SPDX-License-Identifier: Apache-2.0
"""Seconds and bytes of a step on any mesh, in closed form: good enough to rank by.

    model = ClosedForm.of(config, pod)
    model.on(mesh).predict(remat="block", num_microbatches=2)

Seconds of a step:

    max(compute, weights) + tokens + sums

    compute  model FLOPs * recomputation / (devices * peak * EFFICIENCY)
    weights  gathers in bfloat16 for every pass and microbatch, and the scatter of
             gradients in bfloat16; they run beside the computation
    tokens   rows sent to experts and back, sums over a tensor axis, keys and values
             gathered over a context axis
    sums     all-reduce of the gradients of what several devices hold, once a step

A collective of B bytes over n devices takes (n - 1) / n * B / W, an all-reduce twice
that. W is that of both directions of the links on as many torus axes as n chips span,
and the network's where the axis joins slices. Bytes of a device's HBM:

    state + gradients + 2 * tokens * (kept * layers + working) + gathered weights

The state is exact, from shapes and layouts. A remat keeps `kept` bfloat16 numbers of a
token and layer; `working` are those of the one layer at hand and their gradients.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any, Self

import jax

from ring_jax import sharding
from ring_jax.config import ConfigError, ModelConfig, RunConfig
from ring_jax.model.flops import flops_per_token
from ring_jax.plan.abstract import abstract_state
from ring_jax.plan.topology import Pod

EFFICIENCY = 0.5
"""Of the matrix units, over all of a step's computation; only the ranking needs it."""

type MeshShape = Mapping[str, int]


@dataclasses.dataclass(frozen=True)
class RematCost:
    """What a choice of `config.train.remat` recomputes and keeps."""

    recomputation: float
    """FLOPs of a step relative to one that recomputes nothing; of Ling's shapes."""
    num_passes: int
    """Of a layer in a microbatch that need its weights, forward and again."""
    num_streams: int
    """Copies of the residual stream that are kept of a layer."""
    kept: tuple[str, ...] = ()
    """What else is kept; a key of `_widths`."""


REMAT = {
    "none": RematCost(1.0, 1, 5, ("matmuls", "kernels", "rows")),
    "matmuls": RematCost(1.05, 2, 1, ("matmuls", "kernels")),
    "kernels": RematCost(1.15, 2, 1, ("kernels",)),
    "block": RematCost(4 / 3, 2, 1),
    "offload": RematCost(4 / 3, 2, 0),
}


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What the closed form says of a step."""

    seconds: float
    hbm_bytes: float
    """Of a device."""


@dataclasses.dataclass(frozen=True)
class Leaf:
    """An array of the state, and the mesh axes that split each dimension."""

    dims: tuple[int, ...]
    axes: tuple[tuple[str, ...], ...]
    item_bytes: int
    is_weight: bool
    is_stacked: bool
    """Whether the first dimension is that of layers."""

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.dims)

    def shards(self, mesh: MeshShape) -> int:
        """Returns into how many parts a mesh splits it."""
        return math.prod(size_of(axes, mesh) for axes in self.axes)

    def divides(self, mesh: MeshShape) -> bool:
        """Whether a mesh splits it evenly."""
        pairs = zip(self.dims, self.axes, strict=True)
        return all(size % size_of(axes, mesh) == 0 for size, axes in pairs)

    @functools.cached_property
    def gathered(self) -> tuple[str, ...]:
        """Axes over which a layer needs it whole: those whose devices have own tokens.

        The axis that experts alone are split over is not among them.
        """
        return tuple(
            axis
            for axes in self.axes
            if axes != (sharding.EXPERT_AXIS,)
            for axis in axes
            if axis in sharding.TOKEN_AXES
        )

    @functools.cached_property
    def copied(self) -> tuple[str, ...]:
        """Axes along which each device has a copy, and a gradient to be summed."""
        stored = {axis for axes in self.axes for axis in axes}
        return tuple(axis for axis in sharding.TOKEN_AXES if axis not in stored)

    @property
    def is_of_experts(self) -> bool:
        """Whether an axis splits the experts themselves."""
        return (sharding.EXPERT_AXIS,) in self.axes


@dataclasses.dataclass(frozen=True)
class ClosedForm:
    """All that does not depend on the mesh."""

    config: RunConfig
    pod: Pod
    leaves: tuple[Leaf, ...]
    useless_axes: tuple[str, ...]
    """Axes of the mesh that do not divide the model even by two."""
    model_flops: float
    """Of a step."""

    @classmethod
    def of(cls, config: RunConfig, pod: Pod) -> Self:
        """Reads a run's shapes and layouts."""
        train = config.train
        mean_context = (train.seq_len + 1) / 2
        per_token = flops_per_token(config.model, mean_context=mean_context)
        flops = per_token * train.global_batch_size * train.seq_len
        leaves, useless = _leaves(config)
        return cls(config, pod, tuple(leaves), useless, flops)

    def divides(self, mesh: MeshShape) -> bool:
        """Whether a mesh splits state and batch evenly."""
        train, num_parts = self.config.train, mesh[sharding.CONTEXT_AXIS]
        # Two chunks a device: see pallas_kernels/attention/context.py.
        num_chunks = 1 if num_parts == 1 else 2 * num_parts
        return (
            train.global_batch_size % size_of(sharding.BATCH_AXES, mesh) == 0
            and train.seq_len % num_chunks == 0
            and all(mesh[axis] == 1 for axis in self.useless_axes)
            and all(leaf.divides(mesh) for leaf in self.leaves)
        )

    def on(self, mesh: MeshShape) -> "OnMesh":
        """Returns what depends on the mesh alone."""
        weights = [leaf for leaf in self.leaves if leaf.is_weight]
        links, num_layers = _Links(mesh, self.pod), self.config.model.num_layers
        blocks = [leaf.size / leaf.shards(mesh) for leaf in weights]
        pairs = list(zip(weights, blocks, strict=True))
        whole = [(leaf, size_of(leaf.gathered, mesh) * block) for leaf, block in pairs]
        return OnMesh(
            model=self,
            mesh=mesh,
            gather_seconds=sum(links.seconds(leaf.gathered, n) for leaf, n in whole),
            expert_seconds=sum(
                links.seconds((sharding.EXPERT_AXIS,), mesh[sharding.EXPERT_AXIS] * n)
                for leaf, n in whole
                if leaf.is_of_experts
            ),
            sum_seconds=sum(links.seconds(leaf.copied, 8 * n) for leaf, n in pairs),
            state_bytes=sum(
                leaf.item_bytes * leaf.size / leaf.shards(mesh) for leaf in self.leaves
            ),
            num_weights=sum(blocks),
            # Of a layer and of the next; of embedding and head with their gradients.
            gathered_bytes=sum(
                (4 / num_layers if leaf.is_stacked else 4) * n for leaf, n in whole
            ),
        )


@dataclasses.dataclass(frozen=True)
class OnMesh:
    """A run on a mesh; remat and microbatches are still open."""

    model: ClosedForm
    mesh: MeshShape
    gather_seconds: float
    """Of all weights once, at a byte a number; experts over other axes than theirs."""
    expert_seconds: float
    """Of the experts once over their own axis, at a byte a number."""
    sum_seconds: float
    """Of all gradients, once."""
    state_bytes: float
    num_weights: float
    """Parameters that a device holds."""
    gathered_bytes: float

    @property
    def rows_of_device(self) -> int:
        """Of the whole batch."""
        rows = self.model.config.train.global_batch_size
        return rows // size_of(sharding.BATCH_AXES, self.mesh)

    def predict(self, *, remat: str, num_microbatches: int) -> Prediction:
        """Returns seconds and bytes of a step.

        Raises:
          KeyError: `REMAT` does not know the remat.
        """
        cost = REMAT[remat]
        tokens = self._tokens() / num_microbatches
        # A byte a number is counted once: two in each pass, and for the gradient.
        num_wire_bytes = 2 * (cost.num_passes + 1) * num_microbatches
        weights = self.gather_seconds * num_wire_bytes
        experts = self.expert_seconds * num_wire_bytes
        exchange = _Exchange(self.model, self.mesh, cost, tokens)
        rows = exchange.experts_seconds() * num_microbatches
        transport = self.model.config.model.moe.transport
        if transport == "fsdp" or (transport == "auto" and experts <= rows):
            weights, rows = weights + experts, 0.0
        moved = rows + exchange.others_seconds() * num_microbatches
        # A microbatch's gradients are added to those of the ones before.
        num_gradients = 1 if num_microbatches == 1 else 2
        return Prediction(
            seconds=max(self._compute_seconds(cost), weights)
            + moved
            + self.sum_seconds,
            hbm_bytes=self.state_bytes
            + 4 * num_gradients * self.num_weights
            + _activation_bytes(self.model.config.model, cost, tokens)
            + self.gathered_bytes,
        )

    def _tokens(self) -> float:
        """Returns the tokens of a device in a step."""
        train = self.model.config.train
        split = size_of(sharding.TOKEN_AXES, self.mesh)
        return train.global_batch_size * train.seq_len / split

    def _compute_seconds(self, cost: RematCost) -> float:
        pod = self.model.pod
        peak = pod.num_devices * pod.tpu.flops_per_second
        return self.model.model_flops * cost.recomputation / (peak * EFFICIENCY)


@dataclasses.dataclass(frozen=True)
class _Exchange:
    """What layers move of the tokens of a microbatch, in all passes."""

    model: ClosedForm
    mesh: MeshShape
    cost: RematCost
    tokens: float
    """Of a device."""

    def experts_seconds(self) -> float:
        """Rows to experts and back, by the transport that moves least."""
        config = self.model.config.model
        size = self.mesh[sharding.EXPERT_AXIS]
        # A ring gathers all tokens; the other sends A rows of each, over size / 4 links
        # in the mean.
        rows = config.moe.num_experts_per_token * max(1.0, size / 4) / size
        num_rows = min(1.0, rows) * size * self.tokens
        # There and back in each forward pass, gradients once more.
        times = 2 * self.cost.num_passes + 1
        return times * self._seconds(sharding.EXPERT_AXIS, num_rows * config.model_dim)

    def others_seconds(self) -> float:
        """Sums over the tensor axis, and what attention gathers over the context's."""
        config = self.model.config.model
        # An all-reduce behind attention and experts, and one each for the gradient.
        sums = 2 * 2 * (self.cost.num_passes + 1)
        stream = self.tokens * config.model_dim
        keys = 2 * config.num_kv_heads * config.head_dim * self.tokens
        whole_keys = keys * self.mesh[sharding.CONTEXT_AXIS]
        return sums * self._seconds(sharding.TENSOR_AXIS, stream) + (
            self.cost.num_passes + 1
        ) * self._seconds(sharding.CONTEXT_AXIS, whole_keys)

    def _seconds(self, axis: str, numbers: float) -> float:
        """Of bfloat16 numbers in all layers."""
        links = _Links(self.mesh, self.model.pod)
        return self.model.config.model.num_layers * links.seconds((axis,), 2 * numbers)


@dataclasses.dataclass(frozen=True)
class _Links:
    """The bandwidths that a mesh's axes have."""

    mesh: MeshShape
    pod: Pod

    def seconds(self, axes: tuple[str, ...], num_bytes: float) -> float:
        """Returns how long it takes to gather or scatter an array over mesh axes."""
        size = size_of(axes, self.mesh)
        if size == 1:
            return 0.0
        return (size - 1) / size * num_bytes / self._bytes_per_second(axes, size)

    def _bytes_per_second(self, axes: tuple[str, ...], size: int) -> float:
        """Returns what a device can send at once."""
        tpu, pod = self.pod.tpu, self.pod
        if pod.num_slices > 1 and sharding.MESH_AXES[0] in axes:
            return tpu.network_bytes_per_second / tpu.devices_per_chip
        chips = max(2.0, size / tpu.devices_per_chip)
        side = (pod.num_chips / pod.num_slices) ** (1 / tpu.num_torus_axes)
        spanned = math.ceil(math.log(chips) / math.log(max(side, 2.0)) - 1e-9)
        num_axes = min(spanned, tpu.num_torus_axes)
        return 2 * tpu.link_bytes_per_second * num_axes / tpu.devices_per_chip


def size_of(axes: tuple[str, ...], mesh: MeshShape) -> int:
    """Returns the devices along some axes of a mesh."""
    return math.prod(mesh[axis] for axis in axes)


def _leaves(config: RunConfig) -> tuple[list[Leaf], tuple[str, ...]]:
    """Reads shapes and layouts; returns axes that do not divide the model, too.

    A layout names only axes of several devices, so each axis is looked at alone.
    """
    with jax.sharding.use_abstract_mesh(sharding.abstract_mesh()):
        found = jax.tree.leaves_with_path(abstract_state(config))
    axes: list[list[tuple[str, ...]]] = [[()] * leaf.ndim for _, leaf in found]
    useless = []
    for axis in sharding.MESH_AXES:
        mesh = sharding.abstract_mesh(**{axis: 2})
        try:
            sharding.check_model(config.model, mesh)
        except ConfigError:
            useless.append(axis)
            continue
        with jax.sharding.use_abstract_mesh(mesh):
            leaves = jax.tree.leaves(abstract_state(config))
        for number, leaf in enumerate(leaves):
            layout = () if leaf.sharding is None else leaf.sharding.spec
            for dim, entry in enumerate(layout):
                axes[number][dim] += (axis,) if entry else ()
    return [
        _leaf(jax.tree_util.keystr(path), leaf, tuple(axes[number]))
        for number, (path, leaf) in enumerate(found)
    ], tuple(useless)


def _leaf(name: str, array: Any, axes: tuple[tuple[str, ...], ...]) -> Leaf:
    return Leaf(
        array.shape,
        axes,
        array.dtype.itemsize,
        is_weight=name.startswith(".model"),
        is_stacked="_layers" in name,
    )


def _activation_bytes(model: ModelConfig, cost: RematCost, tokens: float) -> float:
    widths, D = _widths(model), model.model_dim
    kept = cost.num_streams * D + sum(widths[name] for name in cost.kept)
    # Values of the layer at hand, and their gradients.
    working = 2 * (4 * D + sum(widths.values()))
    return 2 * tokens * (kept * model.num_layers + working)


def _widths(model: ModelConfig) -> dict[str, int]:
    """Returns the numbers of a token that a layer computes, by what computes them."""
    moe, D, heads = model.moe, model.model_dim, model.num_heads + 2 * model.num_kv_heads
    A, F = moe.num_experts_per_token, moe.expert_dim
    return {
        "matmuls": heads * model.head_dim + 2 * D + 3 * moe.num_shared_experts * F,
        "kernels": model.num_heads * model.head_dim + 2 * A * F,
        "rows": A * (2 * D + F),
    }
