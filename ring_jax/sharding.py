# SPDX-License-Identifier: Apache-2.0
"""How every array is laid out over the device mesh: one letter, one rule.

Letters are those of docs/notation.md. Mesh axes are explicit, so a layout is part of an
array's type, and a program whose layouts are ambiguous does not compile.

Rows of a batch are split over slice, data, fsdp and expert, and a row's tokens over
context. Weights are stored in parts over fsdp, context and expert, and gathered where
they are used; tensor splits heads, hidden widths and the vocabulary. Slice and data
keep copies of everything.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from ring_jax import collectives, torus
from ring_jax.config import ConfigError, MeshConfig, ModelConfig

MESH_AXES = ("slice", "data", "fsdp", "context", "expert", "tensor")
"""The major axis first: neighbours along the last are neighbours in the pod."""
BATCH_AXES = ("slice", "data", "fsdp", "expert")
CONTEXT_AXIS = "context"
EXPERT_AXIS = "expert"
TENSOR_AXIS = "tensor"
TOKEN_AXES = tuple(axis for axis in MESH_AXES if axis != TENSOR_AXIS)
"""Devices along them have different tokens."""

STORAGE_AXES = ("fsdp", CONTEXT_AXIS, EXPERT_AXIS)
"""Devices along them store parts of a weight, which is gathered where it is used."""

# A letter without a rule is replicated.
WEIGHT_RULES: dict[str, tuple[str, ...]] = {
    "E": (EXPERT_AXIS,),
    "N": (TENSOR_AXIS,),
    "K": (TENSOR_AXIS,),
    "F": (TENSOR_AXIS,),
    "V": (TENSOR_AXIS,),
}
STORED_BY = {"VD": "V", "EFD": "F"}
"""The dimension of a weight that is stored in parts; D in all others. These two are
used as they are, and gathering a last dimension would move single tiles."""
ACTIVATION_RULES: dict[str, tuple[str, ...]] = {
    "B": BATCH_AXES,
    "T": (CONTEXT_AXIS,),
    "M": TOKEN_AXES,
    "J": TOKEN_AXES,
    "N": (TENSOR_AXIS,),
    "K": (TENSOR_AXIS,),
    "F": (TENSOR_AXIS,),
    "V": (TENSOR_AXIS,),
}


def make_mesh(config: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """Builds the mesh of a run; an axis of -1 takes the devices that the others leave.

    Devices of one slice stand together: only the axis `slice` leaves a slice.

    Raises:
      ConfigError: when the sizes do not multiply to the number of devices, or the
        devices are not those of `config.slice` slices.
    """
    devices = jax.devices() if devices is None else list(devices)
    sizes = dataclasses.asdict(config)
    fixed = math.prod(size for size in sizes.values() if size != -1)
    product = " * ".join(f"{axis}={size}" for axis, size in sizes.items())
    if -1 in sizes.values() and len(devices) % fixed:
        given = " * ".join(f"{a}={n}" for a, n in sizes.items() if n not in (-1, 1))
        raise ConfigError(
            f"config.mesh: {given} = {fixed} does not divide {len(devices)} devices. "
            "Choose sizes that do."
        )
    if -1 not in sizes.values() and fixed != len(devices):
        raise ConfigError(
            f"config.mesh: {product} does not fit {len(devices)} devices. Make them "
            "multiply to the device count, or set one of them to -1."
        )
    rest = len(devices) // fixed
    shape = [rest if sizes[axis] == -1 else sizes[axis] for axis in MESH_AXES]
    groups = [
        torus.arrange(group, dict(zip(MESH_AXES[1:], shape[1:], strict=True)))
        for group in _slices(devices, shape[0])
    ]
    kinds = (AxisType.Explicit,) * len(MESH_AXES)
    mesh = Mesh(np.stack(groups), MESH_AXES, axis_types=kinds)
    collectives.learn_torus(mesh)
    return mesh


def _slices(devices: list[Any], num_slices: int) -> list[list[Any]]:
    """Sorts devices by slice; what is no TPU has none, and is divided evenly."""
    by_slice: dict[int, list[Any]] = {}
    for device in devices:
        by_slice.setdefault(getattr(device, "slice_index", 0) or 0, []).append(device)
    if devices[0].platform != "tpu" and len(by_slice) == 1:
        size = len(devices) // num_slices
        return [devices[i * size : (i + 1) * size] for i in range(num_slices)]
    if len(by_slice) != num_slices:
        raise ConfigError(
            f"config.mesh: slice={num_slices}, where the number of slices is "
            f"{len(by_slice)}. Make them equal (`ring plan` takes --slices)."
        )
    return [by_slice[number] for number in sorted(by_slice)]


def check_model(config: ModelConfig, mesh: Mesh | AbstractMesh) -> None:
    """Checks that the mesh divides the model.

    Raises:
      ConfigError: one line that names the axis, the dimension and both sizes.
    """
    moe, num_tensor = config.moe, mesh.shape[TENSOR_AXIS]
    stored = math.prod(mesh.shape[axis] for axis in STORAGE_AXES)
    num_expert = mesh.shape[EXPERT_AXIS]
    sizes = {
        "num_heads": (config.num_heads, num_tensor, "tensor"),
        "num_kv_heads": (config.num_kv_heads, num_tensor, "tensor"),
        "vocab_size": (
            config.vocab_size,
            num_tensor * stored,
            "tensor * fsdp * context * expert",
        ),
        "model_dim": (config.model_dim, stored, "fsdp * context * expert"),
    }
    if not config.is_dense:
        sizes["moe.num_experts"] = (moe.num_experts, num_expert, "expert")
        num_parts = num_tensor * stored // num_expert
        sizes["moe.expert_dim"] = (moe.expert_dim, num_parts, "tensor * fsdp * context")
    if config.num_dense_layers:
        sizes["mlp_dim"] = (config.mlp_dim, num_tensor, "tensor")
    for name, (size, parts, axes) in sizes.items():
        if size % parts:
            raise ConfigError(
                f"config.mesh: {axes} = {parts} does not divide model.{name}={size}. "
                "Choose sizes that do."
            )


def without_context(mesh: Mesh) -> Mesh:
    """Returns the mesh on which rows are whole: its context axis is part of fsdp.

    Weights lie on the same devices in both, so to move them copies nothing.
    """
    sizes = dict(mesh.shape)
    sizes["fsdp"] *= sizes[CONTEXT_AXIS]
    sizes[CONTEXT_AXIS] = 1
    devices = mesh.devices.reshape(tuple(sizes.values()))
    return Mesh(devices, MESH_AXES, axis_types=mesh.axis_types)


def onto[Tree](tree: Tree, mesh: Mesh) -> Tree:
    """Gives parameters the layouts of another mesh of the same devices."""

    def move(x: jax.Array) -> jax.Array:
        entries = [axes_of(entry) for entry in jax.typeof(x).sharding.spec]
        kept = [
            tuple(axis for axis in axes if mesh.shape[axis] > 1) or None
            for axes in entries
        ]
        return jax.device_put(x, on_mesh(P(*kept), mesh))

    return jax.tree.map(move, tree)


def abstract_mesh(**sizes: int) -> AbstractMesh:
    """Returns a mesh without devices, for shapes and layouts of any size of pod.

    Axes that are not named have size 1.
    """
    kinds = (AxisType.Explicit,) * len(MESH_AXES)
    shape = tuple(sizes.get(axis, 1) for axis in MESH_AXES)
    return AbstractMesh(shape, MESH_AXES, axis_types=kinds)


def num_batch_shards(mesh: Mesh | AbstractMesh) -> int:
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
    """Returns the layout of a parameter, for example `weight("DNH")`.

    A vector, or the router, is whole on every device: not worth a gather.
    """
    rules = dict(WEIGHT_RULES)
    if (stored := stored_by(dims)) is not None:
        taken = {axis for dim in dims for axis in rules.get(dim, ())}
        free = tuple(axis for axis in STORAGE_AXES if axis not in taken)
        rules[stored] = rules.get(stored, ()) + free
    elif dims == "DE":
        del rules["E"]
    return laid_out(dims, rules)


def stored_by(dims: str) -> str | None:
    """Returns the dimension of a weight of which devices store parts, if they do."""
    stored = STORED_BY.get(dims, "D")
    return stored if stored in dims and dims not in ("D", "DE") else None


def activation(dims: str) -> P:
    """Returns the layout of an activation, for example `activation("BTD")`."""
    return laid_out(dims, ACTIVATION_RULES)


def laid_out(dims: str, rules: dict[str, tuple[str, ...]]) -> P:
    """Returns the layout of letters by a table of rules, on the mesh in force."""
    return P(*(_that_split(rules.get(dim, ())) for dim in dims))


def _that_split(axes: tuple[str, ...]) -> tuple[str, ...] | None:
    """Returns the axes of more than one device of the mesh in force, if any.

    So a dimension that nothing splits can be cut and joined freely, and where nothing
    varies, no sum is derived: XLA would copy an array to sum it over one device.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return axes or None
    return tuple(axis for axis in axes if mesh.shape[axis] > 1) or None


def axes_of(entry: str | tuple[str, ...] | None) -> tuple[str, ...]:
    """Returns the axes of an entry of a `PartitionSpec`."""
    return (entry,) if isinstance(entry, str) else entry or ()


def if_split(axis: str) -> str | None:
    """Returns the axis if the mesh in force has several devices along it."""
    return axis if _that_split((axis,)) else None


def whole_rows() -> P:
    """Returns the layout in which a batch [B, T] comes: context has copies of it."""
    return P(_that_split(BATCH_AXES), None)


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
    """Merges dimensions B and T of an activation into M; any dimensions may follow.

    Each device merges its own block: the order of M is that of the devices.
    """
    rest = (None,) * (x_BT.ndim - 2)
    run = per_device(
        _merge_tokens,
        in_specs=(P(*activation("BT"), *rest),),
        out_specs=P(*activation("M"), *rest),
    )
    return run(x_BT)


def _merge_tokens(x_BT: jax.Array) -> jax.Array:
    B, T, *rest = x_BT.shape
    return x_BT.reshape(B * T, *rest)


def unflatten_tokens(x_M: jax.Array, like_BT: jax.Array) -> jax.Array:
    """Splits the dimension M again into the B and T of another activation."""
    T = like_BT.shape[1] // jax.sharding.get_abstract_mesh().shape[CONTEXT_AXIS]
    rest = (None,) * (x_M.ndim - 1)
    run = per_device(
        functools.partial(_split_tokens, num_tokens=T),
        in_specs=(P(*activation("M"), *rest),),
        out_specs=P(*activation("BT"), *rest),
    )
    return run(x_M)


def _split_tokens(x_M: jax.Array, *, num_tokens: int) -> jax.Array:
    return x_M.reshape(-1, num_tokens, *x_M.shape[1:])


def are_weights_in_parts() -> bool:
    """Whether there is anything to gather on the mesh in force."""
    return _that_split(STORAGE_AXES) is not None


def per_device[T](
    function: Callable[..., T], *, in_specs: tuple, out_specs: object
) -> Callable[..., T]:
    """Runs `function` on each device's own blocks of its arguments, laid out so."""
    run = jax.shard_map(function, in_specs=in_specs, out_specs=out_specs)

    def lay_out_and_run(*args: jax.Array) -> T:
        return run(*map(jax.reshard, args, in_specs))

    return lay_out_and_run


def vary(x: jax.Array, *axes: str) -> jax.Array:
    """Inside `per_device`: marks a value as different along mesh axes.

    The transpose sums the gradient over them.
    """
    varying = jax.typeof(x).manual_axis_type.varying
    missing = tuple(axis for axis in _that_split(axes) or () if axis not in varying)
    return jax.lax.pcast(x, missing, to="varying") if missing else x


def sum_over(x: jax.Array, *axes: str) -> jax.Array:
    """Inside `per_device`: sums over mesh axes; every device gets the sum."""
    split = _that_split(axes)
    return jax.lax.psum(x, split) if split else x
