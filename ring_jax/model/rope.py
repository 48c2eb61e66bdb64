# SPDX-License-Identifier: Apache-2.0
"""Rotary position embedding by halves, with YaRN.

Source: arXiv:2104.09864, equation 34, in the half-split ("NeoX") layout; YaRN
arXiv:2309.00071. Both must agree with `modeling_bailing_moe.py` of inclusionAI/Ling.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from ring_jax.config import ModelConfig, YarnConfig


def rotary_tables(
    config: ModelConfig, positions_BT: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns cosine and sine, f32[B, T, H/2] each, of the given positions."""
    frequencies = inverse_frequencies(config).astype(np.float32)
    angles_BTh = positions_BT.astype(jnp.float32)[..., None] * frequencies[None, None]
    magnitude = _magnitude(config.rope_scaling)
    return jnp.cos(angles_BTh) * magnitude, jnp.sin(angles_BTh) * magnitude


def rotate(x_BTNH: jax.Array, cos_BTh: jax.Array, sin_BTh: jax.Array) -> jax.Array:
    """Rotates each pair (i, i + H/2) of a head by its angle.

    The tables stay in float32 and the result is cast back: in bfloat16 tables,
    positions beyond a few thousand lose their angle.
    """
    first, second = jnp.split(x_BTNH.astype(jnp.float32), 2, axis=-1)
    cos, sin = cos_BTh[:, :, None], sin_BTh[:, :, None]
    turned = jnp.concatenate(
        [first * cos - second * sin, second * cos + first * sin], -1
    )
    return turned.astype(x_BTNH.dtype)


def inverse_frequencies(config: ModelConfig) -> np.ndarray:
    """Returns theta**(-2j/H), blended by YaRN where it is on; f64[H/2]."""
    H = config.head_dim
    plain = config.rope_theta ** (-np.arange(0, H, 2, dtype=np.float64) / H)
    if config.rope_scaling is None:
        return plain
    low, high = yarn_range(config.rope_scaling, head_dim=H, theta=config.rope_theta)
    # The source keeps the ramp defined when both ends meet.
    width = max(high - low, 0.001)
    ramp = np.clip((np.arange(H // 2) - low) / width, 0.0, 1.0)
    return plain / config.rope_scaling.factor * ramp + plain * (1.0 - ramp)


def yarn_range(yarn: YarnConfig, *, head_dim: int, theta: float) -> tuple[int, int]:
    """Returns the frequencies between which YaRN blends (arXiv:2309.00071, eq. 23)."""

    def dimension(rotations: float) -> float:
        turns = yarn.original_max_positions / (rotations * 2 * math.pi)
        return head_dim * math.log(turns) / (2 * math.log(theta))

    low = math.floor(dimension(yarn.beta_fast))
    high = math.ceil(dimension(yarn.beta_slow))
    return max(low, 0), min(high, head_dim - 1)


def _magnitude(yarn: YarnConfig | None) -> float:
    if yarn is None or yarn.factor <= 1:
        return 1.0

    def scale(mscale: float) -> float:
        return 0.1 * mscale * math.log(yarn.factor) + 1.0

    return scale(yarn.mscale) / scale(yarn.mscale_all_dim)
