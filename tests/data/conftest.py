# SPDX-License-Identifier: Apache-2.0
"""Sources that are nothing but lengths, for tests of what mixes and packs them."""

import types

import numpy as np
import pytest

from ring_jax.config import CurriculumConfig
from ring_jax.data import length_index
from ring_jax.data.ledger import Ledger
from ring_jax.data.length_index import LengthIndex
from ring_jax.data.mixture_table import Change, Geometry

TRAINED = (False, True, True, True, True)
"""All classes but prompts."""


def make_index(
    num_rows: int, *, mean: float, sigma: float = 1.0, seq_len: int, seed: int = 0
) -> LengthIndex:
    """A graded source of log-normal lengths, a third of each row its prompt."""
    rng = np.random.default_rng(seed)
    lengths_C = rng.lognormal(np.log(mean), sigma, num_rows).astype(np.int64)
    lengths_C = np.clip(lengths_C, 4, seq_len)
    return index_of(lengths_C, difficulty_C=rng.random(num_rows).astype(np.float32))


def index_of(lengths_C, *, difficulty_C=None) -> LengthIndex:
    """A source of rows of these lengths."""
    lengths_C = np.asarray(lengths_C)
    counts_CU = np.zeros((len(lengths_C), 5), np.int32)
    counts_CU[:, 0] = lengths_C // 3
    counts_CU[:, 4] = 1
    counts_CU[:, 2] = lengths_C - 2 - lengths_C // 3
    if difficulty_C is None:
        difficulty_C = np.zeros(len(lengths_C), np.float32)
    return length_index.from_counts(counts_CU, difficulty_C)


def make_geometry(**changes) -> Geometry:
    """Windows of four steps of four packed rows."""
    settings = {
        "batch_size": 4,
        "seq_len": 256,
        "window_steps": 4,
        "algorithm": "first_fit",
        "fill": None,
        "trained_classes": TRAINED,
        "seed": "0/base",
    }
    return Geometry(**(settings | changes))


def open_ledger(indexes, mixture, *, curriculum=None, **geometry) -> Ledger:
    """A ledger with one entry."""
    change = Change(
        start_step=0,
        mixture=mixture,
        curriculum=curriculum or CurriculumConfig(),
    )
    return Ledger(indexes, make_geometry(**geometry), []).extended(change)


@pytest.fixture(scope="session")
def lengths():
    """The functions above, by name."""
    return types.SimpleNamespace(
        make_index=make_index,
        index_of=index_of,
        make_geometry=make_geometry,
        open_ledger=open_ledger,
    )
