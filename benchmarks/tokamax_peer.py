# SPDX-License-Identifier: Apache-2.0
"""Tokamax's grouped products, as the compiler's process of an environment with it.

pip install tokamax==0.0.17 jax==0.12.0.1 libtpu==0.0.50.1
"""

import jax
import jax.numpy as jnp

# These packages are in the peer's environment, not in ours.
from tokamax._src.ops.gmm_v2 import (  # pyright: ignore[reportMissingImports]  # peer's
    gmm_v2,
    tgmm_v2,
)
from tokamax._src.ops.ragged_dot import (  # pyright: ignore[reportMissingImports]  # peer's
    pallas_mosaic_tpu_kernel as v1,
)

PRECISION = (jax.lax.Precision.DEFAULT, jax.lax.Precision.DEFAULT)


def forward_v1(x_RD, w_EDF, sizes_E, *, tiling):
    """The first version's product, megablox with tiles of choice."""
    return v1.gmm(x_RD, w_EDF, sizes_E, PRECISION, jnp.dtype(jnp.bfloat16), tiling)


def dlhs_v1(y_RF, w_EDF, sizes_E, *, tiling):
    """Its transposed product."""
    return v1.gmm(
        y_RF,
        w_EDF,
        sizes_E,
        PRECISION,
        jnp.dtype(jnp.bfloat16),
        tiling,
        transpose_rhs=True,
    )


def drhs_v1(x_RD, y_RF, sizes_E, *, tiling):
    """Its outer product."""
    dtype = jnp.dtype(jnp.bfloat16)
    return v1.tgmm(x_RD.T, y_RF, sizes_E, PRECISION, dtype, tiling)


def forward_v2(x_RD, w_EDF, sizes_E):
    """The second version's product, with the tiles it chooses."""
    return gmm_v2.gmm_v2(x_RD, w_EDF, sizes_E, preferred_element_type=jnp.bfloat16)


def dlhs_v2(y_RF, w_EDF, sizes_E):
    """Its transposed product."""
    return gmm_v2.gmm_v2(
        y_RF,
        w_EDF,
        sizes_E,
        preferred_element_type=jnp.bfloat16,
        transpose_rhs=True,
    )


def drhs_v2(x_RD, y_RF, sizes_E):
    """Its outer product."""
    return tgmm_v2.tgmm_v2(
        x_RD,
        y_RF,
        sizes_E,
        sizes_E.shape[0],
        preferred_element_type=jnp.bfloat16,
    )
