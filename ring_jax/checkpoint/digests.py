# SPDX-License-Identifier: Apache-2.0
"""Digests of arrays that do not depend on how the arrays are laid out over devices.

Orbax 0.12 restores an array file with a flipped bit without an error. Digests taken on
the device before a save, and again after a restore, close that gap. Because addition
wraps and commutes, every layout of the same array sums to the same number.
"""

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

# Odd constants: multiplying by them permutes the 32-bit integers. The first is 2**32
# over the golden ratio, the next two are those of MurmurHash3's finaliser.
_POSITION_FACTOR = 0x9E3779B9
_MIX_FACTORS = (0x85EBCA6B, 0xC2B2AE35)
_SECOND_SUM_SEED = 0x27D4EB2F


def digests(arrays: Mapping[str, jax.Array]) -> dict[str, str]:
    """Returns 16 hexadecimal digits per array.

    Each element's bits are mixed with its position by a permutation of the 32-bit
    integers, and summed with wrap-around, twice with different seeds. A change of one
    element always changes both sums; any other change goes unseen with probability
    about 2**-64.

    Args:
      arrays: path -> array of any layout, with elements of at most 32 bits.
    """
    sums = jax.device_get({path: _sums(array) for path, array in arrays.items()})
    return {path: f"{int(a):08x}{int(b):08x}" for path, (a, b) in sums.items()}


@jax.jit
def _sums(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    bits = _bits(x)
    position = jnp.zeros((), jnp.uint32)
    for axis, size in enumerate(x.shape):
        shape = [size if axis == other else 1 for other in range(x.ndim)]
        stride = math.prod(x.shape[axis + 1 :]) % 2**32
        index = jnp.arange(size, dtype=jnp.uint32) * np.uint32(stride)
        position = position + index.reshape(shape)
    keyed = bits ^ (position * np.uint32(_POSITION_FACTOR))
    first = jnp.sum(_mix(keyed), dtype=jnp.uint32)
    second = jnp.sum(_mix(keyed + np.uint32(_SECOND_SUM_SEED)), dtype=jnp.uint32)
    return first, second


def _bits(x: jax.Array) -> jax.Array:
    if x.dtype == jnp.bool_:
        return x.astype(jnp.uint32)
    assert x.dtype.itemsize <= 4, f"{x.dtype} elements have more than 32 bits"
    unsigned = jnp.dtype(f"uint{8 * x.dtype.itemsize}")
    return jax.lax.bitcast_convert_type(x, unsigned).astype(jnp.uint32)


def _mix(x: jax.Array) -> jax.Array:
    """Permutes the 32-bit integers; each input bit moves about half of the output."""
    for shift, factor in zip((16, 13), _MIX_FACTORS, strict=True):
        x = (x ^ (x >> shift)) * np.uint32(factor)
    return x ^ (x >> 16)
