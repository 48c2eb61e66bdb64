# SPDX-License-Identifier: Apache-2.0
"""How every array is laid out over the device mesh: one letter, one rule.

Letters are those of docs/notation.md. Mesh axes are explicit, so a layout is part of an
array's type, and a program whose layouts are ambiguous does not compile.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from ring_jax.config import ConfigError, MeshConfig

MESH_AXES = ("data", "fsdp", "expert")
EXPERT_AXIS = "expert"

# A letter without a rule is replicated.
WEIGHT_RULES = {"D": "fsdp", "E": EXPERT_AXIS}
ACTIVATION_RULES = {"B": MESH_AXES, "M": MESH_AXES}


def make_mesh(config: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """Builds the mesh of a run; an axis of -1 takes the devices that the others leave.

    Raises:
      ConfigError: when the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else list(devices)
    sizes = dataclasses.asdict(config)
    fixed = math.prod(size for size in sizes.values() if size != -1)
    product = " * ".join(f"{axis}={size}" for axis, size in sizes.items())
    if len(devices) % fixed or (-1 not in sizes.values() and fixed != len(devices)):
        raise ConfigError(
            f"config.mesh: {product} does not fit {len(devices)} devices. Make them "
            "multiply to the device count, or set one of them to -1."
        )
    shape = [len(devices) // fixed if size == -1 else size for size in sizes.values()]
    kinds = (AxisType.Explicit,) * len(MESH_AXES)
    return jax.make_mesh(shape, MESH_AXES, axis_types=kinds, devices=devices)


def abstract_mesh(*sizes: int) -> AbstractMesh:
    """Returns a mesh without devices, for shapes and layouts of any size of pod."""
    kinds = (AxisType.Explicit,) * len(MESH_AXES)
    return AbstractMesh(sizes, MESH_AXES, axis_types=kinds)


def num_batch_shards(mesh: Mesh) -> int:
    """Returns over how many devices the batch dimension is split."""
    return math.prod(mesh.shape[axis] for axis in ACTIVATION_RULES["B"])


def rows_of_process(mesh: Mesh, batch_size: int) -> np.ndarray:
    """Returns which rows of a batch the devices of this process hold, ascending.

    Devices may share rows, and stand apart in the mesh.
    """
    layout = on_mesh(activation("B"), mesh)
    blocks = layout.addressable_devices_indices_map((batch_size,)).values()
    rows_B = np.arange(batch_size)
    return np.unique(np.concatenate([rows_B[index] for index in blocks if index]))


def weight(dims: str) -> P:
    """Returns the layout of a parameter, for example `weight("DNH")`."""
    return P(*(WEIGHT_RULES.get(dim) for dim in dims))


def activation(dims: str) -> P:
    """Returns the layout of an activation, for example `activation("BTD")`."""
    return P(*(ACTIVATION_RULES.get(dim) for dim in dims))


def on_mesh(spec: P, mesh: Mesh) -> NamedSharding:
    """Binds a layout to a mesh, for placing host arrays."""
    return NamedSharding(mesh, spec)


def one_per_device(value: int, mesh: Mesh) -> jax.Array:
    """Returns i32[devices]: on each device, the value that its own process gave."""
    layout = on_mesh(P(mesh.axis_names), mesh)
    mine = np.full((1,), value, np.int32)
    return jax.make_array_from_callback((mesh.size,), layout, lambda index: mine)


def replicated(x: jax.Array) -> jax.Array:
    """Gathers an array whole on every device."""
    return jax.reshard(x, P(*(None,) * x.ndim))


def reshape(x: jax.Array, dims: str, shape: tuple[int, ...]) -> jax.Array:
    """Reshapes an activation whose new dimensions are `dims`.

    The layout is stated because it cannot be inferred where a dimension of size 1 meets
    a sharded one.
    """
    return x.reshape(shape, out_sharding=activation(dims))


def flatten_tokens(x_BT: jax.Array) -> jax.Array:
    """Merges dimensions B and T of an activation into M; any dimensions may follow."""
    B, T, *rest = x_BT.shape
    layout = P(ACTIVATION_RULES["M"], *(None,) * len(rest))
    return x_BT.reshape(B * T, *rest, out_sharding=layout)


def unflatten_tokens(x_M: jax.Array, like_BT: jax.Array) -> jax.Array:
    """Splits the dimension M again into the B and T of another activation."""
    B, T = like_BT.shape[:2]
    layout = P(ACTIVATION_RULES["B"], *(None,) * x_M.ndim)
    return x_M.reshape(B, T, *x_M.shape[1:], out_sharding=layout)


def einsum(equation: str, x: jax.Array, w: jax.Array) -> jax.Array:
    """Contracts an activation with a parameter in the activation's dtype.

    The equation's letters give the result's layout. The weight is gathered first (fully
    sharded data parallelism: weights move, activations stay), after the cast, so that
    the wire carries the compute dtype.
    """
    _, dims = equation.split("->")
    gathered = replicated(w.astype(x.dtype))
    return jnp.einsum(equation, x, gathered, out_sharding=activation(dims))


def per_device[**Args, T](
    function: Callable[Args, T], *, in_specs: tuple, out_specs: object
) -> Callable[Args, T]:
    """Runs `function` on each device's own block of its arguments.

    One device has nothing to sum or to gather, and XLA would still copy every weight
    and gradient for it: then nothing varies, and no sum is derived.
    """
    return jax.shard_map(
        function, in_specs=in_specs, out_specs=out_specs, check_vma=not _is_alone()
    )


def gather_block(w: jax.Array, dims: str, *, keep: str = "") -> jax.Array:
    """Inside `per_device`: gathers a weight's sharded dimensions but those in `keep`.

    The result is marked as varying over every mesh axis, so that its gradient, which
    does vary, is summed over the devices when it leaves.
    """
    for position, dim in enumerate(dims):
        axis = WEIGHT_RULES.get(dim)
        if axis is None or dim in keep or jax.lax.axis_size(axis) == 1:
            continue
        w = jax.lax.all_gather(w, axis, axis=position, tiled=True)
    return vary(w)


def vary(x: jax.Array) -> jax.Array:
    """Inside `per_device`: marks a value as different on every device."""
    varying = jax.typeof(x).manual_axis_type.varying
    missing = tuple(axis for axis in MESH_AXES if axis not in varying)
    if _is_alone() or not missing:
        return x
    return jax.lax.pcast(x, missing, to="varying")


def _is_alone() -> bool:
    return jax.sharding.get_abstract_mesh().size == 1
