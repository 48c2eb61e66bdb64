# SPDX-License-Identifier: Apache-2.0
"""Seconds and bytes of a step on any mesh, in closed form: good enough to rank by.

    model = ClosedForm.of(config, pod)
    model.on(mesh).predict(remat="block", num_microbatches=2)

Seconds of a step:

    max(compute, weights) + tokens + sums

    compute  model FLOPs * recomputation / (devices * peak * EFFICIENCY)
    weights  gathers in bfloat16 for every pass and microbatch, and the scatter of
             float32 gradients; they run beside the computation
    tokens   what an axis that splits a layer's products moves of the residual stream
    sums     all-reduce of the gradients of what is held whole, once a step

A collective of B bytes over n devices takes (n - 1) / n * B / W, an all-reduce twice
that. W is that of both directions of the links on as many torus axes as n chips span,
and the network's where the axis joins slices. Bytes of a device's HBM:

    state + gradients + 2 * tokens * (saved * layers + working) + gathered weights

The state is exact, from shapes and layouts. A remat keeps `saved` bfloat16 numbers of a
token and layer; `working` are those of the one layer at hand and their gradients.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any, Self

import jax

from ring_jax import sharding
from ring_jax.config import MeshConfig, ModelConfig, RunConfig
from ring_jax.model.flops import flops_per_token
from ring_jax.plan.abstract import abstract_mesh_of, abstract_state
from ring_jax.plan.topology import Pod

EFFICIENCY = 0.5
"""Of the matrix units, over all of a step's computation; only the ranking needs it."""

type MeshShape = Mapping[str, int]


@dataclasses.dataclass(frozen=True)
class RematCost:
    """What a choice of `config.train.remat` recomputes and keeps."""

    recomputation: float
    """FLOPs of a step relative to one that recomputes nothing."""
    num_gathers: int
    """Times that a weight is gathered in a microbatch."""
    saved: tuple[int, int, int]
    """Kept of a token and layer: copies of the residual stream, of what attention and
    shared experts compute inside (0 or 1), and of the rows of routed experts."""


REMAT = {
    "none": RematCost(1.0, num_gathers=1, saved=(7, 1, 1)),
    "matmuls": RematCost(1.2, num_gathers=2, saved=(3, 1, 0)),
    "block": RematCost(4 / 3, num_gathers=2, saved=(1, 0, 0)),
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
        """Axes over which a layer needs it whole: they split rows of the batch, too.

        Experts stay where they are: their own axis is not among them.
        """
        rows = batch_axes()
        return tuple(
            axis
            for axes in self.axes
            if axes != (sharding.EXPERT_AXIS,)
            for axis in axes
            if axis in rows
        )

    @functools.cached_property
    def copied(self) -> tuple[str, ...]:
        """Axes along which each device has a copy, and a gradient to be summed."""
        stored = {axis for axes in self.axes for axis in axes}
        return tuple(axis for axis in batch_axes() if axis not in stored)


@dataclasses.dataclass(frozen=True)
class ClosedForm:
    """All that does not depend on the mesh."""

    config: RunConfig
    pod: Pod
    leaves: tuple[Leaf, ...]
    model_flops: float
    """Of a step."""

    @classmethod
    def of(cls, config: RunConfig, pod: Pod) -> Self:
        """Reads a run's shapes and layouts."""
        train = config.train
        mean_context = (train.seq_len + 1) / 2
        per_token = flops_per_token(config.model, mean_context=mean_context)
        flops = per_token * train.global_batch_size * train.seq_len
        return cls(config, pod, tuple(_leaves(config)), flops)

    def divides(self, mesh: MeshShape) -> bool:
        """Whether a mesh splits state and batch evenly."""
        train, (rows, tokens) = self.config.train, _batch_layout()
        return (
            train.global_batch_size % size_of(rows, mesh) == 0
            and train.seq_len % size_of(tokens, mesh) == 0
            and all(leaf.divides(mesh) for leaf in self.leaves)
        )

    def on(self, mesh: MeshShape) -> "OnMesh":
        """Returns what depends on the mesh alone."""
        weights = [leaf for leaf in self.leaves if leaf.is_weight]
        links = _Links(mesh, self.pod)
        num_layers = self.config.model.num_layers
        whole = [
            leaf.size * size_of(leaf.gathered, mesh) / leaf.shards(mesh)
            for leaf in weights
        ]
        pairs = list(zip(weights, whole, strict=True))
        return OnMesh(
            model=self,
            mesh=mesh,
            gather_seconds=sum(
                links.seconds(leaf.gathered, size) for leaf, size in pairs
            ),
            sum_seconds=sum(
                links.seconds(leaf.copied, 8 * leaf.size / leaf.shards(mesh))
                for leaf in weights
            ),
            state_bytes=sum(
                leaf.item_bytes * leaf.size / leaf.shards(mesh) for leaf in self.leaves
            ),
            num_weights=sum(leaf.size / leaf.shards(mesh) for leaf in weights),
            # Of a layer and of the next; of embedding and head with their gradients.
            gathered_bytes=sum(
                (4 / num_layers if leaf.is_stacked else 4) * size
                for leaf, size in pairs
            ),
        )


@dataclasses.dataclass(frozen=True)
class OnMesh:
    """A run on a mesh; remat and microbatches are still open."""

    model: ClosedForm
    mesh: MeshShape
    gather_seconds: float
    """Of all weights once, at a byte a number."""
    sum_seconds: float
    """Of all gradients, once."""
    state_bytes: float
    num_weights: float
    """Parameters that a device holds."""
    gathered_bytes: float

    @property
    def rows_of_device(self) -> int:
        """Of the whole batch."""
        rows, _ = _batch_layout()
        return self.model.config.train.global_batch_size // size_of(rows, self.mesh)

    def predict(self, *, remat: str, num_microbatches: int) -> Prediction:
        """Returns seconds and bytes of a step.

        Raises:
          KeyError: `REMAT` does not know the remat.
        """
        cost = REMAT[remat]
        wire_bytes = 2 * cost.num_gathers + 4
        weights = self.gather_seconds * wire_bytes * num_microbatches
        tokens = self._tokens() / num_microbatches
        exchange = self._exchange_seconds(cost, tokens) * num_microbatches
        compute = self._compute_seconds(cost)
        # A microbatch's gradients are added to those of the ones before.
        num_gradients = 1 if num_microbatches == 1 else 2
        return Prediction(
            seconds=max(compute, weights) + exchange + self.sum_seconds,
            hbm_bytes=self.state_bytes
            + 4 * num_gradients * self.num_weights
            + _activation_bytes(self.model.config.model, cost, tokens)
            + self.gathered_bytes,
        )

    def _tokens(self) -> float:
        """Returns the tokens of a device in a step."""
        train = self.model.config.train
        split = math.prod(size_of(axes, self.mesh) for axes in _batch_layout())
        return train.global_batch_size * train.seq_len / split

    def _compute_seconds(self, cost: RematCost) -> float:
        pod = self.model.pod
        peak = pod.num_devices * pod.tpu.flops_per_second
        return self.model.model_flops * cost.recomputation / (peak * EFFICIENCY)

    def _exchange_seconds(self, cost: RematCost, tokens: float) -> float:
        """Returns what axes that split a layer's products move of the stream.

        Gathered before the product and scattered after it, in every pass.
        """
        config, links = self.model.config.model, _Links(self.mesh, self.model.pod)
        rows = batch_axes()
        axes = [axis for axis in self.mesh if axis not in rows]
        stream_bytes = 2 * tokens * config.model_dim
        num_times = 2 * (1 + cost.num_gathers)
        per_layer = sum(
            num_times * links.seconds((axis,), stream_bytes * self.mesh[axis])
            for axis in [sharding.EXPERT_AXIS, *axes]
        )
        return per_layer * config.num_layers


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


def batch_axes() -> tuple[str, ...]:
    """Returns the axes that split the rows of a batch."""
    return _batch_layout()[0]


def _batch_layout() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Returns the axes that split a batch's rows, and those that split a row."""
    rows, tokens = (_axes(entry) for entry in sharding.activation("BT"))
    return rows, tokens


def _leaves(config: RunConfig) -> list[Leaf]:
    """Reads shapes and layouts on a mesh of one device."""
    with jax.sharding.use_abstract_mesh(abstract_mesh_of(MeshConfig())):
        found = jax.tree.leaves_with_path(abstract_state(config))
    leaves = []
    for path, leaf in found:
        layout = () if leaf.sharding is None else leaf.sharding.spec
        entries = [_axes(entry) for entry in layout]
        entries += [()] * (leaf.ndim - len(entries))
        name = jax.tree_util.keystr(path)
        leaves.append(
            Leaf(
                leaf.shape,
                tuple(entries),
                leaf.dtype.itemsize,
                is_weight=name.startswith(".model"),
                is_stacked="_layers" in name,
            )
        )
    return leaves


def _axes(entry: Any) -> tuple[str, ...]:
    if entry is None:
        return ()
    return (entry,) if isinstance(entry, str) else tuple(entry)


def _activation_bytes(model: ModelConfig, cost: RematCost, tokens: float) -> float:
    moe, D = model.moe, model.model_dim
    inside = (model.num_heads + 2 * model.num_kv_heads) * model.head_dim
    inside += 3 * moe.num_shared_experts * moe.expert_dim
    routed = moe.num_experts_per_token * (2 * D + 3 * moe.expert_dim)
    streams, has_inside, has_routed = cost.saved
    saved = streams * D + has_inside * inside + has_routed * routed
    # Values of the layer at hand, and their gradients.
    working = 2 * (4 * D + inside + routed)
    return 2 * tokens * (saved * model.num_layers + working)
