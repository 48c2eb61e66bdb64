# SPDX-License-Identifier: Apache-2.0
"""The smallest mixture of experts that tests ask: two layers, four experts."""

from typing import Any

from ring_jax.config import ModelConfig, MoeConfig

SIZES: dict[str, Any] = {
    "model_dim": 16,
    "num_layers": 2,
    "num_heads": 2,
    "num_kv_heads": 1,
    "head_dim": 8,
    "init_std": 0.5,
    "eos_id": 1,
    "pad_id": 1,
}


def small_model(**settings: Any) -> ModelConfig:
    moe = MoeConfig(
        num_experts=4, num_experts_per_token=2, num_shared_experts=1, expert_dim=8
    )
    return ModelConfig(**{**SIZES, "moe": moe, **settings})
