# SPDX-License-Identifier: Apache-2.0
"""What the Pallas kernels of MaxText's step find in scalar memory.

Its step is estimated as kindly as can be: all experts get equally many rows, the mask
is causal without documents.
"""

from collections.abc import Mapping

import numpy as np

from ring_jax.plan.categories import category
from ring_jax.plan.hlo import Computation, Instruction

CATEGORIES = (
    category("attention", r"vmap\(static_sparsity_splash\)", r"\w*splash\w*"),
    category("expert matmuls", r"jit\(t?gmm\)", r"gmm"),
    category(
        "router and permutation",
        "sort_activations",
        "weight_sum",
        "unsort_intermediates",
        "sort",
        "top_k",
    ),
)
"""By the scopes that its code names."""


def kernel_scalars(
    kernel: Instruction, computation: Computation
) -> Mapping[int, np.ndarray] | None:
    """Returns the scalar operands of a kernel of MaxText; None: it is another's."""
    operands = [computation.by_name[name].shapes[0] for name in kernel.operands]
    if "gmm" in kernel.name:
        num_groups = operands[1].dims[0] - 1
        num_visits = operands[2].dims[0]
        return megablox_scalars(operands[5].dims[0], num_groups, num_visits)
    if "splash" in kernel.name:
        num_blocks = operands[0].dims[-1]
        return splash_scalars(num_blocks, is_keys="dkv" in kernel.name)
    return None


def megablox_scalars(
    num_rows: int, num_groups: int, num_visits: int
) -> dict[int, np.ndarray]:
    """Returns (visits made, offsets, group and row tile of each visit, first group).

    A visit is a tile of rows with rows of one group; `num_visits` is how many there can
    be, the tiles plus all groups but one.
    """
    tile = num_rows // (num_visits - num_groups + 1)
    ends = np.arange(1, num_groups + 1) * (num_rows // num_groups)
    starts = ends - num_rows // num_groups
    visits = [
        (group, row_tile)
        for group, (start, end) in enumerate(zip(starts, ends, strict=True))
        for row_tile in range(start // tile, -(-end // tile))
    ]
    groups, row_tiles = np.zeros((2, num_visits), np.int64)
    groups[: len(visits)], row_tiles[: len(visits)] = np.array(visits).T
    offsets = np.concatenate([[0], ends])
    return {
        0: np.array([len(visits)]),
        1: offsets,
        2: groups,
        3: row_tiles,
        4: np.zeros(1, np.int64),
    }


def splash_scalars(num_blocks: int, *, is_keys: bool) -> dict[int, np.ndarray]:
    """Returns which block is fetched next, and which blocks are masked, as packed.

    Of a block of queries i and one of keys j: 2 whole, 1 on the diagonal, 0 not seen.
    Where nothing is seen, the next block that is seen is fetched.
    """
    i, j = np.indices((num_blocks, num_blocks))
    kind = np.where(j < i, 2, (i == j).astype(int))
    following = np.where(j <= i, i, j) if is_keys else np.where(j <= i, j, 0)
    return {0: _packed_bytes(following), 1: _packed_bytes(kind)}


def _packed_bytes(values: np.ndarray) -> np.ndarray:
    """Packs rows of bytes as the compiler tiles them: four rows a word, 128 columns."""
    words = np.zeros((-(-values.shape[0] // 8) * 2, 128), np.int64)
    for row, line in enumerate(values.astype(np.int64)):
        words[row // 4, : len(line)] += line << 8 * (row % 4)
    return words.reshape(-1)
