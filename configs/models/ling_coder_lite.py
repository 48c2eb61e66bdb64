# SPDX-License-Identifier: Apache-2.0
"""Ling-Coder-lite, for code: short rotary period and 4k positions; 16.8B parameters.

Source: config.json of inclusionAI/Ling-Coder-lite on Hugging Face, at refs/pr/1. The
README names 16k positions, so the main branch may differ.
"""

import ml_collections

from ring_jax.config import ModelConfig, to_config_dict


def get_config() -> ml_collections.ConfigDict:
    return to_config_dict(
        ModelConfig(
            norm_eps=1e-5,
            rope_theta=10000.0,
            max_positions=4096,
        )
    )
