# SPDX-License-Identifier: Apache-2.0
"""The length index of a billion rows that repeat a few: no machine here can hold more.

Its sums over blocks, which a ledger searches, are those of a billion rows.
"""

import numpy as np

from ring_jax.data.length_index import MAX_BLOCKS, NUM_BANDS, LengthIndex


def billion_rows(*, mean: float) -> LengthIndex:
    """Makes the index of 10**9 rows of log-normal lengths around `mean` tokens."""
    rng = np.random.default_rng(0)
    size = 10**9 // MAX_BLOCKS + 1
    lengths_C = np.clip(rng.lognormal(np.log(mean), 1, 7 * size + 3), 3, 16384)
    base_CU = np.zeros((len(lengths_C), 5), np.int32)
    base_CU[:, 2] = lengths_C.astype(np.int32) - 1
    before = np.concatenate([[0], np.cumsum(base_CU[:, 2], dtype=np.int64)])
    starts_J = np.arange(MAX_BLOCKS + 1, dtype=np.int64) * size
    periods, rest = np.divmod(starts_J, len(lengths_C))
    sums_JU = np.zeros((MAX_BLOCKS, 5), np.int64)
    sums_JU[:, 2] = np.diff(periods * before[-1] + before[rest])
    kinds = np.full((32, 2), (0, -1))
    kinds[1 << 2] = (MAX_BLOCKS * size, 0)
    return LengthIndex(
        rows_C=_Same(),  # pyright: ignore[reportArgumentType]  # stands for an array
        counts_CU=_Tiled(base_CU),  # pyright: ignore[reportArgumentType]  # so does it
        starts_J=starts_J,
        sums_JU=sums_JU,
        used_J=np.full(MAX_BLOCKS, size),
        bands=np.arange(NUM_BANDS + 1) * (MAX_BLOCKS // NUM_BANDS),
        kinds=kinds,
        digest=f"a billion rows of {mean}",
    )


class _Tiled:
    def __init__(self, base: np.ndarray):
        self._base = base

    def __getitem__(self, places: np.ndarray) -> np.ndarray:
        return self._base[np.asarray(places) % len(self._base)]


class _Same:
    def __getitem__(self, places: np.ndarray) -> np.ndarray:
        return places
