# SPDX-License-Identifier: Apache-2.0
"""Ling-plus as in the report: 42 heads; 290.6B parameters, 29.0B per token.

Source: arXiv:2503.05139, and config.json of inclusionAI/Ling-plus-base on Hugging Face,
at refs/pr/1.
"""

import ml_collections

from ring_jax.config import ModelConfig, MoeConfig, to_config_dict


def get_config() -> ml_collections.ConfigDict:
    return to_config_dict(
        ModelConfig(
            model_dim=5376,
            num_layers=88,
            num_heads=42,
            num_kv_heads=6,
            mlp_dim=12288,
            moe=MoeConfig(
                num_experts=64,
                num_experts_per_token=4,
                num_shared_experts=1,
                expert_dim=3072,
            ),
        )
    )
