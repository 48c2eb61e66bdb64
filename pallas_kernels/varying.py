# SPDX-License-Identifier: Apache-2.0
"""What `jax.shard_map` must know of arrays: over which mesh axes they vary."""

from typing import Any

import jax


def vary_alike(*trees: Any) -> list[Any]:
    """Marks arrays as varying over every mesh axis that one of them varies over.

    Inside `jax.shard_map` a loop's carry must vary as its results do. The mark's
    transpose sums a gradient over the axes that its array does not vary over.
    """
    arrays, structure = jax.tree.flatten(list(trees))
    varying = [jax.typeof(array).manual_axis_type.varying for array in arrays]
    union = frozenset().union(*varying)
    marked = [
        jax.lax.pcast(array, tuple(union - own), to="varying") if union - own else array
        for array, own in zip(arrays, varying, strict=True)
    ]
    return jax.tree.unflatten(structure, marked)
