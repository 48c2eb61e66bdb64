# SPDX-License-Identifier: Apache-2.0
"""A BailingMoE for two cores: 1.95M parameters, 1.06M of them per token.

Every part of Ling-lite is there (grouped heads, top-k of many experts, a shared expert,
the normed head), each a little smaller. The ids are those of a tokenizer trained on the
spot. Source: our own.
"""

import ml_collections

from ring_jax.config import ModelConfig, MoeConfig, to_config_dict


def get_config() -> ml_collections.ConfigDict:
    return to_config_dict(
        ModelConfig(
            vocab_size=2048,
            model_dim=128,
            num_layers=4,
            num_heads=4,
            num_kv_heads=1,
            head_dim=32,
            mlp_dim=48,
            moe=MoeConfig(
                num_experts=16,
                num_experts_per_token=4,
                num_shared_experts=1,
                expert_dim=48,
            ),
            rope_theta=10000.0,
            max_positions=1024,
            init_std=0.02,
            eos_id=1,
            pad_id=1,
        )
    )
