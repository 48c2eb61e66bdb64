# SPDX-License-Identifier: Apache-2.0
"""Ling-lite-1.5, of May 2025: a plain head and 32k positions; 16.8B parameters.

Source: its config.json, as reproduced in lablup/mlxcel, `bailing_moe_tests.rs`. The
128k that its README names need YaRN: `rope_scaling` with factor 4 over these 32768.
"""

import ml_collections

from ring_jax.config import ModelConfig, to_config_dict


def get_config() -> ml_collections.ConfigDict:
    return to_config_dict(
        ModelConfig(
            norm_head=False,
            max_positions=32768,
            mlp_dim=1408,
        )
    )
