# SPDX-License-Identifier: Apache-2.0
"""Group sizes as skewed as those of a trained router."""

import numpy as np


def zipf_sizes(num_rows: int, num_groups: int) -> np.ndarray:
    """Returns rows by group, i32[E], always the same.

    Shares are in proportion to 1 / rank ** 0.8, the ranks dealt to the groups at
    random.
    """
    share_E = 1 / np.arange(1, num_groups + 1) ** 0.8
    sizes_E = np.floor(share_E / share_E.sum() * num_rows).astype(np.int32)
    sizes_E[0] += num_rows - sizes_E.sum()
    return np.random.default_rng(0).permutation(sizes_E)
