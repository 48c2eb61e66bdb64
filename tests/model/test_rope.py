# SPDX-License-Identifier: Apache-2.0
"""Rotary positions and YaRN."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from ring_jax.config import ModelConfig, YarnConfig
from ring_jax.model.rope import (
    inverse_frequencies,
    rotary_tables,
    rotate,
    yarn_range,
)

LING_LITE = ModelConfig()
YARN = YarnConfig(factor=4.0, original_max_positions=32768)


def test_scores_depend_on_the_distance_alone():
    query, key = jax.random.normal(jax.random.key(0), (2, 1, 1, 1, 128))
    scores = []
    for start in (0, 7, 100):
        positions_BT = jnp.asarray([[start, start + 5]])
        cos, sin = rotary_tables(LING_LITE, positions_BT)
        turned_query = rotate(query, cos[:, 1:], sin[:, 1:])
        turned_key = rotate(key, cos[:, :1], sin[:, :1])
        scores.append(float(jnp.sum(turned_query * turned_key)))
    # Float32 rotations of 128 products.
    np.testing.assert_allclose(scores[1:], scores[0], rtol=1e-4)


def test_halves_are_rotated_as_pairs():
    x = jnp.zeros((1, 1, 1, 128)).at[..., 3].set(1.0)
    cos, sin = rotary_tables(LING_LITE, jnp.asarray([[2]]))
    turned = rotate(x, cos, sin)[0, 0, 0]
    angle = 2 * LING_LITE.rope_theta ** (-6 / 128)
    np.testing.assert_allclose(turned[3], np.cos(angle), rtol=1e-6)
    np.testing.assert_allclose(turned[67], np.sin(angle), rtol=1e-6)


def test_yarn_blends_between_the_published_frequencies():
    # theta 600000, 32768 positions, factor 4: computed by hand from the paper's eq. 23.
    assert yarn_range(YARN, head_dim=128, theta=600000.0) == (24, 42)
    stretched = dataclasses.replace(LING_LITE, rope_scaling=YARN)
    ratio = inverse_frequencies(stretched) / inverse_frequencies(LING_LITE)
    np.testing.assert_array_equal(ratio[:25], 1.0)
    np.testing.assert_allclose(ratio[42:], 0.25, rtol=1e-12)
    assert np.all(np.diff(ratio[24:43]) < 0)
    cos, _ = rotary_tables(stretched, jnp.asarray([[0]]))
    np.testing.assert_allclose(cos, 1.138629, rtol=1e-6)
