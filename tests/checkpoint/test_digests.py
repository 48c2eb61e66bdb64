# SPDX-License-Identifier: Apache-2.0
"""Digests see every change of content and no change of layout."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ring_jax import sharding
from ring_jax.checkpoint.digests import digests
from ring_jax.config import MeshConfig
from ring_jax.sharding import P

DTYPES = (jnp.float32, jnp.bfloat16, jnp.int32, jnp.uint8, jnp.bool_)


def _values(dtype, shape=(8, 16)):
    return jnp.asarray(np.random.default_rng(0).integers(0, 200, shape), dtype)


def _digest(x):
    return digests({"x": x})["x"]


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: jnp.dtype(dtype).name)
@pytest.mark.parametrize("spec", [P(), P("data"), P(None, "data"), P("fsdp", "data")])
def test_digest_does_not_depend_on_the_layout(dtype, spec):
    mesh = sharding.make_mesh(MeshConfig(data=4, fsdp=2))
    x = _values(dtype)
    assert _digest(jax.device_put(x, sharding.on_mesh(spec, mesh))) == _digest(x)


def test_digest_changes_with_any_single_bit():
    x = np.asarray(_values(jnp.float32, (3, 4)))
    seen = {_digest(jnp.asarray(x))}
    for element in range(x.size):
        for bit in range(32):
            flipped = x.copy()
            flipped.reshape(-1).view(np.uint32)[element] ^= np.uint32(1 << bit)
            seen.add(_digest(jnp.asarray(flipped)))
    assert len(seen) == 1 + x.size * 32


def test_digest_changes_when_rows_swap_or_the_shape_changes():
    x = _values(jnp.float32)
    others = [x[::-1], x.T, x.at[jnp.array([0, 1])].set(x[jnp.array([1, 0])])]
    assert len({_digest(y) for y in [x, *others]}) == 4


def test_digest_tells_zeros_of_different_length_apart():
    assert len({_digest(jnp.zeros(size, jnp.int32)) for size in range(1, 9)}) == 8


def test_digest_of_a_scalar_is_of_its_bits():
    assert _digest(jnp.float32(0.0)) != _digest(jnp.float32(-0.0))
