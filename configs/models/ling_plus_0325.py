# SPDX-License-Identifier: Apache-2.0
"""Ling-plus as released in March 2025: 56 heads; 292.5B parameters, 30.9B per token.

Its heads are 128 wide, which is not 5376 / 56. Source: config.json of
inclusionAI/Ling-plus-base on Hugging Face, at refs/pr/2.
"""

import ml_collections

from ring_jax.config import ModelConfig, MoeConfig, to_config_dict


def get_config() -> ml_collections.ConfigDict:
    return to_config_dict(
        ModelConfig(
            model_dim=5376,
            num_layers=88,
            num_heads=56,
            num_kv_heads=8,
            head_dim=128,
            mlp_dim=12288,
            norm_eps=1e-5,
            moe=MoeConfig(
                num_experts=64,
                num_experts_per_token=4,
                num_shared_experts=1,
                expert_dim=3072,
            ),
        )
    )
