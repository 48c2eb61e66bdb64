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
from types import EllipsisType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike

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
    if len(devices) % fixed or (-1 not in sizes.values() and fixed != len(devices)):
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
    """Sorts devices by slice; those of one slice (or CPUs) are divided evenly."""
    by_slice: dict[int, list[Any]] = {}
    for device in devices:
        by_slice.setdefault(getattr(device, "slice_index", 0) or 0, []).append(device)
    if len(by_slice) == 1:
        size = len(devices) // num_slices
        return [devices[i * size : (i + 1) * size] for i in range(num_slices)]
    if len(by_slice) != num_slices:
        raise ConfigError(
            f"config.mesh: slice={num_slices}, but the devices are of {len(by_slice)} "
            "slices. Set slice to that number."
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
        entries = [_named(entry) for entry in jax.typeof(x).sharding.spec]
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
    return _layout(dims, rules)


def stored_by(dims: str) -> str | None:
    """Returns the dimension of a weight of which devices store parts, if they do."""
    stored = STORED_BY.get(dims, "D")
    return stored if stored in dims and dims not in ("D", "DE") else None


def activation(dims: str) -> P:
    """Returns the layout of an activation, for example `activation("BTD")`."""
    return _layout(dims, ACTIVATION_RULES)


def _layout(dims: str, rules: dict[str, tuple[str, ...]]) -> P:
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


def _named(entry: str | tuple[str, ...] | None) -> tuple[str, ...]:
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


def are_weights_in_parts() -> bool:
    """Whether there is anything to gather on the mesh in force."""
    return _that_split(STORAGE_AXES) is not None


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
        axes = _named(weight(dims)[position])
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
        size // math.prod(sizes[axis] for axis in _named(entry))
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
    return P(*activation("J"), *_layout(_on_the_wire(dims), rules))


def _on_the_wire(dims: str) -> str:
    """Returns the letters of a weight's copies."""
    return dims.replace("2", "") if "E" in dims else "D" + dims.replace("D", "")


def per_device[T](
    function: Callable[..., T], *, in_specs: tuple, out_specs: object
) -> Callable[..., T]:
    """Runs `function` on each device's own blocks of its arguments, laid out so."""
    run = jax.shard_map(function, in_specs=in_specs, out_specs=out_specs)

    def lay_out_and_run(*args: jax.Array) -> T:
        return run(*map(jax.reshard, args, in_specs))

    return lay_out_and_run


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
        gathered = tuple(axis for axis in _named(entry) if axis != TENSOR_AXIS)
        if gathered and dim not in keep:
            w = collectives.all_gather(w, gathered, dim=position)
    return w


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
