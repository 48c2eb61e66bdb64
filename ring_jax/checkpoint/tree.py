# SPDX-License-Identifier: Apache-2.0
"""Trees as flat mappings from path to array, the form in which arrays are stored.

A path spells attributes and keys with dots, such as `model.moe_layers.moe.router_DE`,
so that a checkpoint can be read by anyone who knows the names, without our classes.
"""

from collections.abc import Mapping
from typing import Any

import jax


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


def _path(keys: tuple) -> str:
    return jax.tree_util.keystr(keys, simple=True, separator=".")
