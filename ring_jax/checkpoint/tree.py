# SPDX-License-Identifier: Apache-2.0
"""Trees as flat mappings from path to array, the form in which arrays are stored.

A path spells attributes and keys with dots, such as `model.moe_layers.moe.router_DE`,
so that a checkpoint can be read by anyone who knows the names, without our classes.
"""

from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import (
    AbstractMesh,
    NamedSharding,
    PartitionSpec,
    Sharding,
    SingleDeviceSharding,
)


def flatten(tree: Any) -> dict[str, Any]:
    """Returns the leaves of a tree by path, in the tree's own order."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    flat = {_path(keys): leaf for keys, leaf in leaves}
    assert len(flat) == len(leaves), "two leaves of the tree share a path"
    return flat


def unflatten[T](template: T, flat: Mapping[str, Any]) -> T:
    """Returns a tree like `template` whose leaves come from `flat`, by path."""
    leaves, structure = jax.tree_util.tree_flatten_with_path(template)
    return jax.tree_util.tree_unflatten(
        structure, [flat[_path(keys)] for keys, _ in leaves]
    )


def place[T](template: T, flat: Mapping[str, Any]) -> T:
    """Returns a tree like `template` of host arrays, each put where it belongs.

    Args:
      template: a tree with a `jax.ShapeDtypeStruct` or an array per leaf.
      flat: host arrays by path.
    """
    leaves, structure = jax.tree_util.tree_flatten_with_path(template)
    placed = [_put(flat[_path(keys)], layout(leaf)) for keys, leaf in leaves]
    return jax.tree_util.tree_unflatten(structure, placed)


def _put(x: Any, sharding: Sharding) -> jax.Array:
    if sharding.is_fully_addressable:
        return jax.device_put(x, sharding)
    # Where other processes have a part, `device_put` would compare the whole array
    # between all of them.
    return jax.make_array_from_callback(x.shape, sharding, x.__getitem__)


def layout(leaf: Any) -> Sharding:
    """Returns where a leaf goes; what names no devices goes to the mesh in force.

    Without a layout it goes to all of that mesh, or without a mesh to one device.
    """
    sharding, mesh = leaf.sharding, jax.sharding.get_mesh()
    if isinstance(sharding, NamedSharding) and isinstance(sharding.mesh, AbstractMesh):
        return NamedSharding(mesh, sharding.spec)
    if sharding is not None:
        return sharding
    if mesh.empty:
        return SingleDeviceSharding(jax.local_devices()[0])
    return NamedSharding(mesh, PartitionSpec())


def _path(keys: tuple) -> str:
    # An nnx.Param is a node of its own, whose one leaf is its value.
    path = jax.tree_util.keystr(keys, simple=True, separator=".")
    return path.removesuffix(".value")
